/*
 * Starting this executable anew, as a process that shares nothing with this one but the
 * descriptors it is given. May be called while other threads run: between fork and exec there are
 * only calls that allow it.
 */
#ifndef KVFS_MOUNT_CHILD_H
#define KVFS_MOUNT_CHILD_H

#include <stddef.h>
#include <sys/types.h>

#include "format/base/err.h"

enum { KVFS_CHILD_VARIABLES = 16 };

struct kvfs_child {
    char *const *argv;            /* "kvfs", the command, its arguments, NULL */
    const char *const *variables; /* of the environment, that go along, by name; up to NULL. Those
                                     of sanitizers do where they are built in; nothing else does */
    int *fds;                     /* become `first`, `first` + 1, ...; what lies above is closed */
    size_t count;
    int first;
    int errors; /* becomes standard error; -1: /dev/null, as the other two */
};

/* It leads a session of its own and ignores the signals that ask a process to end: it ends with its
 * descriptors, or with its parent. Its pid, or -1. */
pid_t kvfs_child_start(const struct kvfs_child *how, struct ct_err *err);

#endif
