#include "guard/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "format/base/file.h"
#include "guard/state.h"

enum { FULL_TURN = 10 };

int64_t guard_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* Whether a mount table was touched that nobody has been told of. */
static bool drain(const struct guard *g)
{
    struct epoll_event events[16];
    bool any = false;
    for (int turn = 0; turn < 4 && epoll_wait(g->epoll_fd, events, 16, 0) > 0; turn++) {
        any = true;
    }
    return any;
}

static int open_proc(struct guard *g, struct ct_err *err)
{
    struct stat st;
    g->proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    g->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (g->proc_fd < 0 || g->epoll_fd < 0 || fstat(g->proc_fd, &st)) {
        return ct_err_sys(err, errno, "/proc");
    }
    g->proc_dev = st.st_dev;
    /* Otherwise the numbers of processes would mean others. */
    char *self = guard_readlink_at(g->proc_fd, "self", err);
    bool ours = self && strtol(self, NULL, 10) == getpid();
    free(self);
    return ours ? 0
                : ct_err_set(err, CT_UNSUPPORTED,
                             "/proc is that of another PID namespace than ours");
}

int guard_new(const struct guard_profile *profile, const struct guard_config *config,
              struct guard **out, struct ct_err *err)
{
    struct guard *g = calloc(1, sizeof(*g));
    if (!g) {
        return ct_err_set(err, CT_NOMEM, "no memory for a guard");
    }
    g->profile = profile;
    g->config = *config;
    g->proc_fd = g->epoll_fd = -1;
    if (open_proc(g, err) || guard_trees_take(g, err) ||
        !(g->self = guard_subject_open(g, getpid(), GUARD_SELF, err)) ||
        guard_subject_start(g, g->self, err)) {
        guard_free(g);
        return ct_err_wrap(err, "guard");
    }
    (void)drain(g);
    g->last_ns = guard_now_ns();
    *out = g;
    return 0;
}

void guard_free(struct guard *g)
{
    if (!g) {
        return;
    }
    guard_subject_free(g->self);
    guard_subject_free(g->tool);
    for (size_t i = 0; i < g->mate_count; i++) {
        guard_subject_free(g->mates[i]);
    }
    for (size_t i = 0; i < g->reader_count; i++) {
        guard_subject_free(g->readers[i]);
    }
    free(g->readers);
    ct_buf_free(&g->pin_cgroup);
    if (g->proc_fd >= 0) {
        close(g->proc_fd);
    }
    if (g->epoll_fd >= 0) {
        close(g->epoll_fd);
    }
    free(g);
}

/* Everything is taken anew; of what fails, only mounts are forgiven. */
int guard_mounted(struct guard *g, dev_t device, struct ct_err *err)
{
    struct guard_subject *now = guard_subject_open(g, getpid(), GUARD_SELF, err);
    g->mount_dev = device;
    g->mounted = true;
    if (!now || guard_subject_start(g, now, err)) {
        guard_subject_free(now);
        return ct_err_wrap(err, "guard");
    }
    struct guard_mounts before = g->self->start.mounts;
    g->self->start.mounts = now->start.mounts;
    now->start.mounts = before;
    struct guard_failures *was = &g->self->at_start;
    for (size_t i = 0; i < was->count; i++) {
        if (was->items[i].id <= GUARD_KERNEL_WRITABLE) {
            was->items[i].id = GUARD_IDS;
        }
    }
    for (size_t i = 0; i < now->at_start.count; i++) {
        struct guard_failure *f = &now->at_start.items[i];
        struct guard_failure *more =
            f->id > GUARD_KERNEL_WRITABLE
                ? NULL
                : reallocarray(was->items, was->count + 1, sizeof(*was->items));
        if (more) {
            was->items = more;
            was->items[was->count++] = *f;
            was->cap = was->count;
            f->about = NULL;
        }
    }
    guard_subject_free(now);
    (void)drain(g);
    return 0;
}

int guard_add_own(struct guard *g, pid_t pid, struct ct_err *err)
{
    if (g->mate_count == GUARD_MATES_MAX) {
        return ct_err_set(err, CT_USAGE, "guard: more than %d processes", GUARD_MATES_MAX);
    }
    struct guard_subject *s = guard_subject_open(g, pid, GUARD_MATE, err);
    if (!s || guard_subject_start(g, s, err)) {
        guard_subject_free(s);
        return ct_err_wrap(err, "guard");
    }
    g->mates[g->mate_count++] = s;
    return 0;
}

int guard_add_tool(struct guard *g, pid_t pid, struct ct_err *err)
{
    struct guard_subject *s = guard_subject_open(g, pid, GUARD_MATE, err);
    if (!s) {
        return ct_err_wrap(err, "guard");
    }
    guard_subject_free(g->tool);
    g->tool = s;
    return 0;
}

int guard_pollfd(const struct guard *g)
{
    return g->epoll_fd;
}

int guard_timeout_ms(const struct guard *g)
{
    int64_t left = g->profile->period_ms - (guard_now_ns() - g->last_ns) / 1000000;
    return left < 0 ? 0 : (int)left;
}

/* What is found of a process that is just ending means nothing. */
static int run_one(struct guard *g, struct guard_subject *s, unsigned flags,
                   struct guard_report *report, struct ct_err *err)
{
    struct ct_err why = CT_ERR_INIT;
    enum guard_state state[GUARD_IDS][GUARD_WHOS];
    size_t count = report->count;
    size_t more = report->more;
    memcpy(state, report->state, sizeof(state));
    int rc = guard_subject_run(g, s, guard_subject_wants(s->role, flags), flags, report, &why);
    if ((rc || report->count > count) && guard_subject_ending(g, s)) {
        report->count = count;
        report->more = more;
        memcpy(report->state, state, sizeof(state));
        return 0;
    }
    return rc ? ct_err_set(err, why.code, "%s", why.msg) : 0;
}

/* Runs over all of a list, takes out who has ended. */
static int run_list(struct guard *g, struct guard_subject **list, size_t *count, unsigned flags,
                    struct guard_report *report, struct ct_err *err)
{
    size_t kept = 0;
    int rc = 0;
    for (size_t i = 0; i < *count; i++) {
        struct guard_subject *s = list[i];
        bool gone = !guard_subject_alive(s);
        if (!gone && rc == 0) {
            rc = run_one(g, s, flags, report, err);
            gone = !guard_subject_alive(s);
        }
        if (gone) {
            guard_subject_free(s);
        } else {
            list[kept++] = s;
        }
    }
    *count = kept;
    return rc;
}

int guard_check(struct guard *g, unsigned flags, struct guard_report *report, struct ct_err *err)
{
    int64_t began = guard_now_ns();
    memset(report, 0, sizeof(*report));
    if (guard_profile_is_off(g->profile)) {
        g->last_ns = began;
        return 0;
    }
    flags |= drain(g) ? GUARD_WOKEN : 0;
    flags |= ++g->runs % FULL_TURN == 0 ? GUARD_FULL : 0;
    if (guard_subject_run(g, g->self, GUARD_HAS_ALL, flags, report, err) ||
        run_list(g, g->mates, &g->mate_count, flags, report, err) ||
        run_list(g, g->readers, &g->reader_count, flags, report, err)) {
        return ct_err_wrap(err, "guard");
    }
    g->last_ns = guard_now_ns();
    report->took_ns = g->last_ns - began;
    return 0;
}
