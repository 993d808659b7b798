#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kvfs/args.h"
#include "kvfs/kvfs.h"
#include "kvfs/mount/holders.h"
#include "kvfs/mount/mounter.h"
#include "kvfs/mount/mountinfo.h"
#include "kvfs/term.h"

struct umount {
    const char *given;
    bool lazy, force;
    char path[PATH_MAX];
    dev_t dev;
};

static const struct argp_option options[] = {
    {"lazy", 'l', NULL, 0,
     "Take it away even if it is in use; who has files open can go on reading them", 0},
    {"force", 'f', NULL, 0,
     "End its connection first: who waits for a read gets an error. For a mount whose processes "
     "were killed, or hang (root only)",
     0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct umount *u = state->input;
    switch (key) {
    case 'l':
        u->lazy = true;
        return 0;
    case 'f':
        u->force = true;
        return 0;
    case ARGP_KEY_ARG:
        if (u->given) {
            argp_error(state, "more than one mount: %s and %s", u->given, arg);
        }
        u->given = arg;
        return 0;
    case ARGP_KEY_END:
        if (!u->given) {
            argp_error(state, "which mount?");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = options,
    .parser = parse,
    .args_doc = "MNT",
    .doc = "Unmount a mount of kvfs. If it is in use, who uses it is named.",
};

/* 1 if a kvfs is mounted at path, 0 if not, or -1. */
static int look(struct umount *u, const char *path, struct ct_err *err)
{
    struct kvfs_mountinfo info;
    int rc = kvfs_mountinfo_at(path, &info, err);
    if (rc <= 0 || strcmp(info.fstype, KVFS_FSTYPE) != 0) {
        return rc < 0 ? -1 : 0;
    }
    memmove(u->path, path, strlen(path) + 1);
    u->dev = info.dev;
    return 1;
}

static int find(struct umount *u, struct ct_err *err)
{
    char path[PATH_MAX];
    if (kvfs_mountpoint_path(u->given, path, err)) {
        return -1;
    }
    int rc = look(u, path, err);
    /* Not there by this name: then it may be a link, and can be touched. */
    if (rc == 0 && realpath(u->given, path)) {
        rc = look(u, path, err);
    }
    return rc != 0 ? rc : ct_err_set(err, CT_NOTFOUND, "no kvfs is mounted at %s", u->given);
}

static void end_warmer(void *ctx, const struct kvfs_holder *h)
{
    bool *any = ctx;
    *any |= strcmp(h->command, KVFS_WARM_NAME) == 0 && kill(h->pid, SIGTERM) == 0;
}

/* `kvfs warm` in the background is no reason to refuse. */
static int unmount(const struct umount *u, struct ct_err *err)
{
    const struct timespec pause = {.tv_nsec = 20000000};
    int rc = kvfs_umount_path(u->path, u->lazy, u->force, err);
    for (int turn = 0; rc && err->code == CT_BUSY && turn < 100; turn++) {
        bool any = false;
        (void)kvfs_holders(u->dev, u->path, end_warmer, &any);
        if (!any) {
            break;
        }
        (void)nanosleep(&pause, NULL);
        *err = (struct ct_err)CT_ERR_INIT;
        rc = kvfs_umount_path(u->path, u->lazy, u->force, err);
    }
    return rc;
}

static void print_holder(void *ctx, const struct kvfs_holder *h)
{
    (void)ctx;
    kvfs_printf_safe(stderr, "  %d %s %s %s\n", (int)h->pid, h->command, h->how, h->file);
}

static int name_holders(const struct umount *u)
{
    (void)fprintf(stderr, "kvfs umount: %s is in use:\n", u->path);
    if (kvfs_holders(u->dev, u->path, print_holder, NULL) == 0) {
        (void)fputs("  by whom can't be seen from here (root sees more; a container or another "
                    "mount namespace may hold it)\n",
                    stderr);
    }
    (void)fprintf(stderr, "End these first, or: kvfs umount -l %s\n", u->given);
    return KVFS_FAILED;
}

int cmd_umount(int argc, char **argv)
{
    static struct umount u;
    struct ct_err err = CT_ERR_INIT;
    kvfs_parse_args(&argp, "umount", argc, argv, &u);
    if (find(&u, &err) < 0) {
        return kvfs_complain("umount", &err);
    }
    if (unmount(&u, &err)) {
        return err.code == CT_BUSY ? name_holders(&u) : kvfs_complain("umount", &err);
    }
    return KVFS_DONE;
}
