#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "format/base/clock.h"
#include "keyclient/wait.h"
#include "kvfs/mount/carry.h"
#include "kvfs/serve/audit.h"
#include "kvfs/serve/guarded.h"
#include "kvfs/serve/leases.h"

enum {
    CALL_SECONDS = 30,
    KEYS_SECONDS = 120, /* a synchronisation may carry all headers */
    END_SECONDS = 2,
    POLL_SECONDS = 50, /* below what proxies allow an idle connection */
    PAUSE_MS = 500,    /* the first; then twice as long each time */
    PAUSE_MAX_MS = 30000,
    ANEW_MAX = 3, /* from the start without a pause */
    TICK_MS = 500
};

int64_t kvfs_lease_now(void)
{
    return ct_boot_ms();
}

/* ---- waiting ---- */

/* A sealed mount has no keys to ask with. */
static bool is_wanted(const struct kvfs_lease *l)
{
    return !l->stop && !atomic_load(&l->s->sealed);
}

/* With the lock held. */
static void wait_ms(struct kvfs_lease *l, int64_t ms)
{
    struct timespec ts = ct_after_ms(ms);
    (void)pthread_cond_timedwait(&l->changed, &l->lock, &ts);
}

/* Until `until`, in steps: no condition variable knows CLOCK_BOOTTIME. Whether to go on. With the
 * lock held. */
static bool pause_until(struct kvfs_lease *l, int64_t until)
{
    for (int64_t left; is_wanted(l) && (left = until - kvfs_lease_now()) > 0;) {
        wait_ms(l, left < TICK_MS ? left : TICK_MS);
    }
    return is_wanted(l);
}

static bool pause_until_locking(struct kvfs_lease *l, int64_t until)
{
    pthread_mutex_lock(&l->lock);
    bool go_on = pause_until(l, until);
    pthread_mutex_unlock(&l->lock);
    return go_on;
}

/* Twice as long as the last one, with half of it left to chance: runtimes that lost the same server
 * shall not come back as one. */
static int64_t next_pause(int64_t *pause)
{
    uint16_t dice = 0;
    int64_t now = *pause;
    *pause = now * 2 < PAUSE_MAX_MS ? now * 2 : PAUSE_MAX_MS;
    (void)RAND_bytes((uint8_t *)&dice, sizeof(dice));
    return now / 2 + now * dice / 65536;
}

/* ---- carrying ---- */

void kvfs_way_carry(struct kvfs_way *w, const struct kc_request *q, unsigned seconds,
                    unsigned *status, struct ct_buf *answer)
{
    struct ct_err err = CT_ERR_INIT;
    struct kvfs_carry_request head = {.size = (uint32_t)q->body.len, .seconds = seconds};
    *status = 0;
    (void)snprintf(head.method, sizeof(head.method), "%s", q->method);
    (void)snprintf(head.path, sizeof(head.path), "%s", q->path);
    if (w->sock < 0) {
        w->sock = kvfs_source_courier(w->lease->s, &err);
    }
    if (w->sock >= 0 &&
        kvfs_carry_call(w->sock, w->stopping, &head, q->body.data, status, answer, &err)) {
        close(w->sock);
        w->sock = -1;
    }
    if (w->sock < 0) {
        ct_buf_free(answer);
        *status = 0;
        ct_buf_puts(answer, err.msg);
    }
}

void kvfs_way_close(struct kvfs_way *w)
{
    if (w->sock >= 0) {
        close(w->sock);
    }
    w->sock = -1;
}

/* ---- the exchange ---- */

