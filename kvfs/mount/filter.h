/*
 * The worker's list of allowed system calls. Anything else ends the process with SIGSYS, except
 * that what only looks something up by path gets EACCES, and clone3 ENOSYS (glibc then uses clone,
 * whose flags a filter can see).
 */
#ifndef KVFS_MOUNT_FILTER_H
#define KVFS_MOUNT_FILTER_H

#include "format/base/err.h"

/* Needs no_new_privs. For this thread and those it starts. CT_UNSUPPORTED where the kernel can't.
 */
int kvfs_filter_load(struct ct_err *err);

#endif
