#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "kvfs/args.h"
#include "kvfs/kvfs.h"
#include "kvfs/mounts.h"
#include "kvfs/serve/ioctl.h"
#include "kvfs/term.h"

static const char doc[] =
    "Look at the source of a mount anew: names that yielded the version first opened yield "
    "the one that is there now, and manifests are read again. What is open stays as it is.";

int cmd_reload(int argc, char **argv)
{
    struct ct_err err = CT_ERR_INIT;
    const char *mount = kvfs_parse_mount("reload", doc, argc, argv);
    ct_autofd fd = kvfs_mount_open(mount, "status.json", &err);
    if (fd < 0) {
        return kvfs_complain("reload", &err);
    }
    if (ioctl(fd, KVFS_IOC_RELOAD)) {
        ct_err_sys(&err, errno, "%s", mount);
        return kvfs_complain("reload", &err);
    }
    return KVFS_DONE;
}
