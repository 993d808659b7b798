/*
 * Progress of work that is counted in bytes: on a terminal a bar with rate and time left, otherwise
 * a line now and then. All of it goes to stderr. Also the place where a signal stops the work.
 */
#ifndef KVFS_PROGRESS_H
#define KVFS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "format/base/err.h"

/* One at a time. `quiet`: nothing is shown, but signals still stop the work. SIGINT, SIGTERM and
 * SIGHUP are caught from here on; the second one kills as usual. */
void kvfs_progress_start(uint64_t total, bool quiet);
/* What is being worked on; borrowed until the next call. */
void kvfs_progress_item(const char *name);
/* Fits ct_progress_fn; ctx is ignored. Thread-safe. Non-zero when the work is to stop. */
int kvfs_progress_add(void *ctx, uint64_t bytes);
/* Whether a signal came, and -1 with a sentence if so. */
bool kvfs_interrupted(void);
int kvfs_check_interrupted(struct ct_err *err);
/* A line on stdout that does not tear the bar. `fmt` makes one line without a newline; it is made
 * safe for terminals. Thread-safe. */
void kvfs_progress_line(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Removes the bar until the next progress: before something is written to stderr. Thread-safe. */
void kvfs_progress_hide(void);
/* Removes the bar. Returns seconds since the start; harmless when there was none. */
double kvfs_progress_end(void);

#endif
