#include "keyserver/http/lanes.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "format/base/log.h"
#include "keyserver/http/upkeep.h"

enum { WORKERS_MAX = 64, TICK_MS = 100 };

static const size_t queue_max[2] = {4096, 1024};

struct queue {
    struct ks_request *first, **last;
};

struct ks_lanes {
    struct ks_server *server;
    void (*done)(struct ks_request *r);

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t work[2], idle;
    struct queue queues[2]; /* exchanges; what may take long */
    struct queue waiting;
    size_t queued[2], under_way;
    bool ending;

    pthread_t threads[WORKERS_MAX + 2];
    unsigned thread_count;
};

struct worker {
    struct ks_lanes *lanes;
    int lane;
    struct ks_db *db;
};

static void put(struct queue *q, struct ks_request *r)
{
    r->next = NULL;
    *q->last = r;
    q->last = &r->next;
}

static struct ks_request *take(struct queue *q)
{
    struct ks_request *r = q->first;
    if (r) {
        q->first = r->next;
        if (!q->first) {
            q->last = &q->first;
        }
    }
    return r;
}

/* With the lock held; false when too many wait. */
static bool enqueue(struct ks_lanes *l, int lane, struct ks_request *r)
{
    if (l->queued[lane] >= queue_max[lane] || l->ending) {
        return false;
    }
    put(&l->queues[lane], r);
    l->queued[lane]++;
    pthread_cond_signal(&l->work[lane]);
    return true;
}

bool ks_lanes_submit(struct ks_lanes *l, struct ks_request *r)
{
    int lane = r->route->flags & KS_ROUTE_BULK ? 1 : 0;
    pthread_mutex_lock(&l->lock);
    bool room = enqueue(l, lane, r);
    pthread_mutex_unlock(&l->lock);
    return room;
}

static void finish(struct ks_lanes *l, struct ks_request *r)
{
    pthread_mutex_lock(&l->lock);
    bool waits = r->wait_until_ns && !atomic_load(&l->server->stopping);
    if (r->prepare) {
        waits = enqueue(l, 1, r);
    } else if (waits) {
        put(&l->waiting, r);
    }
    if (r->prepare && !waits) {
        r->prepare = NULL;
        (void)ks_refuse(r, KS_BUSY, NULL);
    }
    l->under_way--;
    pthread_cond_broadcast(&l->idle);
    pthread_mutex_unlock(&l->lock);
    if (!waits) {
        l->done(r);
    }
}

static void *work(void *arg)
{
    struct worker *w = arg;
    struct ks_lanes *l = w->lanes;
    pthread_mutex_lock(&l->lock);
    while (!l->ending) {
        struct ks_request *r = take(&l->queues[w->lane]);
        if (!r) {
            pthread_cond_wait(&l->work[w->lane], &l->lock);
            continue;
        }
        l->queued[w->lane]--;
        l->under_way++;
        pthread_mutex_unlock(&l->lock);
        ks_dispatch(r, w->db);
        finish(l, r);
        pthread_mutex_lock(&l->lock);
    }
    pthread_mutex_unlock(&l->lock);
    ks_db_close(w->db);
    free(w);
    return NULL;
}

/* Those that something changed for, or whose time is over. */
static void wake(struct ks_lanes *l, const struct ks_changes *changes)
{
    struct queue all = {0};
    const int64_t now = ks_monotonic_ns();
    const bool stopping = atomic_load(&l->server->stopping);
    struct ks_request *r = NULL;
    pthread_mutex_lock(&l->lock);
    all = l->waiting;
    l->waiting = (struct queue){.last = &l->waiting.first};
    if (!all.first) {
        all.last = &all.first;
    }
    while ((r = take(&all))) {
        bool due = stopping || r->wait_until_ns <= now || ks_changes_concern(changes, r);
        /* One that came after the changes were asked for, and had seen less, has its turn later. */
        if (r->changes >= changes->since && r->changes < changes->counter) {
            r->changes = changes->counter;
        }
        put(due ? &l->queues[0] : &l->waiting, r);
        if (due) {
            l->queued[0]++;
            pthread_cond_signal(&l->work[0]);
        }
    }
    pthread_mutex_unlock(&l->lock);
}

/* The oldest counter that one of those who wait saw; -1 when nobody waits. */
static int64_t oldest_seen(struct ks_lanes *l)
{
    int64_t oldest = -1;
    pthread_mutex_lock(&l->lock);
    for (const struct ks_request *r = l->waiting.first; r; r = r->next) {
        oldest = oldest < 0 || r->changes < oldest ? r->changes : oldest;
    }
    pthread_mutex_unlock(&l->lock);
    return oldest;
}

