/*
 * How much of the machine a mount may take when nobody says: what cgroups (version 1 and 2) and
 * affinity leave to this process. `root` is where /proc and /sys/fs/cgroup are looked for: "" but
 * in tests. And the resource limits that a worker wants.
 */
#ifndef KVFS_MOUNT_LIMITS_H
#define KVFS_MOUNT_LIMITS_H

#include <stdint.h>

enum { KVFS_MEMORY_LEAST = 64 << 20, KVFS_MEMORY_MOST = 512 << 20 };

/* An eighth of the memory limit, within the bounds above. */
uint64_t kvfs_auto_memory(const char *root);
/* Bytes that could be taken now without hurting: what the machine has available, and what the
 * cgroup's limit leaves beside what is in use and can't be dropped. */
uint64_t kvfs_available_memory(const char *root);
/* Processors that this process may use, at least 1. */
uint32_t kvfs_auto_threads(const char *root);

/* Bytes that RLIMIT_MEMLOCK has to allow a worker, so that its keys are locked, or all. */
struct kvfs_locks {
    uint64_t keys, all;
};

/* Raises this process's limits, which its worker inherits, to what one with `memory` bytes of
 * plaintext wants, as far as it may: descriptors, and locked memory. */
struct kvfs_locks kvfs_raise_limits(uint64_t memory);

#endif
