#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "format/base/file.h"
#include "kvfs/args.h"
#include "kvfs/domains.h"
#include "kvfs/inspect.h"
#include "kvfs/inspect_print.h"
#include "kvfs/kvfs.h"
#include "kvfs/term.h"

struct inspect {
    bool json, verbose;
    const char **paths;
    size_t path_count;
    struct kvfs_inspection all;
};

static const struct argp_option options[] = {
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {"verbose", 'v', NULL, 0, "Print policies too", 0},
    {0},
};

/* NOLINTNEXTLINE(readability-non-const-parameter): argp has the type */
static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct inspect *in = state->input;
    switch (key) {
    case 'j':
        in->json = true;
        return 0;
    case 'v':
        in->verbose = true;
        return 0;
    case ARGP_KEY_ARGS:
        in->paths = (const char **)state->argv + state->next;
        in->path_count = (size_t)(state->argc - state->next);
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_error(state, "which file or directory?");
        return 0;
    default:
        (void)arg;
        return ARGP_ERR_UNKNOWN;
    }
}

static struct kvfs_inspected *append(struct inspect *in, struct ct_err *err)
{
    struct kvfs_inspection *all = &in->all;
    struct kvfs_inspected *items = reallocarray(all->items, all->count + 1, sizeof(*items));
    if (!items) {
        ct_err_set(err, CT_NOMEM, "no memory for a list of files");
        return NULL;
    }
    all->items = items;
    return &items[all->count];
}

/* `item` says what to call it. */
static int add(struct inspect *in, int fd, const struct kvfs_item *item, const char *unreadable,
               struct ct_err *err)
{
    struct kvfs_inspected *to = append(in, err);
    if (!to) {
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    if (unreadable) {
        kvfs_inspect_unreadable(item, unreadable, to);
    } else {
        kvfs_inspect(fd, item, to);
    }
    if (!to->path) {
        return ct_err_set(err, CT_NOMEM, "no memory for a list of files");
    }
    in->all.count++;
    return 0;
}

static int add_found(struct inspect *in, const struct kvfs_walk *walk, const char *prefix,
                     const struct kvfs_item *found, struct ct_err *err)
{
    struct kvfs_item item = *found;
    struct ct_err why = CT_ERR_INIT;
    const char *unreadable = NULL;
    int fd = -1;
    ct_autofree char *path = NULL;
    if (asprintf(&path, "%s%s", prefix, found->path) < 0) {
        path = NULL;
        return ct_err_set(err, CT_NOMEM, "no memory for a list of files");
    }
    item.path = path;
    if (found->kind == KVFS_ITEM_FILE) {
        fd = kvfs_open_regular(walk->fd, found->path, &item.st, &why);
        unreadable = fd >= 0 ? NULL : why.sys ? strerrordesc_np(why.sys) : why.msg;
    }
    return add(in, fd, &item, unreadable, err);
}

static int add_dir(struct inspect *in, const char *path, struct ct_err *err)
{
    kvfs_autowalk walk = {.fd = -1};
    ct_autofree char *prefix = NULL;
    size_t n = strlen(path);
    const char *slash = path[n - 1] == '/' ? "" : "/";
    if (kvfs_walk_dir(path, NULL, NULL, &walk, err)) {
        return -1;
    }
    if (asprintf(&prefix, "%s%s", path, slash) < 0) {
        prefix = NULL;
        return ct_err_set(err, CT_NOMEM, "no memory for a list of files");
    }
    for (size_t i = 0; i < walk.count; i++) {
        if (walk.items[i].kind != KVFS_ITEM_DIR &&
            add_found(in, &walk, in->path_count > 1 ? prefix : "", &walk.items[i], err)) {
            return -1;
        }
    }
    return 0;
}

static int add_path(struct inspect *in, const char *path, struct ct_err *err)
{
    struct kvfs_item item = {.path = (char *)path, .kind = KVFS_ITEM_FILE};
    int fd = *path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : -1;
    if (fd < 0 || fstat(fd, &item.st)) {
        ct_err_sys(err, *path ? errno : ENOENT, "%s", path);
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    if (S_ISDIR(item.st.st_mode)) {
        close(fd);
        return add_dir(in, path, err);
    }
    if (!S_ISREG(item.st.st_mode)) {
        close(fd);
        return ct_err_set(err, CT_USAGE, "%s is neither a file nor a directory", path);
    }
    return add(in, fd, &item, NULL, err);
}

int cmd_inspect(int argc, char **argv)
{
    static const struct argp argp = {
        options,
        parse,
        "FILE|DIR...",
        "Says what encrypted files are: version, algorithm, keys, and what in them nothing "
        "authenticates. Needs no key, and therefore checks no signature.",
        NULL,
        NULL,
        NULL,
    };
    struct inspect in = {0};
    struct ct_err err = CT_ERR_INIT;
    kvfs_parse_args(&argp, "inspect", argc, argv, &in);
    int rc = KVFS_DONE;
    for (size_t i = 0; i < in.path_count; i++) {
        if (add_path(&in, in.paths[i], &err)) {
            rc = kvfs_complain("inspect", &err);
        }
    }
    if (in.json ? kvfs_inspection_json(&in.all) : kvfs_inspection_print(&in.all, in.verbose)) {
        rc = KVFS_FAILED;
    }
    for (size_t i = 0; i < in.all.count; i++) {
        kvfs_inspected_release(&in.all.items[i]);
    }
    free(in.all.items);
    return rc;
}