static enum kc_step step(struct kvfs_way *w, enum kc_again *again, struct ct_err *err)
{
    struct kvfs_lease *l = w->lease;
    struct kvfs_leases *all = l->s->leases;
    struct kc_request q = {0};
    ct_autobuf answer = {0};
    unsigned status = 0;
    *again = KC_LATER;
    pthread_mutex_lock(&all->runtime_lock);
    int r = kc_next(l->exchange, &q, err);
    pthread_mutex_unlock(&all->runtime_lock);
    if (r) {
        ct_buf_free(&q.body);
        return KC_FAILED;
    }
    size_t n = strlen(q.path);
    bool keys = n > 5 && strcmp(q.path + n - 5, "/keys") == 0;
    int64_t sent = kvfs_lease_now();
    kvfs_way_carry(w, &q, keys ? KEYS_SECONDS : CALL_SECONDS, &status, &answer);
    ct_buf_free(&q.body);
    pthread_mutex_lock(&all->runtime_lock);
    enum kc_step now = kc_take(l->exchange, status, answer.data, answer.len, sent, again, err);
    pthread_mutex_unlock(&all->runtime_lock);
    pthread_mutex_lock(&l->lock);
    l->reached = status != 0;
    pthread_mutex_unlock(&l->lock);
    return now;
}

/* What the evidence says of the container is never older than the evidence. */
static int ask_guard(struct kvfs_lease *l, struct ct_err *err)
{
    struct kvfs_leases *all = l->s->leases;
    json_t *report = l->s->guarded ? kvfs_guarded_report(l->s->guarded, err) : NULL;
    if (report) {
        pthread_mutex_lock(&all->runtime_lock);
        kc_runtime_guard(&all->runtime, report);
        pthread_mutex_unlock(&all->runtime_lock);
    }
    return report || !l->s->guarded ? 0 : -1;
}

/* From a challenge to a lease, or to why there is none. */
static int run_exchange(struct kvfs_way *w, enum kc_again *again, struct ct_err *err)
{
    for (int tries = 0;; tries++) {
        enum kc_step now = KC_GO_ON;
        *err = (struct ct_err)CT_ERR_INIT;
        if (ask_guard(w->lease, err)) {
            *again = KC_LATER;
            return -1;
        }
        kc_begin(w->lease->exchange);
        while (now == KC_GO_ON) {
            now = step(w, again, err);
        }
        if (now == KC_HELD) {
            return 0;
        }
        if (*again != KC_ANEW || tries == ANEW_MAX) {
            *again = *again == KC_ANEW ? KC_LATER : *again;
            return -1;
        }
    }
}

