#include "kvfs/mount/guarding.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/base/clock.h"
#include "format/base/file.h"
#include "format/base/log.h"
#include "guard/tree.h"
#include "kvfs/mount/guard_link.h"
#include "kvfs/mount/remote.h"
#include "kvfs/term.h"

enum { TELL_MS = 1000 };

struct added {
    pid_t pid;
    bool tool;
};

struct kvfs_guarding {
    const struct guard_profile *profile;
    struct guard_config config;
    struct guard *guard;
    const struct kvfs_mounted *remote; /* whose mounter is to hear of us; or NULL */
    int64_t told_ms;
    int ours, theirs; /* the link */
    int added[2];     /* pids of our own processes, for the thread */
    int sealed_fd;    /* eventfd */
    bool sealed;
    char why[GUARD_TEXT_MAX + 64]; /* once sealed_fd is readable, the supervisor's to read */
    struct guard_report report;    /* scratch: large */
    struct kvfs_guard_message in, out;
};

/* ---- before ---- */

static void measured_add(struct kc_measured *all, uint32_t *count, const char *kind,
                         const char *name, const uint8_t digest[static CT_SHA256_LEN])
{
    struct kc_measured *m = &all[(*count)++];
    (void)snprintf(m->kind, sizeof(m->kind), "%s", kind);
    (void)snprintf(m->name, sizeof(m->name), "%s", name);
    ct_hex(m->sha256, digest, CT_SHA256_LEN);
}

static int measure_trees(struct guard_profile *p, struct kc_measured *all, uint32_t *count,
                         struct ct_err *err)
{
    uint8_t digest[CT_SHA256_LEN];
    for (size_t i = 0; i < p->count; i++) {
        const char *path = p->declared[i].path;
        if (p->declared[i].kind != GUARD_TREE) {
            continue;
        }
        ct_autofd fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0) {
            return ct_err_sys(err, errno, "tree %s", path);
        }
        if (*count == KVFS_MEASURED_MAX || strlen(path) >= sizeof(all->name)) {
            return ct_err_set(err, CT_USAGE, "tree %s: too many of them, or too long a path", path);
        }
        if (guard_tree_measure(fd, digest, p->declared[i].marks, err)) {
            return ct_err_wrap(err, "tree %s", path);
        }
        p->declared[i].marked = true;
        measured_add(all, count, "tree", path, digest);
    }
    return 0;
}

int kvfs_guarding_load(const char *profile, struct guard_profile **out, struct kvfs_config *config,
                       struct kc_measured *measured, uint32_t *count, struct ct_err *err)
{
    uint8_t digest[CT_SHA256_LEN];
    *count = 0;
    if (guard_profile_load(profile, out, err)) {
        return -1;
    }
    struct guard_profile *p = *out;
    config->guarded = !guard_profile_is_off(p);
    (void)snprintf(config->profile, sizeof(config->profile), "%s",
                   config->guarded ? p->name : "none");
    if (!config->guarded) {
        return 0;
    }
    config->admits = guard_profile_judges_readers(p);
    config->guard_gap_ms = p->gap_ms;
    if (guard_profile_digest(p, digest, err)) {
        return -1;
    }
    measured_add(measured, count, "policy", "guard", digest);
    return measure_trees(p, measured, count, err);
}

/* The names of all checks that failed, each once, and what follows them. */
static void name_findings(const struct guard_report *report, const char *then, char *out,
                          size_t cap)
{
    bool named[GUARD_IDS] = {false};
    size_t len = 0;
    for (size_t i = 0; i < report->count && len < cap; i++) {
        enum guard_id id = report->findings[i].id;
        if (!named[id]) {
            len += (size_t)snprintf(out + len, cap - len, "%s%s", i ? ", " : "",
                                    guard_checks[id].name);
        }
        named[id] = true;
    }
    if (len < cap) {
        (void)snprintf(out + len, cap - len, ": %s", then);
    }
}

static int explain(const struct guard_report *report, struct ct_err *err)
{
    char why[CT_ERR_MSG_MAX];
    for (size_t i = 0; i < report->count; i++) {
        const struct guard_finding *f = &report->findings[i];
        (void)fprintf(stderr, "kvfs mount: guard: %s: ", guard_checks[f->id].name);
        kvfs_print_safe(stderr, f->text, strlen(f->text));
        (void)fprintf(stderr, "\n    %s\n", guard_checks[f->id].fix);
    }
    name_findings(report,
                  "this is not how the guard's profile wants it (kvfs guard check shows all, "
                  "guard=drift asks for less)",
                  why, sizeof(why));
    return ct_err_set(err, CT_REJECTED, "%s", why);
}

