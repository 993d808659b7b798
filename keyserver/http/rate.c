#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "keyserver/http/request.h"

/*
 * Token buckets in a table of fixed size, found by hash; who shares a place with somebody busy is
 * displaced only when he has been quiet. A bucket holds BURST_SECONDS of tokens, at least
 * BURST_MIN.
 */
enum { PLACES = 4096, BURST_SECONDS = 10, BURST_MIN = 30 };

struct bucket {
    char key[KS_ADDRESS + 2];
    double tokens;
    int64_t at_ns;
};

struct ks_rates {
    pthread_mutex_t lock;
    uint64_t seed;
    struct bucket buckets[PLACES];
};

struct ks_rates *ks_rates_new(struct ct_err *err)
{
    struct ks_rates *r = calloc(1, sizeof(*r));
    if (!r) {
        ct_err_set(err, CT_NOMEM, "no memory for rates");
        return NULL;
    }
    pthread_mutex_init(&r->lock, NULL);
    r->seed = (uint64_t)ks_monotonic_ns() | 1;
    return r;
}

void ks_rates_free(struct ks_rates *r)
{
    free(r);
}

static size_t place(const struct ks_rates *r, const char *key)
{
    uint64_t h = r->seed;
    for (; *key; key++) {
        h = (h ^ (uint8_t)*key) * UINT64_C(0x9e3779b97f4a7c15);
        h ^= h >> 29;
    }
    return h % PLACES;
}

bool ks_rate_take(struct ks_rates *r, char kind, const char *address, double per_second)
{
    char key[KS_ADDRESS + 2] = {kind};
    const int64_t now = ks_monotonic_ns();
    double most = per_second * BURST_SECONDS;
    if (per_second <= 0) {
        return true;
    }
    most = most < BURST_MIN ? BURST_MIN : most;
    memcpy(key + 1, address, strnlen(address, KS_ADDRESS));
    pthread_mutex_lock(&r->lock);
    struct bucket *b = &r->buckets[place(r, key)];
    if (strcmp(b->key, key) != 0) {
        memcpy(b->key, key, sizeof(key));
        b->tokens = most;
    } else {
        b->tokens += (double)(now - b->at_ns) / 1e9 * per_second;
        b->tokens = b->tokens > most ? most : b->tokens;
    }
    b->at_ns = now;
    bool good = b->tokens >= 1;
    b->tokens -= good;
    pthread_mutex_unlock(&r->lock);
    return good;
}
