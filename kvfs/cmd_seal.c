#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kvfs/args.h"
#include "kvfs/kvfs.h"
#include "kvfs/mounts.h"
#include "kvfs/serve/ioctl.h"
#include "kvfs/term.h"

enum { STATUS_MAX = 64 << 20, PATIENCE_MS = 30000, STEP_MS = 20 };

static const char doc[] =
    "Take back everything that a mount has given out: reads and opens fail from then on, what "
    "is cached or mapped is gone, keys are wiped. There is no way back but to mount anew. "
    "Returns when it is done.";

/* 1 once everything is taken back. */
static int is_sealed(const char *mount, struct ct_err *err)
{
    ct_autobuf all = {0};
    ct_autofd fd = kvfs_mount_open(mount, "status.json", err);
    if (fd < 0 || ct_read_fd(fd, STATUS_MAX, &all, err)) {
        return -1;
    }
    json_t *status = json_loadb((char *)all.data, all.len, 0, NULL);
    const char *state = json_string_value(json_object_get(status, "state"));
    int sealed = state && strcmp(state, "sealed") == 0;
    json_decref(status);
    return sealed;
}

int cmd_seal(int argc, char **argv)
{
    struct ct_err err = CT_ERR_INIT;
    const struct timespec step = {.tv_nsec = STEP_MS * 1000000L};
    int sealed = 0;
    const char *mount = kvfs_parse_mount("seal", doc, argc, argv);
    ct_autofd fd = kvfs_mount_open(mount, "status.json", &err);
    if (fd < 0) {
        return kvfs_complain("seal", &err);
    }
    if (ioctl(fd, KVFS_IOC_SEAL)) {
        ct_err_sys(&err, errno, "%s", mount);
        return kvfs_complain("seal", &err);
    }
    for (int waited = 0; !sealed && waited < PATIENCE_MS; waited += STEP_MS) {
        (void)nanosleep(&step, NULL);
        sealed = is_sealed(mount, &err);
    }
    if (sealed == 0) {
        ct_err_set(&err, CT_BUSY, "%s: not everything is taken back yet", mount);
    }
    /* A mount that is not there any more has nothing left to take back. */
    return sealed == 1 || err.code == CT_NOTFOUND ? KVFS_DONE : kvfs_complain("seal", &err);
}
