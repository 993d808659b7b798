/*
 * The supervisor of one mount: mounts, starts the worker and serves its requests, and when either
 * of the two has to go, sees to it that nothing is left: no mount, no readable page.
 *
 * It parses options, /proc and messages of fixed size, nothing else; it never touches its own
 * mount, which would have to wait for itself.
 */
#ifndef KVFS_MOUNT_SUPERVISOR_H
#define KVFS_MOUNT_SUPERVISOR_H

#include "guard/profile.h"
#include "keyclient/measure.h"
#include "kvfs/mount/audit_file.h"
#include "kvfs/mount/options.h"

struct kvfs_job {
    struct kvfs_mount_options *options; /* complete; SRC, MNT and --key-dir resolved */
    int source_fd;                      /* SRC */
    int key_dir_fd;                     /* --key-dir, or -1 */
    int ca_fd;                          /* --ca, or -1 */
    int state_fd;                       /* the state directory, or -1 */
    struct kvfs_audit_file *audit;      /* NULL: nobody wants it */
    struct guard_profile *profile;      /* loaded from options->guard */
    struct kc_measured measured[KVFS_MEASURED_MAX];
    uint32_t measured_count;
    struct kvfs_key_files *keys; /* closed as soon as the worker has them */
};

/* Mounts, and returns when the mount answers (in the background) or when it has ended (in the
 * foreground): the exit code of `kvfs mount`. What went wrong is on stderr. */
int kvfs_supervise(struct kvfs_job *job);

#endif
