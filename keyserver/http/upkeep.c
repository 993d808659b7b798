#include "keyserver/http/upkeep.h"

#include "format/base/log.h"

enum { CLEAN_EVERY = 30, SWEEPS = 20, PRUNE_EVERY = 60, DAY = 86400 };

int64_t ks_upkeep_changes(struct ks_db *db)
{
    struct ct_err err = CT_ERR_INIT;
    ks_autorows rows = NULL;
    if (ks_begin(db, KS_READ, &err)) {
        return -1;
    }
    int r = ks_one(db, &rows, &err, "SELECT counter FROM changes WHERE one = 1", "");
    int64_t counter = r == 1 ? ks_int(rows, 0) : -1;
    ks_rows_free(rows);
    rows = NULL;
    ks_rollback(db);
    return counter;
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
