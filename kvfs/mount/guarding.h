/*
 * The guard (guard/guard.h) of one mount: a thread of the supervisor, for which nothing waits but
 * those who want to open a file: looking at a reader may have to wait until that one's page fault
 * on this very mount is answered.
 */
#ifndef KVFS_MOUNT_GUARDING_H
#define KVFS_MOUNT_GUARDING_H

#include "guard/guard.h"
#include "keyclient/measure.h"
#include "kvfs/mount/config.h"
#include "kvfs/mount/control.h"
#include "kvfs/mount/limits.h"
#include "kvfs/mount/mounter.h"

struct kvfs_guarding;

/* Loads the profile and tells the configuration about it: name, policy digest, trees (in
 * `measured`, with room for KVFS_MEASURED_MAX). */
int kvfs_guarding_load(const char *profile, struct guard_profile **out, struct kvfs_config *config,
                       struct kc_measured *measured, uint32_t *count, struct ct_err *err);

/* Takes the start state, makes this process undumpable, and judges it: what fails is printed, with
 * what to do, and is CT_REJECTED. NULL in *out where nothing is to be checked. `profile` and
 * `config` are borrowed; `locks`: what RLIMIT_MEMLOCK is judged by. */
int kvfs_guarding_new(const struct guard_profile *profile, const struct kvfs_config *config,
                      struct kvfs_locks locks, struct kvfs_guarding **out, struct ct_err *err);
/* The mount is there. */
int kvfs_guarding_mounted(struct kvfs_guarding *g, const struct kvfs_mounted *m,
                          struct ct_err *err);
/* The worker's end of the link. */
int kvfs_guarding_link(const struct kvfs_guarding *g);
/* The worker has its end: ours is closed here. And the guard's end, which no other process shall
 * have. */
void kvfs_guarding_linked(struct kvfs_guarding *g);
int kvfs_guarding_end(const struct kvfs_guarding *g);
/* From here on the guard watches. */
int kvfs_guarding_start(struct kvfs_guarding *g, struct ct_err *err);
/* A process of ours, as it is now; or (`tool`) one that only reads the mount. */
void kvfs_guarding_add(struct kvfs_guarding *g, pid_t pid, bool tool);
/* Becomes readable once it has told the worker to seal; -1 for NULL. */
int kvfs_guarding_fd(const struct kvfs_guarding *g);
/* Why, then. */
const char *kvfs_guarding_why(const struct kvfs_guarding *g);

#endif
