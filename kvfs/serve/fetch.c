#include "kvfs/serve/fetch.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "kvfs/serve/pool.h"

enum { FETCHERS = 16, WINDOW = 32 }; /* threads, most of which wait; extents: 64 MiB */

struct kvfs_fetch {
    struct kvfs_pool *pool;
    uint32_t window;
    atomic_bool stopping;
};

struct task {
    struct kvfs_fetch *f;
    struct kvfs_content *content; /* a reference */
    uint32_t extent;
};

struct kvfs_fetch *kvfs_fetch_start(uint64_t memory, struct ct_err *err)
{
    struct kvfs_fetch *f = calloc(1, sizeof(*f));
    if (!f) {
        ct_err_set(err, CT_NOMEM, "no memory to read ahead");
        return NULL;
    }
    uint64_t most = memory / 2 / CT_EXTENT_MAX;
    f->window = most < WINDOW ? (uint32_t)most : WINDOW;
    f->pool = kvfs_pool_start(0, FETCHERS, NULL, NULL, err);
    if (!f->pool) {
        free(f);
        return NULL;
    }
    return f;
}

uint32_t kvfs_fetch_window(const struct kvfs_fetch *f)
{
    return f->window;
}

static void fetch(void *arg)
{
    struct task *t = arg;
    if (!atomic_load(&t->f->stopping)) {
        kvfs_content_fetch(t->content, t->extent);
    }
    kvfs_content_unref(t->content);
    free(t);
}

void kvfs_fetch_ask(struct kvfs_fetch *f, struct kvfs_content *content, uint32_t first,
                    uint32_t count)
{
    uint32_t all = kvfs_content_extents(content);
    for (uint32_t i = first; i < all && i - first < count; i++) {
        if (kvfs_content_is_near(content, i)) {
            continue; /* else waking a thread for each costs a tenth of decrypting it */
        }
        struct task *t = malloc(sizeof(*t));
        if (!t) {
            return;
        }
        *t = (struct task){f, kvfs_content_ref(content), i};
        if (!kvfs_pool_try(f->pool, fetch, t)) {
            kvfs_content_unref(t->content);
            free(t);
            return;
        }
    }
}

void kvfs_fetch_stop(struct kvfs_fetch *f)
{
    atomic_store(&f->stopping, true);
    kvfs_pool_stop(f->pool);
    free(f);
}
