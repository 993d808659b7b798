#include "keyserver/http/upkeep.h"

#include <string.h>

#include "format/base/log.h"

enum { CLEAN_EVERY = 30, SWEEPS = 20, PRUNE_EVERY = 60, DAY = 86400 };

static int read_changes(struct ks_db *db, int64_t since, struct ks_changes *out, struct ct_err *err)
{
    ks_autorows counter = NULL;
    if (ks_one(db, &counter, err, "SELECT counter FROM changes WHERE one = 1", "") != 1) {
        return -1;
    }
    out->counter = ks_int(counter, 0);
    if (out->counter == since) {
        return 0;
    }
    int r = 0;
    ks_autorows rows = ks_query(db, err,
                                "SELECT number, subject FROM changed WHERE number > $1 ORDER BY"
                                " number LIMIT $2",
                                "ii", since, (int64_t)KS_CHANGES_MAX);
    while (rows && out->count < KS_CHANGES_MAX && (r = ks_next(rows, err)) == 1) {
        out->list[out->count].number = ks_int(rows, 0);
        ks_copy(out->list[out->count++].subject, KS_ID + 1, ks_text(rows, 1));
    }
    out->all = (int64_t)out->count != out->counter - since;
    return !rows || r < 0 ? -1 : 0;
}

void ks_upkeep_changes(struct ks_db *db, int64_t since, struct ks_changes *out)
{
    struct ct_err err = CT_ERR_INIT;
    *out = (struct ks_changes){.since = since, .counter = since};
    int r = ks_begin(db, KS_READ, &err);
    out->all = (r ? r : read_changes(db, since, out, &err)) != 0 || out->all;
    ks_rollback(db);
}

bool ks_changes_concern(const struct ks_changes *c, const struct ks_request *r)
{
    for (size_t i = 0; i < c->count; i++) {
        const char *subject = c->list[i].subject;
        if (c->list[i].number > r->changes &&
            (*subject == '*' || strcmp(subject, r->waits_for[0]) == 0 ||
             strcmp(subject, r->waits_for[1]) == 0)) {
            return true;
        }
    }
    return c->all;
}

static int clean(struct ks_ctx *c, struct ct_err *err)
{
    const int64_t now = ks_now();
    return ks_exec(c->db, err, "DELETE FROM challenges WHERE expires < $1", "i", now) < 0 ||
                   ks_exec(c->db, err, "DELETE FROM tickets WHERE expires < $1", "i", now - 600) <
                       0 ||
                   ks_exec(c->db, err, "DELETE FROM sessions WHERE refresh_expires < $1", "i",
                           now) < 0 ||
                   ks_exec(c->db, err,
                           "DELETE FROM changed WHERE number < (SELECT counter FROM changes WHERE"
                           " one = 1) - 256",
                           "") < 0 ||
                   ks_exec(c->db, err,
                           "DELETE FROM secrets WHERE kind = 'server-key' AND expires < $1", "i",
                           now - 600) < 0
               ? -1
               : 0;
}

static int clean_up(struct ks_ctx *c, struct ct_err *err)
{
    if (ks_begin(c->db, KS_WRITE, err)) {
        return -1;
    }
    if (clean(c, err)) {
        ks_rollback(c->db);
        return -1;
    }
    if (ks_commit(c->db, err)) {
        return -1;
    }
    int n = 1;
    for (int i = 0; n > 0 && i < SWEEPS; i++) {
        n = ks_personal_sweep(c, err);
    }
    return n < 0 ? -1 : 0;
}

static int prune(struct ks_ctx *c, int64_t days, struct ct_err *err)
{
    struct ks_pruned done;
    return days ? ks_prune(c, ks_now() - days * DAY, &done, err) : 0;
}

void ks_upkeep(struct ks_ctx *c, struct ks_server *s, unsigned second)
{
    static struct ct_ratelimit limit;
    struct ct_err err = CT_ERR_INIT;
    unsigned missed = 0;
    int r = ks_server_key_refresh(c, s, &err) ||
            ks_publish_settled(c, s->opt.settle_seconds, &err) ||
            (second % CLEAN_EVERY == CLEAN_EVERY - 1 && clean_up(c, &err)) ||
            (second % PRUNE_EVERY == PRUNE_EVERY - 1 && prune(c, s->opt.keep_days, &err));
    if (r && err.code != CT_BUSY && ct_ratelimit_take(&limit, 1, &missed)) {
        ct_log(CT_LOG_ERROR, "upkeep: %s", err.msg);
    }
}
