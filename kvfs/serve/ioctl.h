/* What the kvfs command asks of a mount, by ioctl(2) on MNT/.kvfs/status.json. For root and for the
 * owner of the mount; EPERM for others. */
#ifndef KVFS_SERVE_IOCTL_H
#define KVFS_SERVE_IOCTL_H

#include <sys/ioctl.h>

/* Looks at the source and its manifests anew: names no longer yield pinned versions. */
#define KVFS_IOC_RELOAD _IO('k', 1)

#endif
