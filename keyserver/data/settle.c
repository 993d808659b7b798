#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/log.h"
#include "keyserver/data/data.h"

/*
 * Uploads of clients that know no stages: they become current when nothing came for a while, unless
 * a numbered set (NAME-00001-of-00003.EXT) has gaps, counted together with what is current already.
 */
enum { BATCH = 64, DIGITS = 5, TAIL = 2 * DIGITS + 5 }; /* "-00001-of-00003" */

static bool digits(const char *p)
{
    return strspn(p, "0123456789") >= DIGITS;
}

/* Where "-00001-of-00003" begins in a path, or NULL. */
static const char *numbering(const char *path)
{
    for (const char *p = strchr(path, '-'); p; p = strchr(p + 1, '-')) {
        if (digits(p + 1) && strncmp(p + 1 + DIGITS, "-of-", 4) == 0 &&
            digits(p + 1 + DIGITS + 4)) {
            return p;
        }
    }
    return NULL;
}

/* How many of the files that there will be have this path but for the number. */
static int64_t count_set(struct ks_ctx *c, const char *model_id, const char *path, const char *at,
                         struct ct_err *err)
{
    ks_autorows rows = NULL;
    ct_autobuf before = {0};
    ct_buf_put(&before, path, (size_t)(at - path) + 1);
    ct_buf_putc(&before, '\0');
    if (ct_buf_ok(&before, err)) {
        return -1;
    }
    const char *head = (const char *)before.data;
    const char *tail = at + 1 + DIGITS;
    int r = ks_one(c->db, &rows, err,
                   "SELECT COUNT(*) FROM (SELECT path FROM staged WHERE model_id = $1 AND stage ="
                   " '' UNION SELECT f.path FROM files f JOIN models m ON m.id = f.model_id AND"
                   " m.generation = f.generation WHERE f.model_id = $1) a"
                   " WHERE SUBSTR(path, 1, CAST($4 AS INTEGER)) = $2 AND"
                   " SUBSTR(path, CAST($5 AS INTEGER)) = $3",
                   "sssii", model_id, head, tail, (int64_t)strlen(head),
                   (int64_t)strlen(head) + DIGITS + 1);
    return r < 0 ? -1 : ks_int(rows, 0);
}

/* 1: complete, 0: not yet, -1. */
static int is_complete(struct ks_ctx *c, const char *model_id, struct ct_err *err)
{
    int r = 0;
    ks_autorows rows = ks_query(
        c->db, err, "SELECT path FROM staged WHERE model_id = $1 AND stage = ''", "s", model_id);
    if (!rows) {
        return -1;
    }
    while ((r = ks_next(rows, err)) == 1) {
        const char *path = ks_text(rows, 0);
        const char *at = numbering(path);
        if (!at) {
            continue;
        }
        int64_t have = count_set(c, model_id, path, at, err);
        if (have < strtoll(at + 1 + DIGITS + 4, NULL, 10)) {
            return have < 0 ? -1 : 0;
        }
    }
    return r < 0 ? -1 : 1;
}

static int find_due(struct ks_ctx *c, int64_t before, char (*ids)[KS_ID + 1], struct ct_err *err)
{
    int n = 0;
    int r = 0;
    ks_autorows rows = ks_query(c->db, err,
                                "SELECT model_id FROM stages WHERE stage = '' AND touched <= $1"
                                " ORDER BY touched LIMIT 64",
                                "i", before);
    if (!rows) {
        return -1;
    }
    while ((r = ks_next(rows, err)) == 1 && n < BATCH) {
        (void)snprintf(ids[n++], KS_ID + 1, "%s", ks_text(rows, 0));
    }
    return r < 0 ? -1 : n;
}

static int find_complete(struct ks_ctx *c, int64_t before, char (*ids)[KS_ID + 1],
                         struct ct_err *err)
{
    int kept = 0;
    int n = find_due(c, before, ids, err);
    for (int i = 0; i < n; i++) {
        int complete = is_complete(c, ids[i], err);
        if (complete < 0) {
            return -1;
        }
        if (complete) {
            memmove(ids[kept++], ids[i], KS_ID + 1);
        }
    }
    return n < 0 ? -1 : kept;
}

int ks_publish_settled(struct ks_ctx *c, int64_t settle, struct ct_err *err)
{
    static const struct ks_publication plain = {.stage = ""};
    char ids[BATCH][KS_ID + 1];
    if (ks_begin(c->db, KS_READ, err)) {
        return -1;
    }
    int n = find_complete(c, ks_now() - settle, ids, err);
    ks_rollback(c->db);
    for (int i = 0; i < n; i++) {
        enum ks_published result;
        if (ks_publish(c, ids[i], &plain, &result, err)) {
            return -1;
        }
        if (result == KS_PUBLISHED) {
            ct_log(CT_LOG_INFO, "model %s: an upload became current", ids[i]);
        }
    }
    return n < 0 ? -1 : 0;
}
