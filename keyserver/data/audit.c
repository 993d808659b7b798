#include <time.h>

#include "keyserver/data/data.h"

int ks_audit(struct ks_ctx *c, const struct ks_event *e, struct ct_err *err)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return ks_exec(c->db, err,
                   "INSERT INTO audit (at, event, code, user_name, model, lease_id, address,"
                   " detail) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                   "isssssss", (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000, e->event,
                   e->code, e->user, e->model, e->lease, e->address, e->detail) < 0
               ? -1
               : 0;
}