static int open_link(struct kvfs_guarding *g, struct ct_err *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
        return ct_err_sys(err, errno, "the guard's socket");
    }
    g->ours = pair[0];
    g->theirs = pair[1];
    g->sealed_fd = eventfd(0, EFD_CLOEXEC);
    return g->sealed_fd < 0 || pipe2(g->added, O_CLOEXEC)
               ? ct_err_sys(err, errno, "the guard's pipe")
               : 0;
}

int kvfs_guarding_new(const struct guard_profile *profile, const struct kvfs_config *config,
                      struct kvfs_locks locks, struct kvfs_guarding **out, struct ct_err *err)
{
    *out = NULL;
    if (!config->guarded) {
        return 0;
    }
    struct kvfs_guarding *g = calloc(1, sizeof(*g));
    if (!g) {
        return ct_err_set(err, CT_NOMEM, "no memory for the guard");
    }
    g->profile = profile;
    g->config = (struct guard_config){.source = config->source,
                                      .mountpoint = config->mountpoint,
                                      .lock_keys = locks.keys,
                                      .lock_all = locks.all};
    *out = g;
    if (open_link(g, err) || guard_new(profile, &g->config, &g->guard, err)) {
        return -1;
    }
    /* Not before it has looked at us, which it could not do well enough then. */
    (void)prctl(PR_SET_DUMPABLE, KVFS_SANITIZED, 0, 0, 0);
    if (guard_check(g->guard, GUARD_FULL, &g->report, err)) {
        return -1;
    }
    return g->report.count ? explain(&g->report, err) : 0;
}

int kvfs_guarding_mounted(struct kvfs_guarding *g, const struct kvfs_mounted *m, struct ct_err *err)
{
    if (!g) {
        return 0;
    }
    /* Where kvfs may be stopped for a while, silence says nothing. */
    if (m->remote && g->profile->level[GUARD_PAUSED][GUARD_OWN] != GUARD_IGNORE) {
        g->remote = m;
    }
    return m->known || m->remote ? guard_mounted(g->guard, m->dev, err) : 0;
}

int kvfs_guarding_link(const struct kvfs_guarding *g)
{
    return g ? g->theirs : -1;
}

int kvfs_guarding_end(const struct kvfs_guarding *g)
{
    return g ? g->ours : -1;
}

void kvfs_guarding_linked(struct kvfs_guarding *g)
{
    if (g) {
        close(g->theirs);
        g->theirs = -1;
    }
}

int kvfs_guarding_fd(const struct kvfs_guarding *g)
{
    return g ? g->sealed_fd : -1;
}

const char *kvfs_guarding_why(const struct kvfs_guarding *g)
{
    return g->why;
}

void kvfs_guarding_add(struct kvfs_guarding *g, pid_t pid, bool tool)
{
    const struct added one = {pid, tool};
    if (g && write(g->added[1], &one, sizeof(one)) != sizeof(one)) {
        ct_log(CT_LOG_WARN, "guard: %s", strerror(errno));
    }
}

/* ---- the thread ---- */

static int send_out(struct kvfs_guarding *g, enum kvfs_guard_type type)
{
    g->out.type = type;
    return kvfs_guard_send(g->ours, &g->out, NULL);
}

static void seal(struct kvfs_guarding *g, const char *why)
{
    if (g->sealed) {
        return;
    }
    g->sealed = true;
    (void)snprintf(g->why, sizeof(g->why), "%s", why);
    (void)snprintf(g->out.text, sizeof(g->out.text), "the guard: %s", why);
    if (send_out(g, KVFS_GUARD_SEAL)) { /* the supervisor will see to it that it ends */
        ct_log(CT_LOG_ERROR, "the guard can't tell the worker to seal");
    }
    (void)eventfd_write(g->sealed_fd, 1);
}

/* What a run found; `rc` is the run's own. A run that fails is no report that all is well. */
static void judge(struct kvfs_guarding *g, int rc, const struct ct_err *err)
{
    char why[sizeof(g->why)];
    for (size_t i = 0; rc == 0 && i < g->report.count; i++) {
        const struct guard_finding *f = &g->report.findings[i];
        ct_log(CT_LOG_ERROR, "guard: %s: %s", guard_checks[f->id].name, f->text);
    }
    if (rc) {
        seal(g, err->msg);
    } else if (g->report.count) {
        name_findings(&g->report, g->report.findings[0].text, why, sizeof(why));
        seal(g, why);
    } else {
        g->out.number = 0;
        g->out.text[0] = '\0';
        (void)send_out(g, KVFS_GUARD_ALIVE); /* a worker that does not listen hears nothing */
    }
}

static void check(struct kvfs_guarding *g, unsigned flags)
{
    struct ct_err err = CT_ERR_INIT;
    int rc = guard_check(g->guard, flags, &g->report, &err);
    judge(g, rc, &err);
}

