/*
 * The one log sink. Lines are UTF-8 without a newline; control characters in them (names come
 * from hostile files) are replaced. Thread-safe. Nothing secret is ever passed to it.
 */
#ifndef CT_BASE_LOG_H
#define CT_BASE_LOG_H

#include <stdint.h>

enum ct_level { CT_LOG_ERROR, CT_LOG_WARN, CT_LOG_INFO, CT_LOG_DEBUG };

typedef void (*ct_log_fn)(void *ctx, enum ct_level level, const char *line);

/* Replaces the sink (default: "kvfs: LEVEL: line" to stderr). Not thread-safe: call at start. */
void ct_log_set_sink(ct_log_fn fn, void *ctx);
void ct_log_set_level(enum ct_level most);

void ct_log(enum ct_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* What the default sink does, for sinks that add to it. */
void ct_log_to_stderr(enum ct_level level, const char *line);

/* A token bucket for lines that a reader can provoke. Zero-initialised; thread-safe. */
struct ct_ratelimit {
    int64_t window_start_ms;
    unsigned in_window;
    unsigned suppressed;
};

/* 1 if a line may be written now (at most `per_second` a second); *missed is how many were
 * swallowed since the last one that was. */
int ct_ratelimit_take(struct ct_ratelimit *rl, unsigned per_second, unsigned *missed);

#endif
