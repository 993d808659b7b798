/*
 * The list of checks: what each is called, what it holds, and what can be told of it. The names are
 * what profiles, findings, `kvfs guard explain` and guard/README.md use.
 */
#ifndef GUARD_CHECKS_H
#define GUARD_CHECKS_H

#include <stdbool.h>

enum guard_id {
    /* mounts */
    GUARD_ROOT_RO,
    GUARD_MOUNT_FOREIGN,
    GUARD_MOUNT_FLAGS,
    GUARD_MOUNT_STACKED,
    GUARD_MOUNT_PATH,
    GUARD_MOUNT_OWN,
    GUARD_MOUNT_EVENT,
    GUARD_SOURCE_RO,
    GUARD_KERNEL_WRITABLE,
    GUARD_WRITE_PROBE,
    /* privileges */
    GUARD_CAPABILITIES,
    GUARD_NO_NEW_PRIVS,
    GUARD_SECCOMP,
    GUARD_UID,
    /* the process */
    GUARD_TRACER,
    GUARD_TRACER_OUTSIDE,
    GUARD_DUMPABLE,
    GUARD_CORE_LIMIT,
    GUARD_CORE_PATTERN,
    GUARD_LD_PRELOAD,
    GUARD_LD_LIBRARY_PATH,
    GUARD_MAPPED_WRITABLE,
    GUARD_MAPPED_MEMORY,
    GUARD_MAPPED_DELETED,
    GUARD_MAPPED_RWX,
    GUARD_MAPPED_NEW,
    GUARD_MAPPED_CHANGED,
    GUARD_TEXT_ALTERED,
    GUARD_EXE_REPLACED,
    GUARD_TREE_CHANGED,
    GUARD_STOPPED,
    /* the machine */
    GUARD_BPF_UNPRIVILEGED,
    GUARD_BPF_CAPABLE,
    GUARD_BPF_PROGRAMS,
    GUARD_NAMESPACES,
    GUARD_HOST_NAMESPACES,
    GUARD_DEVICES,
    GUARD_RUNTIME_SOCKET,
    GUARD_SWAP,
    GUARD_MEMLOCK,
    GUARD_PROC,
    GUARD_PAUSED,
    /* who reads */
    GUARD_INSPECT,
    GUARD_READER_UID,
    GUARD_READER_EXE,
    GUARD_READER_TREE,
    GUARD_READER_PIN,
    GUARD_IDS
};

/* Whom a check is about: processes of kvfs and the container they are in, or a reader and his. */
enum guard_who { GUARD_OWN, GUARD_READER, GUARD_WHOS };

struct guard_check_info {
    const char *name;
    const char *holds; /* what is so when all is well, a sentence */
    const char *fix;   /* what to do otherwise */
    const char *blind; /* what it can't see */
    bool about[GUARD_WHOS];
};

extern const struct guard_check_info guard_checks[GUARD_IDS];

/* -1 if there is none of this name. */
int guard_check_named(const char *name);

#endif
