#include "kvfs/mount/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "format/base/clock.h"
#include "format/base/log.h"
#include "kvfs/kvfs.h"
#include "kvfs/mount/guarding.h"
#include "kvfs/mount/keeper.h"
#include "kvfs/mount/limits.h"
#include "kvfs/mount/logsink.h"
#include "kvfs/mount/refuse.h"
#include "kvfs/mount/requests.h"
#include "kvfs/mount/tmpfs.h"
#include "kvfs/mount/turns.h"
#include "kvfs/mount/warmer.h"
#include "kvfs/term.h"

enum { UNMOUNTED_MS = 3000, WARMER_MS = 500, DYING_MS = 500, LOOK_MS = 1000 };
/* Without progress; in all, whatever a worker says of its progress. */
enum { SEALING_MS = 5000, SEALING_LONGEST_MS = 600000 };
enum { LATE_MS = 2000 }; /* may a worker be that has to end a lease */

enum stage {
    STARTING, /* the worker has not said READY */
    RUNNING,
    SEALED,    /* goes on answering, with errors */
    UNMOUNTED, /* by us: the worker will end by itself */
    SEALING,   /* told to seal and end */
    KILLED,
    ABORTED, /* and it did not die: the connection has been ended */
    UNDEAD,  /* not even of that */
};

struct supervisor {
    struct kvfs_job *job;
    struct kvfs_config *config;
    struct kvfs_mounted mounted;
    struct kvfs_worker worker;
    int clone_fd;             /* -1: the worker's death revokes nothing */
    struct kvfs_tmpfs *tmpfs; /* NULL: there is no resident mode */
    int status_fd;            /* tells the waiting `kvfs mount` its exit code; -1 when done */
    int signal_fd;
    enum stage stage;
    int64_t deadline; /* of the stage; 0: none */
    int64_t looked;
    uint64_t progress; /* of sealing, when the stage began or was prolonged */
    int64_t longest;   /* no stage is prolonged beyond; 0: none was yet */
    struct kvfs_warmer warmer;
    bool ready;                     /* the worker has said READY */
    struct kvfs_guarding *guarding; /* NULL: no guard */
    bool sealed;                    /* the worker has taken everything back */
    bool stopped;                   /* on demand, so that the worker's end is no failure */
    struct kvfs_request request;
    struct kvfs_requests requests;
};

static void enter(struct supervisor *s, enum stage stage, int64_t ms)
{
    s->stage = stage;
    s->deadline = ms ? ct_now_ms() + ms : 0;
    s->progress = __atomic_load_n(&s->worker.shared->progress, __ATOMIC_RELAXED);
}

/* A worker that still takes things back is not to be killed for it: much takes long. */
static bool prolong(struct supervisor *s)
{
    uint64_t before = s->progress;
    int64_t now = ct_now_ms();
    s->longest = s->longest ? s->longest : now + SEALING_LONGEST_MS;
    if (now < s->longest) {
        enter(s, s->stage, SEALING_MS);
    }
    return now < s->longest && s->progress != before;
}

/* ---- The waiting `kvfs mount` ---- */

/* Gives it its exit code and lets go of the terminal. Whether it was still there. */
static bool report(struct supervisor *s, char code)
{
    if (s->status_fd < 0) {
        return true;
    }
    bool told = write(s->status_fd, &code, 1) == 1;
    close(s->status_fd);
    s->status_fd = -1;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd <= STDERR_FILENO && null >= 0; fd++) {
        (void)dup2(null, fd);
    }
    if (null > STDERR_FILENO) {
        close(null);
    }
    return told;
}

/* ---- Ways to end ---- */

static void end_worker(struct supervisor *s)
{
    if (s->stage < KILLED) {
        kvfs_worker_kill(&s->worker);
        enter(s, KILLED, DYING_MS);
    }
}

/* EOF on its socket tells the worker to seal and to end. */
static void seal_worker(struct supervisor *s)
{
    (void)shutdown(s->worker.control, SHUT_RDWR);
    enter(s, SEALING, SEALING_MS);
}

static void unmount(void *ctx)
{
    struct supervisor *s = ctx;
    struct ct_err err = CT_ERR_INIT;
    if (kvfs_mounter_umount(&s->mounted, true, &err)) {
        ct_log(CT_LOG_ERROR, "can't unmount: %s", err.msg);
    }
}

