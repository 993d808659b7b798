#include <stdio.h>
#include <string.h>

#include "format/base/log.h"
#include "keyserver/data/data.h"

/* Some rows in a transaction, and again until there are no more, so that nobody waits for it. */
enum { CHUNK = 500, LEASES = 50, DAY = 86400 };

struct pruning {
    struct ks_ctx *c;
    int64_t before;
    char after[KS_ID + 1]; /* leases are gone through by their id */
    struct ks_pruned *done;
};

/* ---- the chain of a lease's records ---- */

struct chain {
    int64_t count, number; /* how many there are; the last one followed */
    char wanted[KX_HEX + 1], head[KX_HEX + 1];
};

static int chain_begin(struct ks_ctx *c, const char *lease, struct chain *out, struct ct_err *err)
{
    ks_autorows rows = NULL;
    int r = ks_one(c->db, &rows, err,
                   "SELECT audit_count, audit_head, audit_pruned, audit_pruned_head FROM leases"
                   " WHERE id = $1",
                   "s", lease);
    if (r != 1) {
        return r < 0 ? -1 : ct_err_set(err, CT_NOTFOUND, "there is no such lease");
    }
    out->count = ks_int(rows, 0);
    ks_copy(out->wanted, sizeof(out->wanted), ks_text(rows, 1));
    out->number = ks_int(rows, 2);
    ks_copy(out->head, sizeof(out->head), ks_text(rows, 3));
    return out->number ? 0 : kx_audit_start(lease, out->head, err);
}

int ks_chain_check(struct ks_ctx *c, const char *lease, int64_t upto, char at[static KX_HEX + 1],
                   struct ct_err *err)
{
    struct chain chain;
    int r = 0;
    if (chain_begin(c, lease, &chain, err)) {
        return -1;
    }
    ks_autorows rows = ks_query(c->db, err,
                                "SELECT sequence, record FROM audit_records WHERE lease_id = $1"
                                " ORDER BY sequence",
                                "s", lease);
    while (rows && (r = ks_next(rows, err)) == 1) {
        if (ks_int(rows, 0) != ++chain.number) {
            return ct_err_set(err, CT_REJECTED, "lease %s: record %lld is missing", lease,
                              (long long)chain.number);
        }
        if (kx_audit_next(chain.head, chain.number, ks_text(rows, 1), err)) {
            return -1;
        }
        if (chain.number == upto) {
            ks_copy(at, KX_HEX + 1, chain.head);
        }
    }
    if (!rows || r < 0) {
        return -1;
    }
    return chain.number == chain.count && strcmp(chain.head, chain.wanted) == 0
               ? 0
               : ct_err_set(err, CT_REJECTED, "lease %s: its records do not give its head", lease);
}

/* ---- one chunk each: how much was done, -1 ---- */

static int64_t prune_events(struct pruning *p, struct ct_err *err)
{
    int64_t n = ks_exec(p->c->db, err,
                        "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < $1 ORDER BY"
                        " at LIMIT $2)",
                        "ii", p->before * 1000, (int64_t)CHUNK);
    p->done->events += n < 0 ? 0 : n;
    return n;
}

/* Records 1 to `last` of a lease go; what follows them goes on from the checkpoint that stays. */
static int cut_chain(struct pruning *p, const char *lease, int64_t last, struct ct_err *err)
{
    char head[KX_HEX + 1] = "";
    /* The lease's row first, so that no records come meanwhile. */
    if (ks_exec(p->c->db, err, "UPDATE leases SET audit_pruned = audit_pruned WHERE id = $1", "s",
                lease) < 0) {
        return -1;
    }
    if (ks_chain_check(p->c, lease, last, head, err)) {
        if (err->code == CT_REJECTED) { /* evidence of something: it stays */
            ct_log(CT_LOG_ERROR, "%s; they are kept", err->msg);
            return 0;
        }
        return -1;
    }
    int64_t n =
        ks_exec(p->c->db, err, "DELETE FROM audit_records WHERE lease_id = $1 AND sequence <= $2",
                "si", lease, last);
    if (n < 0 ||
        ks_exec(p->c->db, err,
                "UPDATE leases SET audit_pruned = $2, audit_pruned_head = $3 WHERE id = $1", "sis",
                lease, last, head) < 0) {
        return -1;
    }
    p->done->records += n;
    return 0;
}

struct old {
    char lease[KS_ID + 1];
    int64_t last;
};

