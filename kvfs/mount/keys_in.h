/*
 * Where the keys of a mount come from: files named by options, else the environment; or a key
 * server, to which an API key is shown. Files are only opened here; who reads them is the worker.
 */
#ifndef KVFS_MOUNT_KEYS_IN_H
#define KVFS_MOUNT_KEYS_IN_H

#include "kvfs/mount/options.h"

/* The API key for a key server. */
#define KVFS_DEPLOY_KEY_ENV "KVFS_DEPLOY_KEY"
#define KVFS_DEPLOY_KEY_CREDENTIAL "kvfs-deploy-key"

/* Call first of all, before anything is forked: moves the variable to a memfd and wipes it, also
 * from /proc/PID/environ. The descriptor, -1 if it was not set, or -2 with err. */
int kvfs_keys_from_env(const char *name, struct ct_err *err);

/* What the options say of the key server and of local keys: complete, and never both. CT_USAGE. */
int kvfs_keys_check(const struct kvfs_mount_options *o, struct ct_err *err);

/* Opens what the options name; with none of them, `env_fd` (taken over; closed if not needed) is
 * the one key file. CT_NOKEY with a sentence that says what to type when there is neither. */
int kvfs_keys_open(const struct kvfs_keys_arg *keys, int env_fd, struct kvfs_key_files *out,
                   struct ct_err *err);

/* The one file with the API key: what the option names (`fd:N`: a descriptor of ours), else
 * `env_fd` (taken over; closed if not needed), else the credential that systemd passed. CT_NOKEY.
 */
int kvfs_deploy_key_open(const char *given, int env_fd, struct kvfs_key_files *out,
                         struct ct_err *err);

#endif