/* The worker is dead, or its connection has ended. */
static void refuse(struct supervisor *s)
{
    if (s->tmpfs) {
        kvfs_tmpfs_revoke(kvfs_tmpfs_dir(s->tmpfs));
    }
    if (s->clone_fd >= 0) {
        kvfs_refuse(s->clone_fd, s->worker.shared, unmount, s);
    } else {
        unmount(s);
    }
}

static void unmount_or_seal(struct supervisor *s)
{
    struct ct_err err = CT_ERR_INIT;
    if ((s->stage == RUNNING || s->stage == SEALED) &&
        kvfs_mounter_umount(&s->mounted, s->sealed, &err) == 0) {
        enter(s, UNMOUNTED, UNMOUNTED_MS);
        return;
    }
    ct_log(CT_LOG_WARN, "stopping although it is in use: nothing stays readable");
    kvfs_audit_note(s->job->audit, "stop", "stopped although it was in use: sealed");
    seal_worker(s);
}

static void reap_warmer(struct supervisor *s)
{
    kvfs_warmer_reap(&s->warmer);
    if (s->stopped && s->stage == RUNNING) {
        unmount_or_seal(s);
    }
}

/* `kvfs warm` would keep the mount busy: it goes first. It may be waiting for the worker, and that
 * one for us, so that we don't wait for it here. */
static void stop(struct supervisor *s)
{
    s->stopped = true;
    if (s->stage > SEALED) {
        return;
    }
    if (s->warmer.fd >= 0 && s->stage == RUNNING) {
        kvfs_warmer_signal(&s->warmer, SIGTERM);
        enter(s, RUNNING, WARMER_MS);
        return;
    }
    unmount_or_seal(s);
}

static void on_deadline(struct supervisor *s)
{
    switch (s->stage) {
    case RUNNING: /* the warmer is still there */
        kvfs_warmer_signal(&s->warmer, SIGKILL);
        unmount_or_seal(s);
        break;
    case SEALED:
        if (prolong(s)) {
            break;
        }
        ct_log(CT_LOG_ERROR, "the worker does not seal: killing it");
        s->sealed = true; /* by us, once it is dead */
        end_worker(s);
        break;
    case UNMOUNTED: /* by us, but a copy lives on in another mount namespace */
        seal_worker(s);
        break;
    case SEALING:
        if (!prolong(s)) {
            ct_log(CT_LOG_ERROR, "the worker does not end: killing it");
            end_worker(s);
        }
        break;
    case KILLED:
        ct_log(CT_LOG_ERROR, "the worker can't end: ending the connection");
        kvfs_mounter_abort(&s->mounted);
        enter(s, ABORTED, DYING_MS);
        break;
    case ABORTED: /* nothing is in flight any more: what is left to do needs no dead worker */
        s->stage = UNDEAD;
        break;
    default:
        break;
    }
}

/* ---- Requests ---- */

static void answer(struct supervisor *s)
{
    struct ct_err err = CT_ERR_INIT;
    if (kvfs_request_answer(&s->requests, &s->request, s->worker.control, &err)) {
        ct_log(CT_LOG_ERROR, "%s: ending the worker", err.msg);
        end_worker(s);
    }
}

/* One that was stopped could not do what it is told. In one that was not, SIGCONT would trap a
 * thread that somebody traces, and with it whoever waits for that. */
static void wake_worker(const struct supervisor *s)
{
    siginfo_t info = {.si_pid = 0};
    if (waitid(P_PIDFD, (id_t)s->worker.pidfd, &info, WSTOPPED | WNOHANG | WNOWAIT) ||
        info.si_pid) {
        (void)syscall(SYS_pidfd_send_signal, s->worker.pidfd, SIGCONT, NULL, 0);
    }
}

static void on_guard(struct supervisor *s)
{
    eventfd_t n = 0;
    (void)eventfd_read(kvfs_guarding_fd(s->guarding), &n);
    if (*kvfs_guarding_why(s->guarding)) { /* else the link ended, as it does with the worker */
        kvfs_audit_note(s->job->audit, "drift", kvfs_guarding_why(s->guarding));
    }
    kvfs_warmer_signal(&s->warmer, SIGKILL);
    wake_worker(s);
    if (s->stage <= SEALED && !s->sealed) {
        enter(s, SEALED, SEALING_MS);
    }
}

