#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "format/write/write.h"

enum { THREADS_MAX = 256 };

struct ct_workers {
    const struct ct_job *job;
    const struct ct_write_options *opt;
    atomic_bool stop;
    pthread_mutex_t next_lock; /* job->next */
    pthread_mutex_t done_lock; /* progress, and what follows */
    struct ct_err err;         /* the first one */
};

unsigned ct_workers_count(const struct ct_write_options *opt)
{
    cpu_set_t set;
    long n = opt->threads;
    if (n == 0 && sched_getaffinity(0, sizeof(set), &set) == 0) {
        n = CPU_COUNT(&set);
    } else if (n == 0) { /* more than a cpu_set_t holds */
        n = sysconf(_SC_NPROCESSORS_ONLN);
    }
    return n < 1 ? 1 : n > THREADS_MAX ? THREADS_MAX : (unsigned)n;
}

static void fail(struct ct_workers *all, const struct ct_err *err)
{
    pthread_mutex_lock(&all->done_lock);
    if (all->err.code == CT_OK) {
        all->err = *err;
    }
    pthread_mutex_unlock(&all->done_lock);
    atomic_store(&all->stop, true);
}

int ct_worker_done(struct ct_worker *w, uint64_t bytes, struct ct_err *err)
{
    struct ct_workers *all = w->all;
    int cancelled = 0;
    if (all->opt->progress) {
        pthread_mutex_lock(&all->done_lock);
        cancelled = !atomic_load(&all->stop) && all->opt->progress(all->opt->progress_ctx, bytes);
        if (cancelled) { /* before another thread gets the lock */
            atomic_store(&all->stop, true);
        }
        pthread_mutex_unlock(&all->done_lock);
    }
    if (cancelled || atomic_load(&all->stop)) {
        return ct_err_sys(err, ECANCELED, "not finished");
    }
    return 0;
}

static bool next(struct ct_workers *all, struct ct_span_of *span)
{
    pthread_mutex_lock(&all->next_lock);
    bool more = !atomic_load(&all->stop) && all->job->next(all->job->ctx, span);
    pthread_mutex_unlock(&all->next_lock);
    return more;
}

static void *work(void *arg)
{
    struct ct_workers *all = arg;
    struct ct_worker w = {.all = all, .buf = malloc(CT_SPAN)};
    struct ct_err err = CT_ERR_INIT;
    struct ct_span_of span;
    if (!w.buf) {
        ct_err_set(&err, CT_NOMEM, "no memory for %d bytes", CT_SPAN);
        fail(all, &err);
        return NULL;
    }
    while (next(all, &span)) {
        if (all->job->run(all->job->ctx, &w, &span, &err)) {
            fail(all, &err);
            break;
        }
    }
    ct_aead_free(w.aead);
    ct_wipe(w.buf, CT_SPAN);
    free(w.buf);
    return NULL;
}

int ct_workers_run(const struct ct_job *job, const struct ct_write_options *opt, struct ct_err *err)
{
    pthread_t threads[THREADS_MAX];
    struct ct_workers all = {.job = job, .opt = opt, .err = CT_ERR_INIT};
    uint64_t spans = job->len / CT_SPAN + 1;
    unsigned want = ct_workers_count(opt);
    unsigned started = 0;
    want = want > spans ? (unsigned)spans : want;
    pthread_mutex_init(&all.next_lock, NULL);
    pthread_mutex_init(&all.done_lock, NULL);
    /* Fewer threads than wanted are slower, not wrong. */
    while (started + 1 < want && pthread_create(&threads[started], NULL, work, &all) == 0) {
        started++;
    }
    work(&all);
    while (started) {
        pthread_join(threads[--started], NULL);
    }
    pthread_mutex_destroy(&all.next_lock);
    pthread_mutex_destroy(&all.done_lock);
    if (all.err.code != CT_OK) {
        if (err) {
            *err = all.err;
        }
        return -1;
    }
    return 0;
}
