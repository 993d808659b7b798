/*
 * Where the keys of a mount come from: files named by options, else the environment. They are only
 * opened here; who reads them is the worker.
 */
#ifndef KVFS_MOUNT_KEYS_IN_H
#define KVFS_MOUNT_KEYS_IN_H

#include "kvfs/keys_arg.h"

/* Call first of all, before anything is forked: moves CRYPTOTENSOR_KEYS to a memfd and wipes it,
 * also from /proc/PID/environ. The descriptor, -1 if it was not set, or -2 with err. */
int kvfs_keys_from_env(struct ct_err *err);

/* Opens what the options name; with none of them, `env_fd` (taken over; closed if not needed) is
 * the one key file. CT_NOKEY with a sentence that says what to type when there is neither. */
int kvfs_keys_open(const struct kvfs_keys_arg *keys, int env_fd, struct kvfs_key_files *out,
                   struct ct_err *err);

#endif
