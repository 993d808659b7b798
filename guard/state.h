/* What a guard is made of. Inside of guard/. */
#ifndef GUARD_STATE_H
#define GUARD_STATE_H

#include "guard/run.h"
#include "guard/tree.h"

enum { GUARD_MATES_MAX = 8, GUARD_TREES_MAX = 16, GUARD_DIGESTS_MAX = 64, GUARD_BPF_MAX = 4096 };

struct guard_known_digest {
    struct guard_file_id id;
    uint8_t digest[CT_SHA256_LEN];
};

struct guard_watched_tree {
    const char *path;
    uint8_t marks[CT_SHA256_LEN]; /* of names, sizes and times at the start */
};

struct guard {
    const struct guard_profile *profile;
    struct guard_config config;
    int proc_fd; /* /proc, opened early: it survives a mount over it */
    dev_t proc_dev;
    int epoll_fd;
    dev_t mount_dev;
    bool mounted;
    struct guard_subject *self;
    struct guard_subject *mates[GUARD_MATES_MAX];
    size_t mate_count;
    struct guard_subject *tool; /* the latest one; or NULL */
    struct guard_subject **readers;
    size_t reader_count, reader_cap;
    int64_t last_ns; /* CLOCK_BOOTTIME at the end of the last run */
    unsigned runs;

    /* pins of the first reader */
    bool pinned;
    uint64_t pin_ns[GUARD_NS_COUNT];
    struct ct_buf pin_cgroup;

    struct guard_watched_tree trees[GUARD_TREES_MAX];
    size_t tree_count;
    struct guard_known_digest digests[GUARD_DIGESTS_MAX];
    size_t digest_count, digest_next;
    struct guard_known_tree known_trees[GUARD_TREES_MAX];
    size_t known_tree_count;
    /* of admitted trees without a digest: that of the first reader's */
    bool tree_pinned[GUARD_DECLARED_MAX];
    uint8_t tree_pins[GUARD_DECLARED_MAX][CT_SHA256_LEN];

    bool writable[GUARD_DECLARED_MAX]; /* a protected directory that was so at the start */
    struct {
        uint32_t id;
        bool tracing;
    } programs[GUARD_BPF_MAX];
    size_t program_count;
};

int64_t guard_now_ns(void); /* CLOCK_BOOTTIME */

#endif