static void *tick(void *arg)
{
    struct worker *w = arg;
    struct ks_lanes *l = w->lanes;
    struct ks_changes changes;
    const struct timespec pause = {0, TICK_MS * 1000000L};
    pthread_mutex_lock(&l->lock);
    while (!l->ending) {
        pthread_mutex_unlock(&l->lock);
        nanosleep(&pause, NULL);
        const int64_t since = oldest_seen(l);
        if (since >= 0) {
            ks_upkeep_changes(w->db, since, &changes);
            wake(l, &changes);
        }
        pthread_mutex_lock(&l->lock);
    }
    pthread_mutex_unlock(&l->lock);
    ks_db_close(w->db);
    free(w);
    return NULL;
}

static void *keep_up(void *arg)
{
    struct worker *w = arg;
    struct ks_lanes *l = w->lanes;
    const struct timespec pause = {0, TICK_MS * 1000000L};
    struct ks_ctx ctx = {w->db, l->server->seal};
    pthread_mutex_lock(&l->lock);
    for (unsigned i = 0; !l->ending; i++) {
        pthread_mutex_unlock(&l->lock);
        if (i % (1000 / TICK_MS) == 0) {
            ks_upkeep(&ctx, l->server, i / (1000 / TICK_MS));
        }
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&l->lock);
    }
    pthread_mutex_unlock(&l->lock);
    ks_db_close(w->db);
    free(w);
    return NULL;
}

static int start_one(struct ks_lanes *l, void *(*run)(void *), int lane, struct ct_err *err)
{
    struct worker *w = calloc(1, sizeof(*w));
    if (!w) {
        return ct_err_set(err, CT_NOMEM, "no memory for a worker");
    }
    *w = (struct worker){.lanes = l, .lane = lane};
    int rc = 0;
    if (ks_db_open(l->server->database, &w->db, err) ||
        (rc = pthread_create(&l->threads[l->thread_count], NULL, run, w)) != 0) {
        ks_db_close(w->db);
        free(w);
        return rc ? ct_err_sys(err, rc, "a worker") : -1;
    }
    l->thread_count++;
    return 0;
}

static int start_all(struct ks_lanes *l, struct ct_err *err)
{
    const struct ks_options *opt = &l->server->opt;
    for (unsigned i = 0; i < opt->workers + opt->bulk_workers && i < WORKERS_MAX; i++) {
        if (start_one(l, work, i >= opt->workers, err)) {
            return -1;
        }
    }
    return start_one(l, tick, 0, err) || start_one(l, keep_up, 0, err) ? -1 : 0;
}

int ks_lanes_start(struct ks_server *s, void (*done)(struct ks_request *r), struct ks_lanes **out,
                   struct ct_err *err)
{
    struct ks_lanes *l = calloc(1, sizeof(*l));
    *out = NULL;
    if (!l) {
        return ct_err_set(err, CT_NOMEM, "no memory for workers");
    }
    *l = (struct ks_lanes){.server = s, .done = done};
    l->queues[0].last = &l->queues[0].first;
    l->queues[1].last = &l->queues[1].first;
    l->waiting.last = &l->waiting.first;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->work[0], NULL);
    pthread_cond_init(&l->work[1], NULL);
    pthread_cond_init(&l->idle, NULL);
    if (start_all(l, err)) {
        ks_lanes_stop(l, 0);
        ks_lanes_free(l);
        return -1;
    }
    *out = l;
    return 0;
}

/* With the lock held: until nothing is under way, or the time is over. */
static void wait_idle(struct ks_lanes *l, unsigned seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += seconds;
    while ((l->under_way || l->queued[0] || l->queued[1] || l->waiting.first) &&
           pthread_cond_timedwait(&l->idle, &l->lock, &until) != ETIMEDOUT) {
    }
}

void ks_lanes_stop(struct ks_lanes *l, unsigned seconds)
{
    struct ks_request *r = NULL;
    pthread_mutex_lock(&l->lock);
    wait_idle(l, seconds);
    l->ending = true;
    pthread_cond_broadcast(&l->work[0]);
    pthread_cond_broadcast(&l->work[1]);
    pthread_mutex_unlock(&l->lock);
    for (unsigned i = 0; i < l->thread_count; i++) {
        (void)pthread_join(l->threads[i], NULL);
    }
    while ((r = take(&l->queues[0])) || (r = take(&l->queues[1])) || (r = take(&l->waiting))) {
        ks_request_reset(r);
        (void)ks_refuse(r, KS_BUSY, NULL);
        l->done(r);
    }
}

void ks_lanes_free(struct ks_lanes *l)
{
    if (l) {
        pthread_mutex_destroy(&l->lock);
        free(l);
    }
}
