#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "format/base/file.h"
#include "guard/state.h"

enum { FAILURES_MAX = 4096 };

static enum guard_who who_is(const struct guard_subject *s)
{
    return s->role == GUARD_STRANGER ? GUARD_READER : GUARD_OWN;
}

/* ---- What a check says ---- */

bool guard_wants(const struct guard_run *r, enum guard_id id)
{
    return r->profile->level[id][who_is(r->s)] != GUARD_IGNORE;
}

static void raise_state(struct guard_run *r, enum guard_id id, enum guard_state state)
{
    if (guard_wants(r, id) && r->out->state[id] < state) {
        r->out->state[id] = state;
    }
}

void guard_looked(struct guard_run *r, enum guard_id id)
{
    raise_state(r, id, GUARD_OK);
}

void guard_unseen(struct guard_run *r, enum guard_id id)
{
    raise_state(r, id, GUARD_UNSEEN);
}

/* Names come from whoever is judged. */
static void copy_safe(char out[GUARD_TEXT_MAX], char *text)
{
    bool utf8 = ct_utf8_ok((const uint8_t *)text, strlen(text));
    for (unsigned char *p = (unsigned char *)text; *p; p++) {
        if (*p < 0x20 || *p == 0x7f || (*p >= 0x80 && !utf8)) {
            *p = '?';
        }
    }
    ct_utf8_copy(out, GUARD_TEXT_MAX, text);
}

static struct guard_failure *new_failure(struct guard_failures *f)
{
    if (f->count == f->cap) {
        size_t want = f->cap ? f->cap * 2 : 16;
        struct guard_failure *more =
            want <= FAILURES_MAX ? realloc(f->items, want * sizeof(*more)) : NULL;
        if (!more) {
            f->lost = true;
            return NULL;
        }
        f->items = more;
        f->cap = want;
    }
    return &f->items[f->count];
}

void guard_fail(struct guard_run *r, enum guard_id id, uint64_t bits, const char *about,
                const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    if (!guard_wants(r, id)) {
        return;
    }
    r->out->state[id] = GUARD_FAILED;
    struct guard_failure *f = new_failure(r->out);
    if (!f) {
        return;
    }
    *f = (struct guard_failure){.id = id, .bits = bits, .about = strdup(about)};
    if (!f->about) {
        r->out->lost = true;
        return;
    }
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    copy_safe(f->text, text);
    r->out->count++;
}

void guard_failures_free(struct guard_failures *f)
{
    for (size_t i = 0; i < f->count; i++) {
        free(f->items[i].about);
    }
    free(f->items);
    *f = (struct guard_failures){0};
}

/* ---- Judging ---- */

static bool was_so(const struct guard_failures *start, const struct guard_failure *f)
{
    for (size_t i = 0; i < start->count; i++) {
        const struct guard_failure *o = &start->items[i];
        if (o->id == f->id && (f->bits & ~o->bits) == 0 && strcmp(o->about, f->about) == 0) {
            return true;
        }
    }
    return false;
}

static void add_finding(struct guard_report *report, const struct guard_subject *s,
                        enum guard_id id, enum guard_level level, const char *text)
{
    if (report->count == GUARD_FINDINGS_MAX) {
        report->more++;
        return;
    }
    struct guard_finding *f = &report->findings[report->count++];
    *f = (struct guard_finding){.id = id, .level = level, .who = who_is(s), .pid = s->pid};
    (void)snprintf(f->text, sizeof(f->text), "%s", text);
}

void guard_judge(const struct guard *g, const struct guard_subject *s,
                 const struct guard_failures *now, struct guard_report *report)
{
    enum guard_who who = who_is(s);
    enum guard_state state[GUARD_IDS];
    memcpy(state, now->state, sizeof(state));
    for (int i = 0; i < GUARD_IDS; i++) {
        state[i] = state[i] == GUARD_FAILED ? GUARD_HELD : state[i];
    }
    /* One of each kind first: there is no room for many of all. */
    for (int turn = 0; turn < 2; turn++) {
        bool said[GUARD_IDS] = {false};
        for (size_t i = 0; i < now->count; i++) {
            const struct guard_failure *f = &now->items[i];
            enum guard_level level = g->profile->level[f->id][who];
            if (level == GUARD_REQUIRE || (level == GUARD_KEEP && !was_so(&s->at_start, f))) {
                if (said[f->id] == (turn == 1)) {
                    add_finding(report, s, f->id, level, f->text);
                }
                said[f->id] = true;
                state[f->id] = GUARD_FAILED;
            }
        }
    }
    if (now->lost && !s->at_start.lost) {
        state[GUARD_INSPECT] = GUARD_FAILED;
        add_finding(report, s, GUARD_INSPECT, GUARD_REQUIRE, "more fails than can be kept in mind");
    }
    for (int i = 0; i < GUARD_IDS; i++) {
        report->state[i][who] = report->state[i][who] > state[i] ? report->state[i][who] : state[i];
    }
}

