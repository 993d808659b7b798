/*
 * The supervisor's half of resident mode: a tmpfs of its own, with huge pages, never swapped,
 * mounted nowhere, whose files hold whole decrypted models, and the kernel's registration of each
 * file as what stands behind opens of the mount (FUSE passthrough, kernel 6.9 and later;
 * CAP_SYS_ADMIN).
 *
 * One truncation revokes a file from everybody: mappings get SIGBUS, private copies of pages in
 * them included, descriptors read end-of-file. Supervisor and keeper can do that when the worker is
 * dead.
 */
#ifndef KVFS_MOUNT_TMPFS_H
#define KVFS_MOUNT_TMPFS_H

#include <stdbool.h>
#include <stdint.h>

#include "format/base/err.h"

struct kvfs_tmpfs;

enum { KVFS_TMPFS_FILES = 4096 };

/* Makes the tmpfs, at most `limit` bytes large. `clone_fd` (refuse.h) is borrowed for as long as
 * the result lives. NULL where kernel or privileges don't allow it, and, if `only_huge`, where the
 * machine denies tmpfs its huge pages: without them it is slower than the page cache. Whether
 * passthrough is allowed shows at the first file.
 *
 * Files belong to who makes them, not to the worker, which gets descriptors: the owner needs
 * neither CAP_DAC_OVERRIDE to truncate them nor CAP_LEASE to see whether they are in use. */
struct kvfs_tmpfs *kvfs_tmpfs_new(int clone_fd, uint64_t limit, bool only_huge, struct ct_err *err);
/* Its tmpfs, for the keeper. */
int kvfs_tmpfs_dir(const struct kvfs_tmpfs *r);

/* A new empty file that is to hold `size` bytes: its number, its registration for the reply to
 * open, and a descriptor for reading and writing, which stays r's. CT_NOMEM when cgroup or machine
 * have no such memory to spare. */
int kvfs_tmpfs_add(struct kvfs_tmpfs *r, uint64_t size, uint32_t *number, int32_t *backing, int *fd,
                   struct ct_err *err);
/* Whether what was promised to r's files and is not taken yet is still to be had: to be asked
 * before each part is taken, since memory that a cgroup does not have is no error but the end of a
 * process. CT_NOMEM. */
int kvfs_tmpfs_more(const struct kvfs_tmpfs *r, struct ct_err *err);
/* Gives the file's memory back, unless somebody has it open or mapped through a descriptor that is
 * no copy of r's: CT_BUSY. */
int kvfs_tmpfs_remove(struct kvfs_tmpfs *r, uint32_t number, struct ct_err *err);

/* Truncates every file in the tmpfs `dir`: from r, or from the keeper, which has only that. */
void kvfs_tmpfs_revoke(int dir);

#endif
