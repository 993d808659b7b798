/*
 * Where the supervisor's own lines and the worker's stderr go: a file, syslog, or in the foreground
 * stderr.
 */
#ifndef KVFS_MOUNT_LOGSINK_H
#define KVFS_MOUNT_LOGSINK_H

#include <stdbool.h>
#include <stddef.h>

#include "format/base/err.h"

/* Opens the log. `file` NULL: syslog, or stderr if `foreground`. Lines name `mountpoint`
 * (borrowed). ct_log() goes on writing to stderr until kvfs_logsink_start(). */
int kvfs_logsink_open(const char *file, bool foreground, const char *mountpoint,
                      struct ct_err *err);
void kvfs_logsink_start(void);

/* An audit line, which has to stay whole: INFO, whatever the level is. */
void kvfs_logsink_audit(const char *line, size_t n);

/* Bytes of the worker's stderr, which nobody vouches for: cut into lines and made printable. A
 * NULL with 0 bytes is the end. */
void kvfs_logsink_forward(const char *bytes, size_t n);
/* The same with what can be read from *fd by now, up to a limit. At its end: closed, and -1. */
void kvfs_logsink_drain(int *fd);
/* The last of them that were no log lines of ours, for a worker that died early. "" if none. */
const char *kvfs_logsink_last_words(void);

#endif
