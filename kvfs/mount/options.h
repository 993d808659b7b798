/*
 * The options of `kvfs mount`. One table, in options.c, drives `--name`, `-o name` and the help;
 * `_` and `-` in a name are the same.
 */
#ifndef KVFS_MOUNT_OPTIONS_H
#define KVFS_MOUNT_OPTIONS_H

#include <stdbool.h>

#include "format/base/err.h"
#include "kvfs/keys_arg.h"
#include "kvfs/mount/config.h"

/* Strings are the command line's, or never freed. */
struct kvfs_mount_options {
    struct kvfs_config config; /* source and mountpoint: as given, resolved by place.h */
    struct kvfs_keys_arg keys;
    const char *log_file;   /* NULL: syslog, or stderr in the foreground */
    const char *deploy_key; /* a file, fd:N, or NULL */
    const char *ca;         /* a file of certificates, or NULL */
    const char *state_dir;  /* or NULL */
    const char *audit_file; /* or NULL */
    bool audit_log;         /* audit lines go to the log too */
    const char *guard;      /* a profile: built in, or a file */
    uint32_t exit_on_seal;  /* exit code; 0: a sealed mount stays */
    bool nonempty;
    bool noexec;
    bool warm;
    bool fake; /* mount -f: do all but mount */
    bool memory_set, resident_set, threads_set, crypto_set, uid_set, gid_set;
    const char *worker_user;
};

/* A command line as of `kvfs mount`. Usage errors and --help end the process. */
void kvfs_options_parse(struct kvfs_mount_options *o, int argc, char **argv);
/* A command line as mount(8) makes it for its helpers: SRC MNT [-sfnvrw] [-t TYPE] -o OPTIONS. */
int kvfs_options_parse_helper(struct kvfs_mount_options *o, int argc, char **argv,
                              struct ct_err *err);

/* The list after -o: `name[=value]` with commas between; `\,` is a comma, `\\` a backslash. What
 * mount(8) adds for itself is ignored, anything else unknown is CT_USAGE. */
int kvfs_options_list(struct kvfs_mount_options *o, const char *list, struct ct_err *err);

/* Fills in what nobody said: owner, worker's user, memory, threads. */
int kvfs_options_complete(struct kvfs_mount_options *o, struct ct_err *err);

#endif
