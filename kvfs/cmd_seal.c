#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "kvfs/args.h"
#include "kvfs/kvfs.h"
#include "kvfs/mounts.h"
#include "kvfs/serve/ioctl.h"
#include "kvfs/term.h"

enum { PATIENCE_MS = 600000, STEP_MS = 10 };

static const char doc[] =
    "Take back everything that a mount has given out: reads and opens fail from then on, what "
    "is cached or mapped is gone, keys are wiped. There is no way back but to mount anew. "
    "Returns when it is done.";

int cmd_seal(int argc, char **argv)
{
    struct ct_err err = CT_ERR_INIT;
    const struct timespec step = {.tv_nsec = STEP_MS * 1000000L};
    const char *mount = kvfs_parse_mount("seal", doc, argc, argv);
    /* The log is what is there whatever the source does. */
    ct_autofd fd = kvfs_mount_open(mount, "log", &err);
    if (fd < 0) {
        return kvfs_complain("seal", &err);
    }
    int sealed = ioctl(fd, KVFS_IOC_SEAL);
    if (sealed < 0) {
        ct_err_sys(&err, errno, "%s", mount);
        return kvfs_complain("seal", &err);
    }
    for (int waited = 0; sealed == 0 && waited < PATIENCE_MS; waited += STEP_MS) {
        (void)nanosleep(&step, NULL);
        sealed = ioctl(fd, KVFS_IOC_SEAL);
    }
    /* A mount that is not there any more has nothing left to take back. */
    if (sealed) {
        return KVFS_DONE;
    }
    ct_err_set(&err, CT_BUSY, "%s: not everything is taken back yet", mount);
    return kvfs_complain("seal", &err);
}