/* ---- Subjects ---- */

static int watch_mounts(struct guard *g, struct guard_subject *s, struct ct_err *err)
{
    struct epoll_event e = {.events = EPOLLPRI | EPOLLERR};
    s->mountinfo_fd = openat(s->proc_fd, "mountinfo", O_RDONLY | O_CLOEXEC);
    if (s->mountinfo_fd < 0) {
        return s->role == GUARD_SELF ? ct_err_sys(err, errno, "/proc/self/mountinfo") : 0;
    }
    return epoll_ctl(g->epoll_fd, EPOLL_CTL_ADD, s->mountinfo_fd, &e)
               ? ct_err_sys(err, errno, "epoll_ctl")
               : 0;
}

static int read_stat(int fd, const char *name, uint64_t *start_time, bool *exiting,
                     struct ct_err *err)
{
    ct_autobuf text = {0};
    return guard_read_at(fd, name, 1 << 14, &text, err)
               ? -1
               : guard_parse_stat((char *)text.data, text.len, start_time, exiting, err);
}

struct guard_subject *guard_subject_open(struct guard *g, pid_t pid, enum guard_role role,
                                         struct ct_err *err)
{
    char name[16];
    bool exiting = false;
    struct guard_subject *s = calloc(1, sizeof(*s));
    if (!s) {
        ct_err_set(err, CT_NOMEM, "no memory for a process");
        return NULL;
    }
    (void)snprintf(name, sizeof(name), "%d", pid);
    s->role = role;
    s->pid = pid;
    s->mountinfo_fd = s->pagemap_fd = -1;
    s->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    s->proc_fd = openat(g->proc_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->proc_fd >= 0 && role != GUARD_STRANGER) {
        s->pagemap_fd = openat(s->proc_fd, "pagemap", O_RDONLY | O_CLOEXEC);
    }
    if (s->pidfd < 0 || s->proc_fd < 0) {
        int e = s->proc_fd < 0 ? errno : ESRCH;
        ct_err_set(err, e == ENOENT || e == ESRCH ? CT_NOTFOUND : CT_IO, "process %d: %s", pid,
                   strerror(e));
    } else if ((role == GUARD_MATE || watch_mounts(g, s, err) == 0) &&
               read_stat(s->proc_fd, "stat", &s->start_time, &exiting, err) == 0) {
        return s;
    }
    guard_subject_free(s);
    return NULL;
}

void guard_subject_free(struct guard_subject *s)
{
    if (!s) {
        return;
    }
    const int fds[] = {s->proc_fd, s->pidfd, s->mountinfo_fd, s->pagemap_fd};
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    for (size_t i = 0; i < s->code_count; i++) {
        free(s->code[i].path);
    }
    free(s->code);
    guard_facts_free(&s->start);
    guard_failures_free(&s->at_start);
    free(s);
}

/* The descriptor of /proc/PID and the pidfd are of one process: both were opened while it lived,
 * unless the pid went to another one between, which then started later. */
bool guard_subject_alive(const struct guard_subject *s)
{
    struct pollfd p = {.fd = s->pidfd, .events = POLLIN};
    uint64_t start_time = 0;
    bool exiting = false;
    return poll(&p, 1, 0) == 0 && read_stat(s->proc_fd, "stat", &start_time, &exiting, NULL) == 0 &&
           start_time == s->start_time;
}

