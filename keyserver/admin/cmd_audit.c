#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyserver/admin/admin.h"

enum { DAY = 86400, KEEP_DAYS = 365, KEEP_MAX = 36500 };

/* What runtimes reported of one lease, as far as it is kept. */
int ks_cmd_audit_records(struct ks_admin *a, struct ct_err *err)
{
    struct ks_rows *rows = ks_query(
        a->ctx.db, err,
        "SELECT sequence, at, record FROM audit_records WHERE lease_id = $1 ORDER BY sequence", "s",
        a->words[0]);
    return ks_admin_list(a, rows, "sequence:n at:t record", err);
}

/* Every lease that ever had records; what is wrong goes to stderr. */
int ks_cmd_audit_verify(struct ks_admin *a, struct ct_err *err)
{
    int r = 0;
    json_int_t leases = 0;
    json_int_t wrong = 0;
    ks_rollback(a->ctx.db); /* it only reads, and all of one moment */
    if (ks_begin(a->ctx.db, KS_READ, err)) {
        return -1;
    }
    ks_autorows rows = ks_query(a->ctx.db, err,
                                "SELECT id FROM leases WHERE audit_count > 0 ORDER BY created", "");
    while (rows && (r = ks_next(rows, err)) == 1) {
        char head[KX_HEX + 1];
        struct ct_err why = CT_ERR_INIT;
        leases++;
        if (ks_chain_check(&a->ctx, ks_text(rows, 0), 0, head, &why)) {
            wrong++;
            (void)fprintf(stderr, "%s\n", why.msg);
        }
    }
    if (!rows || r < 0 ||
        ks_admin_print(a, json_pack("{s:I,s:I}", "leases", leases, "wrong", wrong), err)) {
        return -1;
    }
    return wrong ? ct_err_set(err, CT_REJECTED, "records were changed or removed") : 0;
}

int ks_admin_keep(const struct ks_admin *a, int64_t *days, struct ct_err *err)
{
    return ks_option_number(a, "keep", KEEP_DAYS, KEEP_MAX, days, err);
}

int ks_cmd_prune(struct ks_admin *a, struct ct_err *err)
{
    int64_t days = 0;
    struct ks_pruned done;
    if (ks_admin_keep(a, &days, err)) {
        return -1;
    }
    if (days == 0) {
        return ct_err_set(err, CT_USAGE, "--keep is days, from 1");
    }
    if (ks_admin_open(a, true, err) || ks_prune(&a->ctx, ks_now() - days * DAY, &done, err)) {
        return -1;
    }
    return ks_admin_print(a,
                          json_pack("{s:I,s:I,s:I,s:I}", "events", (json_int_t)done.events,
                                    "records", (json_int_t)done.records, "leases",
                                    (json_int_t)done.leases, "stages", (json_int_t)done.stages),
                          err);
}
