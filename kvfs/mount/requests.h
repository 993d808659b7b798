/*
 * What the supervisor does for the worker: opens files and keys, makes resident files, starts
 * couriers, remembers generations, writes the audit. One request after the other (control.h).
 */
#ifndef KVFS_MOUNT_REQUESTS_H
#define KVFS_MOUNT_REQUESTS_H

#include "kvfs/mount/control.h"
#include "kvfs/mount/courier.h"
#include "kvfs/mount/supervisor.h"
#include "kvfs/mount/tmpfs.h"

struct kvfs_requests {
    const struct kvfs_job *job; /* borrowed */
    struct kvfs_tmpfs *tmpfs;   /* borrowed; NULL: there is no resident mode */
    struct kvfs_couriers couriers;
    struct kvfs_reply reply; /* scratch: large */
};

/* Whether it is what a worker sends. */
bool kvfs_request_is_sound(const struct kvfs_request *q);
/* Does what is asked and replies on `control`. What fails for the worker's part is in the reply; -1
 * when the worker has to end. */
int kvfs_request_answer(struct kvfs_requests *r, const struct kvfs_request *q, int control,
                        struct ct_err *err);

#endif
