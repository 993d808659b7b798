/*
 * What /proc says of one process, read at one moment.
 */
#ifndef GUARD_FACTS_H
#define GUARD_FACTS_H

#include <sys/stat.h>

#include "format/base/bytes.h"
#include "guard/mounts.h"
#include "guard/proc.h"

enum guard_ns {
    GUARD_NS_MNT,
    GUARD_NS_PID,
    GUARD_NS_USER,
    GUARD_NS_NET,
    GUARD_NS_IPC,
    GUARD_NS_UTS,
    GUARD_NS_CGROUP,
    GUARD_NS_TIME,
    GUARD_NS_COUNT
};
extern const char *const guard_ns_names[GUARD_NS_COUNT];

struct guard_file_id {
    dev_t dev;
    ino_t ino;
    uint64_t size, nlink;
    int64_t mtime_ns, ctime_ns;
};

/* Bits of what could be read. */
enum {
    GUARD_HAS_STATUS = 1,
    GUARD_HAS_MOUNTS = 2,
    GUARD_HAS_MAPS = 4,
    GUARD_HAS_NS = 8,
    GUARD_HAS_EXE = 16,
    GUARD_HAS_ENVIRON = 32,
    GUARD_HAS_LIMITS = 64,
    GUARD_HAS_CGROUP = 128,
    GUARD_HAS_ALL = 255
};

struct guard_facts {
    unsigned has, wanted;
    struct ct_err missing; /* why the first of what is wanted and not there can't be read */
    struct guard_status status;
    struct guard_mounts mounts;
    struct guard_maps maps;
    uint64_t ns[GUARD_NS_COUNT]; /* 0: the kernel has none of this kind */
    struct guard_file_id exe;
    bool exe_deleted;
    char *exe_path; /* in the process's own mount namespace */
    unsigned environ;
    uint64_t core_limit, lock_limit; /* soft and hard: the smaller */
    struct ct_buf cgroup;
};

/* Reads what `wanted` names through a descriptor of /proc/PID, which never leads to another process
 * than that which it was opened for. What can't be read is told by has and missing. -1 only when
 * the process has ended, or without memory. */
int guard_facts_read(int proc_pid_fd, unsigned wanted, struct guard_facts *out, struct ct_err *err);
void guard_facts_free(struct guard_facts *f);

/* A whole text of /proc; files there have no size. NUL-terminated, the NUL not counted. */
int guard_read_at(int dirfd, const char *name, size_t max, struct ct_buf *out, struct ct_err *err);

/* openat2(2) with these RESOLVE_ flags: what a path means within a process's root, as long as links
 * do not lead out of it, which openat() would follow to ours. -1 with errno. */
int guard_open_in(int dirfd, const char *path, uint64_t resolve, uint64_t flags);
/* fstatat(2) in the same way. */
int guard_stat_in(int root_fd, const char *path, struct stat *st);

/* The target of a link; owned by the caller. */
char *guard_readlink_at(int dirfd, const char *name, struct ct_err *err);

void guard_file_id_of(const struct stat *st, struct guard_file_id *out);
bool guard_file_id_same(const struct guard_file_id *a, const struct guard_file_id *b);

#endif
