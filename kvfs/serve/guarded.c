#include "kvfs/serve/guarded.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "format/base/clock.h"
#include "format/protocol/jose.h"
#include "kvfs/mount/guard_link.h"

enum { LEAVE_MS = KVFS_SANITIZED ? 10000 : 1000 }; /* a guard that hangs holds up no end */

struct question {
    struct question *next;
    uint32_t number;
    bool answered, good;
    char *text; /* owned */
};

struct kvfs_guarded {
    int fd;
    uint32_t gap_ms;
    atomic_llong heard_ms;
    struct kvfs_guard_message in; /* of the watching thread */
    pthread_mutex_t lock;         /* guards what follows */
    pthread_cond_t changed;
    struct question *open;
    uint32_t last;
    bool over; /* nobody listens to answers any more */
    struct kvfs_guard_message out;
};

struct kvfs_guarded *kvfs_guarded_new(int fd, uint32_t gap_ms, struct ct_err *err)
{
    pthread_condattr_t monotonic;
    struct kvfs_guarded *g = calloc(1, sizeof(*g));
    if (!g) {
        ct_err_set(err, CT_NOMEM, "no memory for the guard");
        return NULL;
    }
    g->fd = fd;
    g->gap_ms = gap_ms;
    atomic_init(&g->heard_ms, ct_now_ms());
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return g;
}

int kvfs_guarded_fd(const struct kvfs_guarded *g)
{
    return g ? g->fd : -1;
}

/* ---- the watching thread ---- */

static void answer(struct kvfs_guarded *g)
{
    pthread_mutex_lock(&g->lock);
    for (struct question *q = g->open; q; q = q->next) {
        if (q->number == g->in.number) {
            q->answered = true;
            q->text = strdup(g->in.text);
            q->good = g->in.good && q->text;
        }
    }
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

/* Who waits for an answer waits no longer. -1. */
static int end(struct kvfs_guarded *g, const char *why, struct ct_err *err)
{
    pthread_mutex_lock(&g->lock);
    g->over = true;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
    return ct_err_set(err, CT_SEALED, "%s", why);
}

int kvfs_guarded_take(struct kvfs_guarded *g, struct ct_err *err)
{
    if (kvfs_guard_recv(g->fd, &g->in, NULL) != 1) {
        return end(g, "the guard is gone", err);
    }
    atomic_store(&g->heard_ms, ct_now_ms());
    if (g->in.type == KVFS_GUARD_SEAL) {
        return end(g, g->in.text, err);
    }
    if (g->in.type == KVFS_GUARD_ANSWER) {
        answer(g);
    }
    return 0;
}

int kvfs_guarded_listen(struct kvfs_guarded *g, struct ct_err *err)
{
    return ct_now_ms() - atomic_load(&g->heard_ms) > g->gap_ms ? end(g, "the guard is silent", err)
                                                               : 0;
}

/* ---- questions ---- */

/* The text of a good answer, owned by the caller. */
static char *ask(struct kvfs_guarded *g, enum kvfs_guard_type type, pid_t pid, struct ct_err *err)
{
    struct question q = {0};
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += g->gap_ms / 1000 + 1;
    pthread_mutex_lock(&g->lock);
    q.number = ++g->last;
    q.next = g->open;
    g->open = &q;
    g->out = (struct kvfs_guard_message){.type = type, .number = q.number, .pid = pid};
    int r = kvfs_guard_send(g->fd, &g->out, NULL);
    while (r == 0 && !q.answered && !g->over) {
        r = pthread_cond_timedwait(&g->changed, &g->lock, &until);
    }
    struct question **at = &g->open;
    while (*at != &q) {
        at = &(*at)->next;
    }
    *at = q.next;
    bool over = g->over && !q.answered;
    pthread_mutex_unlock(&g->lock);
    if (q.good) {
        return q.text;
    }
    ct_err_set(err, over ? CT_SEALED : CT_UNADMITTED, "%s",
               q.text && *q.text ? q.text : "the guard does not answer");
    free(q.text);
    return NULL;
}

int kvfs_guarded_admit(struct kvfs_guarded *g, pid_t pid, char exe[static KVFS_EXE_MAX],
                       struct ct_err *err)
{
    char *text = ask(g, KVFS_GUARD_ADMIT, pid, err);
    if (!text) {
        return -1;
    }
    ct_utf8_copy(exe, KVFS_EXE_MAX, text);
    free(text);
    return 0;
}

json_t *kvfs_guarded_report(struct kvfs_guarded *g, struct ct_err *err)
{
    char *text = ask(g, KVFS_GUARD_CHECK, 0, err);
    json_t *report = text ? kx_json_parse(text, strlen(text), err) : NULL;
    free(text);
    return report;
}

void kvfs_guarded_leave(struct kvfs_guarded *g)
{
    if (!g) {
        return;
    }
    struct pollfd closed = {.fd = g->fd}; /* POLLHUP */
    g->out = (struct kvfs_guard_message){.type = KVFS_GUARD_LEAVE};
    if (kvfs_guard_send(g->fd, &g->out, NULL) == 0) {
        (void)poll(&closed, 1, LEAVE_MS);
    }
}
