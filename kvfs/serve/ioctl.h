/* What the kvfs command asks of a mount, by ioctl(2). For root and for the owner of the mount;
 * EPERM for others. */
#ifndef KVFS_SERVE_IOCTL_H
#define KVFS_SERVE_IOCTL_H

#include <stdint.h>
#include <sys/ioctl.h>

/* On MNT/.kvfs/status.json. Looks at the source and its manifests anew: names no longer yield
 * pinned versions. */
#define KVFS_IOC_RELOAD _IO('k', 1)

/* On a file of MNT/.kvfs. Has the mount sealed, which comes soon after the call returns. 1 once
 * everything is taken back, 0 before. */
#define KVFS_IOC_SEAL _IO('k', 3)

/* On an open file: if it is resident (then the number is 1, else 0), it stays so after its last
 * close, until it was opened and closed again or memory is needed. */
#define KVFS_IOC_KEEP _IOR('k', 2, uint32_t)

#endif
