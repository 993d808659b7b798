#include "keyserver/api/api.h"

int ks_get_health(struct ks_request *r, struct ct_err *err)
{
    ks_autorows rows = NULL;
    if (ks_one(r->ctx.db, &rows, err, "SELECT counter FROM changes WHERE one = 1", "") != 1) {
        return -1;
    }
    r->data = json_string("{\"status\":\"ok\"}\n");
    return 0;
}

int ks_get_metrics(struct ks_request *r, struct ct_err *err)
{
    ct_autobuf out = {0};
    ks_autorows rows = NULL;
    if (ks_one(r->ctx.db, &rows, err,
               "SELECT COUNT(*) FROM leases WHERE ended = 0 AND revoked = 0 AND expires > $1", "i",
               ks_now()) != 1) {
        return -1;
    }
    ct_buf_printf(&out,
                  "# TYPE kvfs_keyserver_leases gauge\n"
                  "# HELP kvfs_keyserver_leases Leases that run.\n"
                  "kvfs_keyserver_leases %lld\n",
                  (long long)ks_int(rows, 0));
    ks_metrics_put(r->server->metrics, &out);
    ct_buf_puts(&out, "# EOF\n");
    ct_buf_putc(&out, '\0');
    r->data = out.failed ? NULL : json_string((char *)out.data);
    return r->data ? 0 : ct_err_set(err, CT_NOMEM, "no memory for metrics");
}
