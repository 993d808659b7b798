#include "format/base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static ct_log_fn sink;
static void *sink_ctx;
static enum ct_level most_level = CT_LOG_INFO;
static pthread_mutex_t rate_lock = PTHREAD_MUTEX_INITIALIZER;

static const char *const names[] = {"error", "warning", "info", "debug"};

void ct_log_set_sink(ct_log_fn fn, void *ctx)
{
    sink = fn;
    sink_ctx = ctx;
}

void ct_log_set_level(enum ct_level most)
{
    most_level = most;
}

void ct_log_to_stderr(enum ct_level level, const char *line)
{
    char out[1200];
    int n = snprintf(out, sizeof(out), "kvfs: %s: %s\n", names[level], line);
    if (n >= (int)sizeof(out)) {
        n = (int)sizeof(out) - 1;
        out[n - 1] = '\n';
    }
    if (n > 0) {
        /* One write, so that lines of several processes do not mix; nobody to tell if it fails. */
        ssize_t ignored = write(STDERR_FILENO, out, (size_t)n);
        (void)ignored;
    }
}

void ct_log(enum ct_level level, const char *fmt, ...)
{
    if (level > most_level) {
        return;
    }
    char line[1024];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    for (char *p = line; *p; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f) {
            *p = '?';
        }
    }
    if (sink) {
        sink(sink_ctx, level, line);
    } else {
        ct_log_to_stderr(level, line);
    }
}

int ct_ratelimit_take(struct ct_ratelimit *rl, unsigned per_second, unsigned *missed)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    int64_t ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    int take = 0;
    pthread_mutex_lock(&rate_lock);
    if (rl->window_start_ms == 0 || ms - rl->window_start_ms >= 1000) {
        rl->window_start_ms = ms ? ms : 1;
        rl->in_window = 0;
    }
    if (rl->in_window < per_second) {
        rl->in_window++;
        take = 1;
        *missed = rl->suppressed;
        rl->suppressed = 0;
    } else {
        rl->suppressed++;
    }
    pthread_mutex_unlock(&rate_lock);
    return take;
}