static void on_sealed(struct supervisor *s)
{
    s->sealed = true;
    kvfs_warmer_signal(&s->warmer, SIGKILL);
    if (!s->ready) {
        kvfs_tell("mount", "sealed: ", s->request.text);
        s->stopped = true;
        seal_worker(s);
        return;
    }
    if (s->stage <= SEALED) {
        enter(s, SEALED, 0);
    }
    if (s->stopped || s->job->options->exit_on_seal) {
        stop(s);
    }
}

static void on_ready(struct supervisor *s)
{
    kvfs_mounter_set_readahead(&s->mounted, s->config->readahead_kb);
    if (*s->request.text) {
        kvfs_tell("mount", "", s->request.text);
    }
    kvfs_logsink_start();
    ct_log(CT_LOG_INFO, "mounted %s", s->config->source);
    s->ready = true;
    enter(s, RUNNING, 0);
    kvfs_turns_first(0);
    kvfs_turns_first(s->worker.pid);
    kvfs_guarding_add(s->guarding, s->worker.pid, false);
    if (!report(s, KVFS_DONE)) {
        stop(s); /* interrupted */
    } else if (s->job->options->warm) {
        kvfs_warmer_start(&s->warmer, s->config->mountpoint, s->guarding);
    }
}

static void on_control(struct supervisor *s)
{
    struct ct_err err = CT_ERR_INIT;
    int rc = kvfs_control_recv(s->worker.control, &s->request, sizeof(s->request), NULL, &err);
    if (rc == 0) {
        if (s->stage <= SEALED) {
            enter(s, SEALING, SEALING_MS); /* it is ending; the pidfd will tell how */
        }
        return;
    }
    if (rc < 0 || !kvfs_request_is_sound(&s->request)) {
        ct_log(CT_LOG_ERROR, "the worker sent something that no worker sends: ending it");
        end_worker(s);
        return;
    }
    switch (s->request.type) {
    case KVFS_REQ_READY:
        if (s->stage == STARTING) {
            on_ready(s);
        }
        return;
    case KVFS_REQ_SEALED:
        on_sealed(s);
        return;
    case KVFS_REQ_FAILED:
        kvfs_tell("mount", "", s->request.text);
        s->stopped = true;
        seal_worker(s);
        return;
    default:
        answer(s);
    }
}

/* ---- The loop ---- */

/* The exit code of the supervisor. */
static int on_worker_end(struct supervisor *s)
{
    char how[64];
    int status = 0;
    if (waitpid(s->worker.pid, &status, WNOHANG) == 0) {
        ct_log(CT_LOG_ERROR, "the worker can't end: a thread of it waits in the kernel");
        status = SIGKILL;
    }
    kvfs_warmer_signal(&s->warmer, SIGKILL); /* nobody will answer it */
    if (s->worker.said >= 0) {
        kvfs_logsink_drain(&s->worker.said);
    }
    bool clean = status == 0 && !kvfs_mounter_is_mounted(&s->mounted);
    kvfs_worker_describe_end(status, how);
    if (!clean) {
        refuse(s);
    }
    bool failed = s->stopped && !s->ready && WIFEXITED(status); /* has said so itself */
    kvfs_audit_file_worker_ended(s->job->audit, clean || failed ? NULL : how);
    if (!kvfs_mounter_is_mounted(&s->mounted)) {
        kvfs_mounter_forget(&s->mounted);
    }
    int sealed = s->sealed ? (int)s->job->options->exit_on_seal : KVFS_DONE;
    if (s->ready && (clean || s->stopped || sealed)) {
        ct_log(CT_LOG_INFO, "unmounted");
        return sealed;
    }
    if (s->stopped) {
        return KVFS_FAILED; /* why has been told */
    }
    ct_log(CT_LOG_ERROR, "the worker died (%s)%s", how, s->ready ? ": refused and unmounted" : "");
    if (!s->ready && *kvfs_logsink_last_words()) {
        kvfs_tell("mount", "its last words: ", kvfs_logsink_last_words());
    }
    return KVFS_FAILED;
}

static int timeout(const struct supervisor *s)
{
    if (!s->deadline) {
        return s->stage == RUNNING || s->stage == SEALED ? LOOK_MS : -1;
    }
    int64_t left = s->deadline - ct_now_ms();
    return left < 0 ? 0 : (int)left;
}

