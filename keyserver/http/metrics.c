#include <stdatomic.h>
#include <stdlib.h>

#include "keyserver/http/request.h"

enum { ROUTES = 32, BUCKETS = 9 };

static const double bounds[BUCKETS] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 60};

struct ks_metrics {
    atomic_ulong answers[ROUTES][KS_CODE_COUNT];
    atomic_ulong buckets[ROUTES][BUCKETS + 1];
    atomic_ulong ns[ROUTES];
};

struct ks_metrics *ks_metrics_new(struct ct_err *err)
{
    struct ks_metrics *m = calloc(1, sizeof(*m));
    if (!m) {
        ct_err_set(err, CT_NOMEM, "no memory for metrics");
    }
    return m;
}

void ks_metrics_free(struct ks_metrics *m)
{
    free(m);
}

void ks_metrics_count(struct ks_metrics *m, const struct ks_route *route, enum ks_code code,
                      int64_t ns)
{
    size_t at = route ? (size_t)(route - ks_routes) : ROUTES - 1;
    size_t bucket = 0;
    while (bucket < BUCKETS && (double)ns / 1e9 > bounds[bucket]) {
        bucket++;
    }
    atomic_fetch_add(&m->answers[at][code], 1);
    atomic_fetch_add(&m->buckets[at][bucket], 1);
    atomic_fetch_add(&m->ns[at], (unsigned long)ns);
}

static const char *event_of(size_t at)
{
    return at == ROUTES - 1 ? "none" : ks_routes[at].event;
}

static void put_answers(struct ks_metrics *m, size_t at, struct ct_buf *out)
{
    for (int code = 0; code < KS_CODE_COUNT; code++) {
        unsigned long n = atomic_load(&m->answers[at][code]);
        if (n) {
            ct_buf_printf(out, "kvfs_keyserver_answers_total{call=\"%s\",code=\"%s\"} %lu\n",
                          event_of(at), ks_code_name((enum ks_code)code), n);
        }
    }
}

static void put_times(struct ks_metrics *m, size_t at, struct ct_buf *out)
{
    const char *name = "kvfs_keyserver_seconds";
    unsigned long sum = 0;
    for (int i = 0; i <= BUCKETS; i++) {
        sum += atomic_load(&m->buckets[at][i]);
    }
    if (sum == 0) {
        return;
    }
    sum = 0;
    for (int i = 0; i < BUCKETS; i++) {
        sum += atomic_load(&m->buckets[at][i]);
        ct_buf_printf(out, "%s_bucket{call=\"%s\",le=\"%g\"} %lu\n", name, event_of(at), bounds[i],
                      sum);
    }
    sum += atomic_load(&m->buckets[at][BUCKETS]);
    ct_buf_printf(out, "%s_bucket{call=\"%s\",le=\"+Inf\"} %lu\n", name, event_of(at), sum);
    ct_buf_printf(out, "%s_count{call=\"%s\"} %lu\n", name, event_of(at), sum);
    ct_buf_printf(out, "%s_sum{call=\"%s\"} %.6f\n", name, event_of(at),
                  (double)atomic_load(&m->ns[at]) / 1e9);
}

void ks_metrics_put(struct ks_metrics *m, struct ct_buf *out)
{
    ct_buf_puts(out, "# TYPE kvfs_keyserver_answers counter\n"
                     "# HELP kvfs_keyserver_answers Answers by call and code.\n");
    for (size_t at = 0; at < ROUTES; at++) {
        put_answers(m, at, out);
    }
    ct_buf_puts(out, "# TYPE kvfs_keyserver_seconds histogram\n"
                     "# HELP kvfs_keyserver_seconds From a request's arrival to its answer.\n");
    for (size_t at = 0; at < ROUTES; at++) {
        put_times(m, at, out);
    }
}
