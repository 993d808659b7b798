#include "kvfs/publish/apikey.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "format/base/file.h"
#include "format/base/log.h"
#include "kvfs/args.h"

enum { OPT_KEY = 0x300, OPT_FD };

static const struct argp_option options[] = {
    {"api-key", OPT_KEY, "FILE", 0, "The API key is in FILE (default: KVFS_API_KEY, or asked for)",
     0},
    {"api-key-fd", OPT_FD, "N", 0, "The API key comes from descriptor N", 0},
    {0},
};

/* A key where a file's name belongs is out: it must be neither used nor said again. */
static bool looks_like_key(const char *arg)
{
    return strncmp(arg, "kvfs_publish_", 13) == 0 || strncmp(arg, "kvfs_deploy_", 12) == 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct kvfs_apikey_arg *a = state->input;
    uint64_t fd = 0;
    switch (key) {
    case OPT_KEY:
        if (looks_like_key(arg)) {
            argp_error(state, "--api-key takes a file's name. Everybody on this machine can read a "
                              "command line: have this key revoked");
        }
        a->file = arg;
        break;
    case OPT_FD:
        if (kvfs_parse_u64(arg, 1 << 20, &fd)) {
            argp_error(state, "--api-key-fd is the number of a descriptor");
        }
        a->fd = (int)fd;
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    if (a->file && a->fd >= 0) {
        argp_error(state, "--api-key and --api-key-fd exclude each other");
    }
    return 0;
}

const struct argp kvfs_apikey_argp = {.options = options, .parser = parse};

/* A line, and no more of a pipe than that line. */
static int read_line(int fd, char *out, size_t cap, struct ct_err *err)
{
    size_t n = 0;
    for (;;) {
        ssize_t got = read(fd, out + n, 1);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return ct_err_sys(err, errno, "the API key");
        }
        if (got == 0 || out[n] == '\n') {
            out[n] = '\0';
            return 0;
        }
        if (++n == cap) {
            return ct_err_set(err, CT_MALFORMED, "the API key is too long to be one");
        }
    }
}

static int read_file(const char *path, char *out, size_t cap, struct ct_err *err)
{
    struct stat st;
    ct_autofd fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0 || fstat(fd, &st)) {
        return ct_err_sys(err, errno, "API key file %s", path);
    }
    if (S_ISREG(st.st_mode) && (st.st_mode & S_IROTH)) {
        ct_log(CT_LOG_WARN, "API key file %s may be read by everybody on this machine", path);
    }
    return read_line(fd, out, cap, err) ? ct_err_wrap(err, "API key file %s", path) : 0;
}

enum { CTRL_C = 3, CTRL_D = 4, CTRL_U = 21, BACKSPACE = 8, DELETE = 127 };

/* The terminal is raw, so that no signal leaves it without echo. */
static int type_line(char *out, size_t cap, struct ct_err *err)
{
    size_t n = 0;
    for (;;) {
        char c = 0;
        ssize_t got = read(STDIN_FILENO, &c, 1);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0 || c == CTRL_C || c == CTRL_D) {
            return ct_err_set(err, CT_NOKEY, "no API key was typed");
        }
        if (c == '\n' || c == '\r') {
            out[n] = '\0';
            return 0;
        }
        if (c == BACKSPACE || c == DELETE) {
            n -= n > 0;
        } else if (c == CTRL_U) {
            n = 0;
        } else if (n + 1 < cap) {
            out[n++] = c;
        }
    }
}

static int ask(char *out, size_t cap, struct ct_err *err)
{
    struct termios before;
    if (tcgetattr(STDIN_FILENO, &before)) {
        return ct_err_sys(err, errno, "the terminal");
    }
    struct termios quiet = before;
    quiet.c_lflag &= ~(tcflag_t)(ECHO | ICANON | ISIG);
    quiet.c_cc[VMIN] = 1;
    quiet.c_cc[VTIME] = 0;
    if (tcsetattr(STDIN_FILENO, TCSAFLUSH, &quiet)) {
        return ct_err_sys(err, errno, "the terminal");
    }
    (void)fputs("API key: ", stderr);
    int rc = type_line(out, cap, err);
    (void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &before);
    (void)fputc('\n', stderr);
    return rc;
}

static int check(const char *key, struct ct_err *err)
{
    size_t n = strlen(key);
    if (n == 0) {
        return ct_err_set(err, CT_NOKEY, "no API key: it is empty");
    }
    for (size_t i = 0; i < n; i++) {
        if (key[i] <= ' ' || key[i] > '~') {
            return ct_err_set(err, CT_MALFORMED, "this is no API key");
        }
    }
    return 0;
}

static int obtain(const struct kvfs_apikey_arg *arg, const char *env, char *out, size_t cap,
                  struct ct_err *err)
{
    if (arg->file && strcmp(arg->file, "-") != 0) {
        return read_file(arg->file, out, cap, err);
    }
    if (arg->file || arg->fd >= 0) {
        return read_line(arg->file ? STDIN_FILENO : arg->fd, out, cap, err);
    }
    if (env && *env) {
        if (strlen(env) >= cap) {
            return ct_err_set(err, CT_MALFORMED, "the API key is too long to be one");
        }
        memcpy(out, env, strlen(env) + 1);
        return 0;
    }
    return isatty(STDIN_FILENO) ? ask(out, cap, err) : read_line(STDIN_FILENO, out, cap, err);
}

struct ct_secret *kvfs_apikey_read(const struct kvfs_apikey_arg *arg, struct ct_err *err)
{
    char *env = getenv(KVFS_APIKEY_ENV);
    struct ct_secret *key = ct_secret_new(KVFS_APIKEY_MAX + 1, err);
    int rc = -1;
    if (key) {
        char *text = (char *)ct_secret_bytes(key);
        rc = obtain(arg, env, text, KVFS_APIKEY_MAX, err);
        text[strcspn(text, "\r")] = '\0';
        rc = rc ? rc : check(text, err);
    }
    if (env) {
        ct_wipe(env, strlen(env));
        (void)unsetenv(KVFS_APIKEY_ENV);
    }
    if (rc) {
        ct_secret_free(key);
        key = NULL;
    }
    return key;
}
