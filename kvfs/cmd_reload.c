#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "kvfs/args.h"
#include "kvfs/kvfs.h"
#include "kvfs/mounts.h"
#include "kvfs/serve/ioctl.h"
#include "kvfs/term.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    const char **mount = state->input;
    switch (key) {
    case ARGP_KEY_ARG:
        if (*mount) {
            argp_error(state, "more than one mount: %s and %s", *mount, arg);
        }
        *mount = arg;
        return 0;
    case ARGP_KEY_END:
        if (!*mount) {
            argp_error(state, "which mount?");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .parser = parse,
    .args_doc = "MNT",
    .doc = "Look at the source of a mount anew: names that yielded the version first opened yield "
           "the one that is there now, and manifests are read again. What is open stays as it is.",
};

int cmd_reload(int argc, char **argv)
{
    const char *mount = NULL;
    struct ct_err err = CT_ERR_INIT;
    kvfs_parse_args(&argp, "reload", argc, argv, &mount);
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