static int64_t prune_records(struct pruning *p, struct ct_err *err)
{
    struct old old[LEASES];
    int n = 0;
    int r = 0;
    ks_autorows rows = ks_query(p->c->db, err,
                                "SELECT lease_id, MAX(sequence) FROM audit_records WHERE at < $1"
                                " AND lease_id > $2 GROUP BY lease_id ORDER BY lease_id LIMIT $3",
                                "isi", p->before, p->after, (int64_t)LEASES);
    while (rows && n < LEASES && (r = ks_next(rows, err)) == 1) {
        ks_copy(old[n].lease, sizeof(old[n].lease), ks_text(rows, 0));
        old[n++].last = ks_int(rows, 1);
    }
    if (!rows || r < 0) {
        return -1;
    }
    for (int i = 0; i < n; i++) {
        if (cut_chain(p, old[i].lease, old[i].last, err)) {
            return -1;
        }
        ks_copy(p->after, sizeof(p->after), old[i].lease);
    }
    return n;
}

/* What is left of a lease that had records is how many, and the digest after them. */
static int note_lease(struct pruning *p, struct ks_rows *row, struct ct_err *err)
{
    char detail[160];
    char model[2 * KS_NAME_LEN + 2];
    (void)snprintf(detail, sizeof(detail), "%lld records, head %s", (long long)ks_int(row, 1),
                   ks_text(row, 2));
    (void)snprintf(model, sizeof(model), "%s/%s", ks_text(row, 3), ks_text(row, 4));
    const struct ks_event e = {.event = "lease-pruned",
                               .code = "ok",
                               .user = ks_text(row, 5),
                               .model = model,
                               .lease = ks_text(row, 0),
                               .detail = detail};
    return ks_audit(p->c, &e, err);
}

#define OVER                                                                                       \
    "SELECT l.id FROM leases l WHERE l.expires < $1 AND l.expires + l.grace < $1 AND NOT EXISTS"   \
    " (SELECT 1 FROM audit_records a WHERE a.lease_id = l.id) ORDER BY l.expires, l.id LIMIT $2"

/* Records are taken for a day after a lease's end. */
static int64_t prune_leases(struct pruning *p, struct ct_err *err)
{
    int r = 0;
    const int64_t before = p->before - DAY;
    ks_autorows rows = ks_query(
        p->c->db, err,
        "SELECT l.id, l.audit_count, l.audit_head, o.name, m.name, u.name FROM leases l"
        " JOIN models m ON m.id = l.model_id JOIN users o ON o.id = m.owner_id JOIN users u"
        " ON u.id = l.user_id WHERE l.audit_count > 0 AND l.id IN (SELECT id FROM (" OVER ") x)",
        "ii", before, (int64_t)CHUNK);
    while (rows && (r = ks_next(rows, err)) == 1) {
        if (note_lease(p, rows, err)) {
            return -1;
        }
    }
    if (!rows || r < 0) {
        return -1;
    }
    int64_t n =
        ks_exec(p->c->db, err, "DELETE FROM leases WHERE id IN (SELECT id FROM (" OVER ") x)", "ii",
                before, (int64_t)CHUNK);
    p->done->leases += n < 0 ? 0 : n;
    return n;
}

/* Uploads that nobody ever published. */
static int64_t prune_stages(struct pruning *p, struct ct_err *err)
{
    char model[KS_ID + 1];
    char stage[KS_NAME_LEN + 1];
    ks_autorows rows = NULL;
    int r = ks_one(p->c->db, &rows, err,
                   "SELECT model_id, stage FROM stages WHERE touched < $1 LIMIT 1", "i", p->before);
    if (r != 1) {
        return r;
    }
    ks_copy(model, sizeof(model), ks_text(rows, 0));
    ks_copy(stage, sizeof(stage), ks_text(rows, 1));
    p->done->stages++;
    return ks_exec(p->c->db, err, "DELETE FROM staged WHERE model_id = $1 AND stage = $2", "ss",
                   model, stage) < 0 ||
                   ks_exec(p->c->db, err, "DELETE FROM stages WHERE model_id = $1 AND stage = $2",
                           "ss", model, stage) < 0
               ? -1
               : 1;
}

/* ---- all of it ---- */

static int until_done(struct pruning *p, int64_t (*some)(struct pruning *p, struct ct_err *err),
                      struct ct_err *err)
{
    for (int64_t n = 1; n > 0;) {
        if (ks_begin(p->c->db, KS_WRITE, err)) {
            return -1;
        }
        n = ks_alone(p->c->db, err) ? -1 : some(p, err);
        if (n < 0) {
            ks_rollback(p->c->db);
            return -1;
        }
        if (ks_commit(p->c->db, err)) {
            return -1;
        }
    }
    return 0;
}

int ks_prune(struct ks_ctx *c, int64_t before, struct ks_pruned *done, struct ct_err *err)
{
    struct pruning p = {.c = c, .before = before, .done = done};
    *done = (struct ks_pruned){0};
    return until_done(&p, prune_events, err) || until_done(&p, prune_records, err) ||
                   until_done(&p, prune_leases, err) || until_done(&p, prune_stages, err)
               ? -1
               : 0;
}
