/*
 * The worker's sandbox, closed in two steps, both single-threaded. What the kernel can't do is
 * logged and left out, except that a worker started by root never runs as root, nor without a
 * system call filter.
 *
 *   kvfs_sandbox_drop()   first of all: no root, no capabilities, no new privileges, no core
 *                         dumps, no debugger of the same user
 *   ... read keys, open the FUSE session: everything that needs a path or a library to load
 *   kvfs_sandbox_close()  no path at all (Landlock), a list of allowed system calls (seccomp; any
 *                         other ends the process)
 *
 * In builds with a sanitizer, whose run-time needs more, Landlock is left out, the list is longer
 * and the process stays dumpable.
 */
#ifndef KVFS_MOUNT_SANDBOX_H
#define KVFS_MOUNT_SANDBOX_H

#include "kvfs/mount/config.h"

#include "format/base/err.h"

int kvfs_sandbox_drop(const struct kvfs_config *config, struct ct_err *err);
int kvfs_sandbox_close(struct ct_err *err);

#endif
