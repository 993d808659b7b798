#include "kvfs/mount/logsink.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "format/base/log.h"

enum { LINE_MAX_BYTES = 1000, DRAIN_TURNS = 64 };

static struct {
    int fd; /* -1: syslog or stderr */
    bool foreground;
    const char *mountpoint;
    char line[LINE_MAX_BYTES + 1]; /* of the worker, as far as it has come */
    size_t len;
    char last_words[LINE_MAX_BYTES + 1];
} sink = {.fd = -1, .mountpoint = ""};

static const struct {
    const char *name;
    int priority;
} levels[] = {
    [CT_LOG_ERROR] = {"error", LOG_ERR},
    [CT_LOG_WARN] = {"warning", LOG_WARNING},
    [CT_LOG_INFO] = {"info", LOG_INFO},
    [CT_LOG_DEBUG] = {"debug", LOG_DEBUG},
};

int kvfs_logsink_open(const char *file, bool foreground, const char *mountpoint, struct ct_err *err)
{
    sink.foreground = foreground;
    sink.mountpoint = mountpoint;
    if (file) {
        sink.fd = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0640);
        if (sink.fd < 0) {
            return ct_err_sys(err, errno, "log file %s", file);
        }
    } else if (!foreground) {
        openlog("kvfs", LOG_PID | LOG_NDELAY, LOG_DAEMON);
    }
    return 0;
}

static void to_file(enum ct_level level, const char *line)
{
    char out[2 * LINE_MAX_BYTES];
    char when[32] = "";
    time_t now = time(NULL);
    struct tm tm;
    if (gmtime_r(&now, &tm)) {
        (void)strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm);
    }
    int n = snprintf(out, sizeof(out), "%s %.400s: %s: %.1000s\n", when, sink.mountpoint,
                     levels[level].name, line);
    ssize_t ignored = n > 0 ? write(sink.fd, out, (size_t)n) : 0;
    (void)ignored;
}

void kvfs_logsink_audit(const char *line, size_t n)
{
    if (sink.fd >= 0) {
        (void)dprintf(sink.fd, "audit: %.*s\n", (int)n, line);
    } else if (sink.foreground) {
        (void)fprintf(stderr, "kvfs: audit: %.*s\n", (int)n, line);
    } else {
        syslog(LOG_INFO, "audit: %.*s", (int)n, line);
    }
}

static void emit(void *ctx, enum ct_level level, const char *line)
{
    (void)ctx;
    if (sink.fd >= 0) {
        to_file(level, line);
    } else if (sink.foreground) {
        ct_log_to_stderr(level, line);
    } else {
        syslog(levels[level].priority, "%.400s: %s", sink.mountpoint, line);
    }
}

void kvfs_logsink_start(void)
{
    ct_log_set_sink(emit, NULL);
}

/* "kvfs: LEVEL: line", as ct_log_to_stderr() writes, or anything else (a sanitizer, libc). */
static void forward_line(void)
{
    static const char prefix[] = "kvfs: ";
    const char *line = sink.line;
    sink.line[sink.len] = '\0';
    sink.len = 0;
    for (char *p = sink.line; *p; p++) {
        *p = (unsigned char)*p < 0x20 || *p == 0x7f ? '?' : *p;
    }
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        size_t n = strlen(levels[i].name);
        const char *rest = line + sizeof(prefix) - 1;
        if (strncmp(line, prefix, sizeof(prefix) - 1) == 0 &&
            strncmp(rest, levels[i].name, n) == 0 && strncmp(rest + n, ": ", 2) == 0) {
            emit(NULL, (enum ct_level)i, rest + n + 2);
            return;
        }
    }
    memcpy(sink.last_words, sink.line, sizeof(sink.last_words));
    emit(NULL, CT_LOG_WARN, line);
}

void kvfs_logsink_forward(const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] != '\n') {
            sink.line[sink.len++] = bytes[i];
        }
        if (bytes[i] == '\n' || sink.len == LINE_MAX_BYTES) {
            forward_line();
        }
    }
    if (!bytes && sink.len > 0) {
        forward_line();
    }
}

const char *kvfs_logsink_last_words(void)
{
    return sink.last_words;
}

void kvfs_logsink_drain(int *fd)
{
    char text[4096];
    ssize_t n = 1;
    for (int i = 0; i < DRAIN_TURNS && (n = read(*fd, text, sizeof(text))) > 0; i++) {
        kvfs_logsink_forward(text, (size_t)n);
    }
    if (n == 0) {
        kvfs_logsink_forward(NULL, 0);
        close(*fd);
        *fd = -1;
    }
}
