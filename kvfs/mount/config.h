/*
 * What a mount was asked to be. A plain structure of fixed size: the supervisor fills it from the
 * command line, the worker receives it as its first control message and checks nothing but its
 * size, since both are the same executable.
 *
 * The one table of options is in options.c: it drives `--name`, `-o name`, the help, and the test
 * that compares it with README.md.
 */
#ifndef KVFS_MOUNT_CONFIG_H
#define KVFS_MOUNT_CONFIG_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "format/aead/aead.h"

enum kvfs_plain { KVFS_PLAIN_SAFE, KVFS_PLAIN_ALL, KVFS_PLAIN_NONE };
enum kvfs_manifest { KVFS_MANIFEST_AUTO, KVFS_MANIFEST_REQUIRE };
enum kvfs_update { KVFS_UPDATE_PIN, KVFS_UPDATE_FOLLOW };
enum kvfs_cache { KVFS_CACHE_AUTO, KVFS_CACHE_PAGE, KVFS_CACHE_RESIDENT, KVFS_CACHE_DIRECT };

enum {
    KVFS_SERVER_MAX = 512,
    KVFS_MODEL_MAX = 130,
    KVFS_PIN_MAX = 44,
    KVFS_PROFILE_MAX = 33,
    KVFS_MOUNTER_MAX = 108
};
/* All with the NUL. */
enum { KVFS_MEASURED_MAX = 24 };

struct kvfs_config {
    char source[PATH_MAX];     /* SRC, absolute, resolved */
    char mountpoint[PATH_MAX]; /* MNT, absolute, resolved */
    enum kvfs_plain plain;
    enum kvfs_manifest manifest;
    enum kvfs_update update;
    enum ct_crypto crypto;
    bool require_all;
    bool allow_other;
    bool foreground;
    uint32_t uid, gid; /* owner of everything in the view */
    uint32_t umask;    /* 0: modes are 0440 and 0550 (see kvfs/serve/node.h) */
    bool umask_set;    /* then modes are 0444 and 0555 less umask */
    uint64_t memory;   /* bytes of plaintext the worker may hold */
    uint32_t threads;  /* that decrypt */
    enum kvfs_cache cache;
    uint64_t
        resident;    /* bytes of decrypted files kept whole in memory, at most; 0: no such thing */
    uint32_t linger; /* seconds that such a file stays after its last close */
    uint32_t readahead_kb;           /* of the mount's bdi */
    uint32_t worker_uid, worker_gid; /* what the worker becomes when started by root */
    uint32_t log_level;
    char mounter[KVFS_MOUNTER_MAX]; /* socket of kvfs-mounter, or fd:N; "": mount by ourselves */
    bool may_store;    /* a worker that is killed while it stores can be ended (mounter.h) */
    bool have_key_dir; /* the supervisor opens beneath --key-dir on request */
    char server[KVFS_SERVER_MAX];   /* key server's URL; "": keys are local, and what follows is
                                       unused */
    char server_key[KVFS_PIN_MAX];  /* thumbprint of its identity */
    char model[KVFS_MODEL_MAX];     /* OWNER/NAME; "": as each header's jku says */
    uint32_t wait;                  /* seconds to go on asking before the mount fails */
    bool audit;                     /* decisions are recorded */
    bool guarded;                   /* a guard watches: then the worker expects to hear of it */
    bool admits;                    /* and judges who reads */
    uint32_t guard_gap_ms;          /* without a word of it for so long, the worker seals */
    char profile[KVFS_PROFILE_MAX]; /* the guard profile's name; "none" without */
};

#endif