/* The executable of a process that waits for its open, for the audit: "" where it can't be seen. */
static void name_exe(pid_t pid, char *out, size_t cap)
{
    char path[32];
    (void)snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
    ssize_t n = readlink(path, out, cap - 1);
    out[n > 0 ? n : 0] = '\0';
}

static void answer_admit(struct kvfs_guarding *g)
{
    struct ct_err err = CT_ERR_INIT;
    int got = g->sealed ? ct_err_set(&err, CT_SEALED, "sealed")
                        : guard_admit(g->guard, g->in.pid, &g->report, &err);
    const char *why = err.msg;
    if (got == 0 && g->report.count) {
        why = g->report.findings[0].text;
    }
    g->out.good = got == 1;
    if (got == 1) {
        name_exe(g->in.pid, g->out.text, sizeof(g->out.text));
    } else {
        (void)snprintf(g->out.text, sizeof(g->out.text), "%s", why);
    }
}

static void answer_check(struct kvfs_guarding *g)
{
    check(g, GUARD_FULL);
    json_t *wire = guard_report_wire(g->profile, &g->report);
    char *text = wire ? json_dumps(wire, JSON_COMPACT) : NULL;
    g->out.good = text && strlen(text) < sizeof(g->out.text);
    (void)snprintf(g->out.text, sizeof(g->out.text), "%s", text ? text : "");
    free(text);
    json_decref(wire);
}

/* False once the worker is gone, or says that it goes: one that does so and serves on is ended, as
 * one without a link. */
static bool take(struct kvfs_guarding *g)
{
    struct ct_err err = CT_ERR_INIT;
    if (kvfs_guard_recv(g->ours, &g->in, &err) != 1) {
        if (err.code == CT_MALFORMED) {
            seal(g, err.msg);
        }
        return false;
    }
    uint32_t number = g->in.number;
    if (g->in.type == KVFS_GUARD_LEAVE) {
        (void)shutdown(g->ours, SHUT_RDWR);
        return false;
    }
    if (g->in.type == KVFS_GUARD_ADMIT) {
        answer_admit(g);
    } else {
        answer_check(g);
    }
    g->out.number = number;
    (void)send_out(g, KVFS_GUARD_ANSWER);
    return true;
}

static void take_added(struct kvfs_guarding *g)
{
    struct added one = {0};
    struct ct_err err = CT_ERR_INIT;
    if (read(g->added[0], &one, sizeof(one)) == sizeof(one) &&
        (one.tool ? guard_add_tool(g->guard, one.pid, &err)
                  : guard_add_own(g->guard, one.pid, &err)) &&
        err.code != CT_NOTFOUND) {
        ct_log(CT_LOG_WARN, "%s", err.msg);
    }
}

/* That there is a guard, which sees to it that everything is taken back if need be. How long to
 * wait for the next event. */
static int tell_mounter(struct kvfs_guarding *g)
{
    int ms = g->sealed ? -1 : guard_timeout_ms(g->guard);
    if (!g->remote) {
        return ms;
    }
    if (ct_now_ms() - g->told_ms >= TELL_MS / 2) { /* the next turn may be a whole one away */
        g->told_ms = ct_now_ms();
        kvfs_remote_alive(g->remote);
    }
    return ms < 0 || ms > TELL_MS ? TELL_MS : ms;
}

static void *watch(void *arg)
{
    struct kvfs_guarding *g = arg;
    for (;;) {
        int ms = tell_mounter(g);
        struct pollfd p[] = {{.fd = g->sealed ? -1 : guard_pollfd(g->guard), .events = POLLIN},
                             {.fd = g->added[0], .events = POLLIN},
                             {.fd = g->ours, .events = POLLIN}};
        int n = poll(p, 3, ms);
        if (n < 0 && errno != EINTR) {
            seal(g, "it can't wait for events");
        }
        if (p[1].revents) {
            take_added(g); /* first: who asks to be admitted may be one of them */
        }
        if (!g->sealed && (p[0].revents || guard_timeout_ms(g->guard) == 0)) {
            check(g, p[0].revents ? GUARD_WOKEN : 0);
        }
        if (p[2].revents && !take(g)) {
            if (!g->sealed) { /* else that was told, and goes into the audit once */
                (void)eventfd_write(g->sealed_fd, 1); /* a worker that nobody guards has to end */
            }
            return NULL;
        }
    }
}

int kvfs_guarding_start(struct kvfs_guarding *g, struct ct_err *err)
{
    pthread_t thread;
    if (!g) {
        return 0;
    }
    int sys = pthread_create(&thread, NULL, watch, g);
    if (sys) {
        return ct_err_sys(err, sys, "the guard's thread");
    }
    (void)pthread_detach(thread);
    return 0;
}
