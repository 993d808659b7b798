/* The worker: everything that holds keys. Started by the supervisor (kvfs/mount/control.h says with
 * which descriptors), sandboxed before it serves. */
#ifndef KVFS_SERVE_WORKER_H
#define KVFS_SERVE_WORKER_H

#include "kvfs/mount/config.h"

#include "format/base/err.h"

/* The two steps of the sandbox; given by the caller, since kvfs/serve does not know kvfs/mount's
 * inside. */
struct kvfs_sandbox {
    int (*drop)(const struct kvfs_config *config, struct ct_err *err);
    int (*close)(struct ct_err *err);
};

/* Serves until unmounted or sealed. The process's exit status. */
int kvfs_worker_run(const struct kvfs_sandbox *sandbox);

#endif