static bool all_exiting(const struct guard_subject *s)
{
    int fd = openat(s->proc_fd, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *e = NULL;
    bool all = true;
    while (dir && all && (e = readdir(dir))) {
        char name[300];
        uint64_t start_time = 0;
        bool exiting = true;
        (void)snprintf(name, sizeof(name), "%s/stat", e->d_name);
        if (e->d_name[0] != '.' && read_stat(fd, name, &start_time, &exiting, NULL) == 0) {
            all = exiting;
        }
    }
    if (dir) {
        (void)closedir(dir);
    } else if (fd >= 0) {
        close(fd);
    }
    return all;
}

bool guard_subject_ending(const struct guard *g, struct guard_subject *s)
{
    uint64_t start_time = 0;
    bool exiting = false;
    if (!guard_subject_alive(s) || read_stat(s->proc_fd, "stat", &start_time, &exiting, NULL)) {
        return true;
    }
    int64_t now = guard_now_ns();
    s->exiting_ns = !exiting ? 0 : s->exiting_ns ? s->exiting_ns : now;
    return exiting &&
           (now - s->exiting_ns < (int64_t)g->profile->period_ms * 2000000 || all_exiting(s));
}

/* ---- Runs ---- */

/* Mates run the program that this one runs, in the same mount namespace: what can be said of its
 * files and mounts is said here every time. */
unsigned guard_subject_wants(enum guard_role role, unsigned flags)
{
    return role == GUARD_MATE ? GUARD_HAS_STATUS | GUARD_HAS_MAPS | GUARD_HAS_NS | GUARD_HAS_EXE |
                                    GUARD_HAS_LIMITS | (flags & GUARD_FULL ? GUARD_HAS_MOUNTS : 0)
                              : GUARD_HAS_ALL;
}

static void run_checks(struct guard_run *r)
{
    guard_looked(r, GUARD_INSPECT);
    if (r->now->has != r->now->wanted && r->s->role != GUARD_MATE) {
        guard_fail(r, GUARD_INSPECT, 0, "", "process %d can't be inspected: %.120s", r->s->pid,
                   r->now->missing.msg);
    }
    if (r->s->role != GUARD_MATE) {
        guard_check_mounts(r);
    }
    guard_check_privileges(r);
    guard_check_process(r);
    guard_check_maps(r);
    guard_check_machine(r);
    if (r->s->role == GUARD_SELF) {
        guard_check_kernel(r);
        guard_check_probes(r);
        guard_check_trees(r);
    } else if (r->s->role == GUARD_STRANGER) {
        guard_check_reader(r);
    }
}

static void run(struct guard *g, struct guard_subject *s, const struct guard_facts *now,
                const struct guard_facts *start, unsigned flags, struct guard_failures *out)
{
    ct_autofd root = openat(s->proc_fd, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct guard_run r = {.g = g,
                          .profile = g->profile,
                          .config = &g->config,
                          .s = s,
                          .now = now,
                          .start = start,
                          .flags = flags,
                          .proc_root_fd = root,
                          .out = out};
    run_checks(&r);
}

int guard_subject_start(struct guard *g, struct guard_subject *s, struct ct_err *err)
{
    if (guard_facts_read(s->proc_fd, guard_subject_wants(s->role, GUARD_FULL), &s->start, err) ||
        (s->role != GUARD_STRANGER && guard_code_take(s, err))) {
        return -1;
    }
    run(g, s, &s->start, NULL, GUARD_FULL, &s->at_start);
    return 0;
}

/* The start state is taken while the process is dumpable; from the moment on when it is not, that
 * has to stay so. */
static void forget_dumpable(struct guard_subject *s, const struct guard_failures *now)
{
    for (size_t i = 0; i < s->at_start.count && now->state[GUARD_DUMPABLE] == GUARD_OK; i++) {
        if (s->at_start.items[i].id == GUARD_DUMPABLE) {
            s->at_start.items[i].id = GUARD_IDS;
        }
    }
}

int guard_subject_run(struct guard *g, struct guard_subject *s, unsigned wanted, unsigned flags,
                      struct guard_report *report, struct ct_err *err)
{
    struct guard_facts now;
    struct guard_failures failures = {0};
    /* A process that is no longer dumpable may not read its own environment, which is that of its
     * start anyway. */
    unsigned known = s->role == GUARD_SELF ? GUARD_HAS_ENVIRON : 0;
    if (guard_facts_read(s->proc_fd, wanted & ~known, &now, err)) {
        return -1;
    }
    now.wanted |= wanted & known;
    now.has |= s->start.has & known;
    now.environ = known ? s->start.environ : now.environ;
    /* A reader may run another program (a shell that opens files for it): then reader-exe says
     * whether it may have them. */
    if (s->role == GUARD_STRANGER && (now.has & GUARD_HAS_EXE) &&
        (now.exe.dev != s->start.exe.dev || now.exe.ino != s->start.exe.ino)) {
        s->start.exe = now.exe;
        flags |= GUARD_FULL;
    }
    run(g, s, &now, &s->start, flags, &failures);
    guard_judge(g, s, &failures, report);
    forget_dumpable(s, &failures);
    guard_failures_free(&failures);
    guard_facts_free(&now);
    return 0;
}
