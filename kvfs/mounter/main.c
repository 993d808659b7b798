/*
 * kvfs-mounter: the one process that may mount, so that the daemon needs no privilege. It follows
 * its own configuration and nothing that a daemon says. See kvfs-mounter(8).
 */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "format/base/file.h"
#include "format/base/log.h"
#include "kvfs/mounter/mount.h"
#include "kvfs/mounter/peer.h"
#include "kvfs/mounter/session.h"

enum { DONE = 0, FAILED = 1, USAGE = 2, HELLO_MS = 5000, MISSING = 127 };

struct arguments {
    const char *config;
    bool preserve_fds;
    char **command; /* NULL: serve the socket */
};

const char *argp_program_version = "kvfs-mounter " KVFS_VERSION;

static const struct argp_option options[] = {
    {"preserve-fds", 'p', NULL, 0,
     "Run COMMAND with the connection as descriptor 3 (`runc run --preserve-fds 1 …`, `kvfs mount "
     "-o mounter=fd:3`) instead of listening at a socket; ends when it has ended",
     0},
    {0},
};

/* NOLINTNEXTLINE(readability-non-const-parameter): argp's */
static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct arguments *a = state->input;
    switch (key) {
    case 'p':
        a->preserve_fds = true;
        return 0;
    case ARGP_KEY_ARG:
        if (!a->config) {
            a->config = arg;
            return 0;
        }
        a->command = &state->argv[state->next - 1];
        state->next = state->argc;
        return 0;
    case ARGP_KEY_END:
        if (!a->config) {
            argp_error(state, "which configuration?");
        }
        if (a->preserve_fds != !!a->command) {
            argp_error(state, "a command goes with --preserve-fds, and only with that");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = options,
    .parser = parse,
    .args_doc = "CONFIG\n--preserve-fds CONFIG -- COMMAND [ARG...]",
    .doc = "Mount for a kvfs that has no privilege, as CONFIG says.",
};

static int block_signals(void)
{
    sigset_t signals;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &signals, NULL);
    return signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
}

static int complain(const struct ct_err *err)
{
    (void)fprintf(stderr, "kvfs-mounter: %s\n", err->msg);
    return err->code == CT_USAGE ? USAGE : FAILED;
}

/* ---- at a socket ---- */

static int serve(struct km_mounter *m)
{
    struct ct_err err = CT_ERR_INIT;
    m->listener = km_peer_listen(m->config, &err);
    if (m->listener < 0) {
        return complain(&err);
    }
    ct_log(CT_LOG_INFO, "listening at %s", m->config->socket);
    while (!m->stop) {
        struct pollfd p[] = {{.fd = m->listener, .events = POLLIN},
                             {.fd = m->signal_fd, .events = POLLIN}};
        if (poll(p, sizeof(p) / sizeof(p[0]), -1) < 0 && errno != EINTR) {
            break;
        }
        m->stop = p[1].revents != 0;
        int conn = p[0].revents && !m->stop ? km_peer_accept(m->listener, m->config) : -1;
        if (conn >= 0) {
            km_session(m, conn, HELLO_MS);
        }
    }
    (void)unlink(m->config->socket);
    return m->stop ? DONE : FAILED;
}

/* ---- for a command ---- */

static void exec_command(char **command, int conn)
{
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)signal(SIGPIPE, SIG_DFL);
    /* dup2() of a descriptor to itself would leave it CLOEXEC. */
    conn = fcntl(conn, F_DUPFD_CLOEXEC, KM_FIRST_FD + 1);
    if (dup2(conn, KM_FIRST_FD) >= 0) {
        (void)execvp(command[0], command);
    }
    (void)fprintf(stderr, "kvfs-mounter: %s: %s\n", command[0], strerror(errno));
    _exit(MISSING);
}

static int serve_command(struct km_mounter *m, char **command)
{
    struct ct_err err = CT_ERR_INIT;
    int other = -1;
    int status = 0;
    int conn = km_peer_pair(&other, &err);
    pid_t pid = conn < 0 ? -1 : fork();
    if (pid == 0) {
        exec_command(command, other);
    }
    if (pid < 0) {
        ct_err_sys(&err, errno, "%s", command[0]);
        return complain(&err);
    }
    close(other);
    km_session(m, conn, -1);
    if (m->stop) {
        (void)kill(pid, SIGTERM);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : FAILED;
}

int main(int argc, char **argv)
{
    static struct km_config config;
    struct arguments a = {0};
    struct ct_err err = CT_ERR_INIT;
    struct km_mounter m = {.config = &config, .listener = -1};
    if (argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &a)) {
        return USAGE;
    }
    (void)prctl(PR_SET_NAME, "kvfs-mounter", 0, 0, 0);
    int lock = km_config_read(a.config, &config, &err);
    if (lock >= 0 && !a.command && !*config.socket) {
        ct_err_set(&err, CT_USAGE, "%s: socket has to be there", a.config);
    }
    m.target = err.code ? -1 : km_target_open(config.target, &err);
    if (m.target < 0) {
        return complain(&err);
    }
    (void)signal(SIGPIPE, SIG_IGN);
    m.signal_fd = block_signals();
    return a.command ? serve_command(&m, a.command) : serve(&m);
}