static void set_state(struct kvfs_lease *l, enum kvfs_lease_state state, const struct ct_err *why)
{
    pthread_mutex_lock(&l->lock);
    if (l->state != KVFS_LEASE_OVER) {
        l->state = state;
        l->why = *why;
    }
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

static void take_lease(struct kvfs_lease *l)
{
    const struct ct_err none = CT_ERR_INIT;
    pthread_mutex_lock(&l->lock);
    l->held = *kc_lease(l->exchange);
    if (l->newest < l->held.generation) {
        l->newest = l->held.generation;
    }
    pthread_mutex_unlock(&l->lock);
    set_state(l, KVFS_LEASE_HELD, &none);
}

static int64_t seen_before(struct kvfs_lease *l, struct ct_err *err)
{
    int64_t seen = 0;
    return kvfs_source_seen(l->s, l->model, 0, &seen, err) ? -1 : seen;
}

static void note_seen(struct kvfs_lease *l)
{
    int64_t seen = 0;
    struct ct_err err = CT_ERR_INIT;
    if (kvfs_source_seen(l->s, l->model, kc_lease(l->exchange)->generation, &seen, &err)) {
        ct_log(CT_LOG_WARN, "%s: its generation is not remembered: %s", l->model, err.msg);
    }
}

/* Until a lease is held (0) or there will be none. */
static int acquire(struct kvfs_way *w)
{
    struct kvfs_lease *l = w->lease;
    struct ct_err err = CT_ERR_INIT;
    enum kc_again again = KC_STAYS;
    int64_t pause = PAUSE_MS;
    int64_t seen = seen_before(l, &err);
    if (seen >= 0) {
        l->exchange = kc_exchange_new(&l->s->leases->runtime, l->model, &l->shards, seen, &err);
    }
    while (l->exchange && run_exchange(w, &again, &err)) {
        kvfs_audit_failure(l->s, l, "release-refused", &err);
        pthread_mutex_lock(&l->lock);
        l->why = err;
        pthread_cond_broadcast(&l->changed);
        bool go_on = again == KC_LATER && pause_until(l, kvfs_lease_now() + next_pause(&pause));
        pthread_mutex_unlock(&l->lock);
        if (!go_on) {
            break;
        }
    }
    if (err.code != CT_OK) {
        ct_log(CT_LOG_ERROR, "%s: %s", l->model, err.msg);
        set_state(l, KVFS_LEASE_REFUSED, &err);
        return -1;
    }
    note_seen(l);
    kvfs_audit_release(l);
    take_lease(l);
    ct_log(CT_LOG_INFO, "%s: generation %lld released for %lld s (%s)", l->model,
           (long long)l->held.generation, (long long)l->held.seconds, l->held.assurance);
    return 0;
}

/* Refusals are not signed: whatever the answer, it is tried again until the lease has run out. */
static void renew(struct kvfs_way *w)
{
    struct kvfs_lease *l = w->lease;
    struct ct_err err = CT_ERR_INIT;
    enum kc_again again = KC_STAYS;
    int64_t pause = PAUSE_MS;
    for (;;) {
        pthread_mutex_lock(&l->lock);
        int64_t due = l->held.sent_ms + l->held.renew * 1000;
        bool go_on = pause_until(l, due) && l->state == KVFS_LEASE_HELD;
        pthread_mutex_unlock(&l->lock);
        while (go_on && run_exchange(w, &again, &err)) {
            ct_log(CT_LOG_WARN, "%s: the lease is not renewed: %s", l->model, err.msg);
            kvfs_audit_failure(l->s, l, "renewal-refused", &err);
            pthread_mutex_lock(&l->lock);
            l->why = err;
            int64_t left = (kvfs_lease_deadline(l) - kvfs_lease_now()) / 4;
            pause = pause < left ? pause : left > PAUSE_MS ? left : PAUSE_MS;
            go_on = pause_until(l, kvfs_lease_now() + next_pause(&pause)) &&
                    l->state == KVFS_LEASE_HELD;
            pthread_mutex_unlock(&l->lock);
        }
        if (!go_on) {
            return;
        }
        pause = PAUSE_MS;
        take_lease(l);
        const struct kc_lease *held = kc_lease(l->exchange);
        kvfs_audit_event(l->s, l, "renewal",
                         json_pack("{s:I,s:I,s:s}", "generation", (json_int_t)held->generation,
                                   "seconds", (json_int_t)held->seconds, "assurance",
                                   held->assurance));
    }
}

/* ---- the long poll ---- */

static void take_newest(struct kvfs_lease *l, int64_t generation)
{
    pthread_mutex_lock(&l->lock);
    bool news = generation > l->newest;
    l->newest = news ? generation : l->newest;
    pthread_mutex_unlock(&l->lock);
    if (news) {
        ct_log(CT_LOG_INFO, "%s: generation %lld is out; this mount goes on with what it has",
               l->model, (long long)generation);
    }
}

static void *listen_to_server(void *arg)
{
    struct kvfs_lease *l = arg;
    struct kvfs_way w = {.lease = l, .sock = -1, .stopping = l->s->ended};
    int64_t pause = PAUSE_MS;
    struct kc_wait wait = {0};
    pthread_mutex_lock(&l->lock);
    wait.generation = l->held.generation;
    memcpy(wait.lease, l->held.id, sizeof(wait.lease));
    pthread_mutex_unlock(&l->lock);
    for (bool go_on = true; go_on;) {
        ct_autobuf answer = {0};
        struct kc_request q = {0};
        struct ct_err err = CT_ERR_INIT;
        enum kc_again again = KC_LATER;
        unsigned status = 0;
        int r = kc_wait_request(&wait, POLL_SECONDS, &q, &err);
        if (r == 0) {
            kvfs_way_carry(&w, &q, POLL_SECONDS + CALL_SECONDS, &status, &answer);
            r = kc_wait_take(&wait, kc_exchange_identity(l->exchange), status, answer.data,
                             answer.len, &again, &err);
        }
        if (r && (err.code == CT_REVOKED || err.code == CT_EXPIRED)) {
            kvfs_lease_end(l, &err);
            break;
        }
        if (r == 0) {
            take_newest(l, wait.generation);
        }
        go_on = pause_until_locking(l, r ? kvfs_lease_now() + next_pause(&pause) : 0);
        pause = r ? pause : PAUSE_MS;
        pthread_mutex_lock(&l->lock);
        go_on = go_on && l->state == KVFS_LEASE_HELD;
        pthread_mutex_unlock(&l->lock);
    }
    kvfs_way_close(&w);
    return NULL;
}

/* ---- life ---- */

/* The runtime's signing key is needed for this, and nobody's answer. False without an object that
 * can be sent. */
static bool prepare_end(struct kvfs_lease *l, const char *reason, struct kc_request *q)
{
    pthread_mutex_lock(&l->s->leases->runtime_lock);
    int r = kc_end_request(l->exchange, reason, q, NULL);
    pthread_mutex_unlock(&l->s->leases->runtime_lock);
    return r == 0;
}

static void give_back(struct kvfs_way *w, struct kc_request *q)
{
    ct_autobuf answer = {0};
    unsigned status = 0;
    w->stopping = -1;
    kvfs_way_carry(w, q, END_SECONDS, &status, &answer);
}

void kvfs_lease_part(struct kvfs_lease *l, const struct ct_err *why)
{
    struct kc_request q = {0};
    pthread_mutex_lock(&l->lock);
    bool held = l->state == KVFS_LEASE_HELD;
    pthread_mutex_unlock(&l->lock);
    bool good = held && prepare_end(l, why->msg, &q);
    pthread_mutex_lock(&l->lock);
    if (held) {
        l->state = KVFS_LEASE_OVER;
        l->why = *why;
    }
    if (good) {
        l->parting = q;
    } else {
        ct_buf_free(&q.body);
    }
    l->parted = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

static void *run_lease(void *arg)
{
    struct kvfs_lease *l = arg;
    struct kvfs_way w = {.lease = l, .sock = -1, .stopping = l->s->ended};
    if (acquire(&w) == 0) {
        l->listening = pthread_create(&l->listener, NULL, listen_to_server, l) == 0;
        renew(&w);
        pthread_mutex_lock(&l->lock);
        while (atomic_load(&l->s->sealed) && !l->parted && !l->stop) {
            wait_ms(l, TICK_MS);
        }
        bool held = l->stop && l->state == KVFS_LEASE_HELD && !atomic_load(&l->s->sealed);
        struct kc_request last = l->parting; /* there once it is parted */
        l->parting = (struct kc_request){0};
        pthread_mutex_unlock(&l->lock);
        if (last.body.len || (held && prepare_end(l, NULL, &last))) {
            give_back(&w, &last);
        }
        ct_buf_free(&last.body);
    }
    kvfs_way_close(&w);
    return NULL;
}

void kvfs_lease_init(struct kvfs_lease *l)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

int kvfs_lease_start(struct kvfs_lease *l, struct ct_err *err)
{
    l->renewing = pthread_create(&l->renewer, NULL, run_lease, l) == 0;
    return l->renewing ? 0 : ct_err_set(err, CT_NOMEM, "no thread for a lease");
}

void kvfs_lease_wait(struct kvfs_lease *l, int64_t until)
{
    pthread_mutex_lock(&l->lock);
    while (l->state == KVFS_LEASE_ASKING && (!l->why.code || kvfs_lease_now() < until)) {
        wait_ms(l, 1000);
    }
    pthread_mutex_unlock(&l->lock);
}

void kvfs_lease_stop(struct kvfs_lease *l)
{
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

void kvfs_lease_join(struct kvfs_lease *l)
{
    if (l->renewing) {
        (void)pthread_join(l->renewer, NULL);
    }
    if (l->listening) {
        (void)pthread_join(l->listener, NULL);
    }
    if (l->ending) {
        (void)pthread_join(l->ender, NULL);
    }
}

int64_t kvfs_lease_deadline(const struct kvfs_lease *l)
{
    return l->held.sent_ms + (l->held.seconds + (l->reached ? 0 : l->held.grace)) * 1000;
}