static bool is_lease_over(const struct supervisor *s)
{
    int64_t ends = (int64_t)__atomic_load_n(&s->worker.shared->lease_ends, __ATOMIC_RELAXED);
    return ends && ct_boot_ms() - LATE_MS > ends;
}

/* What nobody tells us. */
static void look(struct supervisor *s)
{
    s->looked = ct_now_ms();
    bool sealed = __atomic_load_n(&s->worker.shared->sealed, __ATOMIC_RELAXED);
    if (s->stage == RUNNING && sealed) {
        enter(s, SEALED, SEALING_MS);
    } else if (s->stage == RUNNING && is_lease_over(s)) {
        ct_log(CT_LOG_ERROR, "a lease is over, and the worker does not end it: killing it");
        kvfs_audit_note(s->job->audit, "lease-end", "the worker did not end it: killed");
        s->sealed = true; /* by us, once it is dead */
        end_worker(s);
    } else if (s->stage <= SEALED && kvfs_worker_is_half_dead(s->worker.pid)) {
        end_worker(s); /* others killed it: its pidfd tells only of a whole end */
    }
}

static int loop(struct supervisor *s)
{
    for (;;) {
        struct pollfd p[] = {
            {.fd = s->stage <= UNMOUNTED ? s->worker.control : -1, .events = POLLIN},
            {.fd = s->worker.said, .events = POLLIN},
            {.fd = s->signal_fd, .events = POLLIN},
            {.fd = s->status_fd, .events = 0}, /* POLLERR: nobody waits for us any more */
            {.fd = s->worker.pidfd, .events = POLLIN},
            {.fd = s->warmer.fd, .events = POLLIN},
            {.fd = kvfs_guarding_fd(s->guarding), .events = POLLIN},
            {.fd = s->mounted.remote && s->stage <= UNMOUNTED ? s->mounted.comm_fd : -1},
        };
        int n = poll(p, sizeof(p) / sizeof(p[0]), timeout(s));
        if (n < 0 && errno != EINTR) {
            end_worker(s);
        }
        if (n == 0 && s->deadline) {
            on_deadline(s);
        }
        if (s->stage == UNDEAD) {
            return on_worker_end(s);
        }
        if (!s->deadline && ct_now_ms() - s->looked >= LOOK_MS / 2) {
            look(s);
        }
        if (n <= 0) {
            continue;
        }
        if (p[1].revents) {
            kvfs_logsink_drain(&s->worker.said);
        }
        if (p[0].revents) {
            on_control(s);
        }
        if (p[6].revents) {
            on_guard(s);
        }
        struct signalfd_siginfo info;
        if (p[2].revents && read(s->signal_fd, &info, sizeof(info)) > 0) {
            stop(s);
        }
        if (p[3].revents && s->status_fd >= 0) {
            close(s->status_fd);
            s->status_fd = -1;
            stop(s);
        }
        if (p[4].revents) {
            return on_worker_end(s);
        }
        if (p[5].revents && s->warmer.fd >= 0) {
            reap_warmer(s);
        }
        if (p[7].revents && s->stage <= UNMOUNTED) {
            ct_log(CT_LOG_ERROR, "the mounter is gone: nothing stays readable");
            seal_worker(s);
        }
    }
}

/* Without it, files are served through the page cache. */
static void make_tmpfs(struct supervisor *s)
{
    struct ct_err err = CT_ERR_INIT;
    enum kvfs_cache cache = s->config->cache;
    if ((cache == KVFS_CACHE_AUTO || cache == KVFS_CACHE_RESIDENT) && s->clone_fd >= 0) {
        s->tmpfs = kvfs_tmpfs_new(s->clone_fd, s->config->resident, cache == KVFS_CACHE_AUTO, &err);
    }
    if (!s->tmpfs) {
        s->config->resident = 0;
    }
    if (err.code) {
        ct_log(cache == KVFS_CACHE_RESIDENT ? CT_LOG_WARN : CT_LOG_INFO, "no resident mode: %s",
               err.msg);
    }
}

