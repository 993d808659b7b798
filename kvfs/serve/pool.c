#include "kvfs/serve/pool.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

enum { QUEUE = 256 };

struct task {
    void (*fn)(void *);
    void *arg;
};

struct starter {
    struct kvfs_pool *pool;
    unsigned number;
};

struct kvfs_pool {
    void (*work)(void *arg, unsigned number);
    void *arg;
    unsigned threads, started;
    pthread_t *ids; /* of the workers, then of the runners */
    struct starter *starters;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct task queue[QUEUE];
    unsigned first, count;
    bool stopping;
};

static void *worker(void *arg)
{
    struct starter *s = arg;
    s->pool->work(s->pool->arg, s->number);
    return NULL;
}

static void *runner(void *arg)
{
    struct kvfs_pool *p = ((struct starter *)arg)->pool;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->count && !p->stopping) {
            pthread_cond_wait(&p->changed, &p->lock);
        }
        if (!p->count) {
            break;
        }
        struct task t = p->queue[p->first];
        p->first = (p->first + 1) % QUEUE;
        p->count--;
        pthread_mutex_unlock(&p->lock);
        t.fn(t.arg);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

struct kvfs_pool *kvfs_pool_start(unsigned threads, unsigned runners,
                                  void (*work)(void *arg, unsigned number), void *arg,
                                  struct ct_err *err)
{
    struct kvfs_pool *p = calloc(1, sizeof(*p));
    unsigned all = threads + runners;
    if (p) {
        p->ids = calloc(all, sizeof(*p->ids));
        p->starters = calloc(all, sizeof(*p->starters));
    }
    if (!p || !p->ids || !p->starters) {
        ct_err_set(err, CT_NOMEM, "no memory for %u threads", all);
        if (p) {
            free(p->ids);
            free(p->starters);
        }
        free(p);
        return NULL;
    }
    p->work = work;
    p->arg = arg;
    p->threads = threads;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    for (unsigned i = 0; i < all; i++) {
        p->starters[i] = (struct starter){p, i};
        int e = pthread_create(&p->ids[i], NULL, i < threads ? worker : runner, &p->starters[i]);
        if (e) {
            /* The caller gives up the process: threads that run already are not worth joining. */
            ct_err_sys(err, e, "thread %u of %u", i + 1, all);
            return NULL;
        }
        p->started++;
    }
    return p;
}

bool kvfs_pool_try(struct kvfs_pool *p, void (*fn)(void *), void *arg)
{
    bool queued = false;
    pthread_mutex_lock(&p->lock);
    if (p->count < QUEUE && !p->stopping) {
        p->queue[(p->first + p->count++) % QUEUE] = (struct task){fn, arg};
        pthread_cond_signal(&p->changed);
        queued = true;
    }
    pthread_mutex_unlock(&p->lock);
    return queued;
}

void kvfs_pool_run(struct kvfs_pool *p, void (*fn)(void *), void *arg)
{
    if (!kvfs_pool_try(p, fn, arg)) {
        fn(arg);
    }
}

void kvfs_pool_stop(struct kvfs_pool *p)
{
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->started; i++) {
        pthread_join(p->ids[i], NULL);
    }
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    free(p->ids);
    free(p->starters);
    free(p);
}