static int start(struct supervisor *s, struct ct_err *err)
{
    const struct kvfs_mount_options *o = s->job->options;
    struct ct_err why = CT_ERR_INIT;
    const struct kvfs_locks locks = kvfs_raise_limits(s->config->memory);
    if (kvfs_guarding_new(s->job->profile, s->config, locks, &s->guarding, err) ||
        kvfs_mounter_mount(s->config, o->noexec, &s->mounted, err)) {
        return -1;
    }
    s->clone_fd =
        s->mounted.remote ? s->mounted.clone_fd : kvfs_refuse_clone(s->mounted.fuse_fd, &why);
    if (s->clone_fd < 0) {
        ct_log(CT_LOG_WARN, "should the worker die, cached pages stay readable: %s", why.msg);
    }
    make_tmpfs(s);
    s->config->may_store = kvfs_mounter_can_abort(&s->mounted);
    s->requests = (struct kvfs_requests){.job = s->job,
                                         .tmpfs = s->tmpfs,
                                         .couriers = {.config = s->config, .ca_fd = s->job->ca_fd}};
    const struct kvfs_start how = {.config = s->config,
                                   .keys = s->job->keys,
                                   .mounted = &s->mounted,
                                   .guard_link = kvfs_guarding_link(s->guarding),
                                   .measured = s->job->measured,
                                   .measured_count = s->job->measured_count};
    if (kvfs_guarding_mounted(s->guarding, &s->mounted, err) ||
        kvfs_worker_start(&how, &s->worker, err)) {
        unmount(s);
        return -1;
    }
    /* A dup of the worker's descriptor would keep its unanswered requests alive. */
    close(s->mounted.fuse_fd);
    kvfs_key_files_close(s->job->keys);
    int dir = s->tmpfs ? kvfs_tmpfs_dir(s->tmpfs) : -1;
    kvfs_guarding_linked(s->guarding);
    const int foreign[] = {s->worker.control,
                           s->worker.said,
                           s->signal_fd,
                           s->status_fd,
                           s->job->source_fd,
                           s->job->key_dir_fd,
                           s->job->state_fd,
                           s->job->ca_fd,
                           kvfs_guarding_end(s->guarding),
                           kvfs_audit_file_fd(s->job->audit)};
    pid_t keeper =
        kvfs_keeper_start(&s->mounted, &s->worker, s->clone_fd, dir, s->config->foreground, foreign,
                          sizeof(foreign) / sizeof(foreign[0]), err);
    if (keeper < 0 || kvfs_guarding_start(s->guarding, err)) {
        unmount(s);
        return -1;
    }
    kvfs_guarding_add(s->guarding, keeper, false);
    return 0;
}

static int supervise(struct kvfs_job *job, int status_fd)
{
    struct ct_err err = CT_ERR_INIT;
    sigset_t signals;
    static struct supervisor the_one, *s = &the_one; /* what it holds goes with the process */
    s->job = job;
    s->config = &job->options->config;
    s->status_fd = status_fd;
    s->worker.pidfd = s->worker.said = s->clone_fd = s->warmer.fd = -1;
    (void)prctl(PR_SET_NAME, "kvfs-supervisor", 0, 0, 0);
    if (chdir("/")) {
        perror("kvfs mount: /");
    }
    (void)signal(SIGPIPE, SIG_IGN);
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGHUP);
    (void)sigprocmask(SIG_BLOCK, &signals, NULL);
    s->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (start(s, &err)) {
        kvfs_tell("mount", "", err.msg);
        if (s->worker.pidfd < 0) {
            kvfs_audit_file_failed(job->audit, s->config->mountpoint, &err);
        }
        report(s, KVFS_FAILED);
        return KVFS_FAILED;
    }
    int rc = loop(s);
    report(s, (char)rc);
    kvfs_turns_before_leak_search();
    return rc;
}

/* In the background: the parent waits for a byte, its exit code. */
int kvfs_supervise(struct kvfs_job *job)
{
    int status[2];
    char code = KVFS_FAILED;
    if (job->options->config.foreground) {
        return supervise(job, -1);
    }
    if (pipe2(status, O_CLOEXEC)) {
        perror("kvfs mount: pipe");
        return KVFS_FAILED;
    }
    pid_t pid = fork();
    if (pid == 0) {
        close(status[0]);
        (void)setsid();
        exit(supervise(job, status[1])); /* NOLINT(concurrency-mt-unsafe) */
    }
    close(status[1]);
    if (pid < 0) {
        perror("kvfs mount: fork");
        return KVFS_FAILED;
    }
    ssize_t n;
    while ((n = read(status[0], &code, 1)) < 0 && errno == EINTR) {
    }
    if (n == 0) {
        (void)fputs("kvfs mount: the supervisor died\n", stderr);
    }
    return code;
}
