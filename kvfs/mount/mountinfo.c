#include "kvfs/mount/mountinfo.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "format/base/bytes.h"

void kvfs_mountinfo_unescape(char *text)
{
    char *to = text;
    for (const char *p = text; *p; p++) {
        if (p[0] == '\\' && p[1] >= '0' && p[1] <= '3' && p[2] >= '0' && p[2] <= '7' &&
            p[3] >= '0' && p[3] <= '7') {
            *to++ = (char)((p[1] - '0') << 6 | (p[2] - '0') << 3 | (p[3] - '0'));
            p += 3;
        } else {
            *to++ = *p;
        }
    }
    *to = '\0';
}

static int parse_dev(const char *text, dev_t *dev)
{
    char *end = NULL;
    unsigned long major = strtoul(text, &end, 10);
    if (*end != ':') {
        return -1;
    }
    unsigned long minor = strtoul(end + 1, &end, 10);
    *dev = makedev((unsigned)major, (unsigned)minor);
    return *end ? -1 : 0;
}

/* ID PARENT MAJOR:MINOR ROOT PATH OPTIONS [TAGS…] - FSTYPE SOURCE SUPEROPTIONS */
static int parse_row(char *line, struct kvfs_mountinfo *row)
{
    char *save = NULL;
    char *words[6] = {NULL};
    for (size_t i = 0; i < 6; i++) {
        words[i] = strtok_r(i ? NULL : line, " \n", &save);
        if (!words[i]) {
            return -1;
        }
    }
    char *word;
    row->shared = false;
    while ((word = strtok_r(NULL, " \n", &save)) && strcmp(word, "-") != 0) {
        row->shared |= strncmp(word, "shared:", 7) == 0;
    }
    char *fstype = strtok_r(NULL, " \n", &save);
    char *source = strtok_r(NULL, " \n", &save);
    if (!fstype || !source || parse_dev(words[2], &row->dev)) {
        return -1;
    }
    kvfs_mountinfo_unescape(words[4]);
    kvfs_mountinfo_unescape(source);
    (void)snprintf(row->path, sizeof(row->path), "%s", words[4]);
    row->id = atoi(words[0]);     // NOLINT(cert-err34-c)
    row->parent = atoi(words[1]); // NOLINT(cert-err34-c)
    (void)snprintf(row->fstype, sizeof(row->fstype), "%s", fstype);
    (void)snprintf(row->source, sizeof(row->source), "%s", source);
    return 0;
}

typedef void (*each_fn)(void *ctx, const struct kvfs_mountinfo *info);

/* Calls fn for every mount at `path` (NULL: wherever), the oldest first. */
static int each_at(const char *path, each_fn fn, void *ctx)
{
    FILE *table = fopen("/proc/self/mountinfo", "re");
    if (!table) {
        return -1;
    }
    ct_autofree char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, table) > 0) {
        struct kvfs_mountinfo row;
        if (parse_row(line, &row) == 0 && (!path || strcmp(row.path, path) == 0)) {
            fn(ctx, &row);
        }
    }
    int rc = ferror(table) ? -1 : 0;
    (void)fclose(table);
    return rc;
}

struct last {
    struct kvfs_mountinfo *info;
    bool any;
};

static void keep_last(void *ctx, const struct kvfs_mountinfo *info)
{
    struct last *last = ctx;
    *last->info = *info;
    last->any = true;
}

int kvfs_mountinfo_at(const char *path, struct kvfs_mountinfo *out, struct ct_err *err)
{
    struct last last = {.info = out};
    if (each_at(path, keep_last, &last)) {
        return ct_err_sys(err, errno, "/proc/self/mountinfo");
    }
    return last.any;
}

struct by_id {
    int id;
    struct kvfs_mountinfo *info;
    bool found, covered;
};

static void take_id(void *ctx, const struct kvfs_mountinfo *info)
{
    struct by_id *b = ctx;
    if (info->id == b->id) {
        *b->info = *info;
        b->found = true;
    }
    b->covered |= b->found && info->parent == b->id && strcmp(info->path, b->info->path) == 0;
}

int kvfs_mountinfo_of(int id, struct kvfs_mountinfo *out, bool *covered, struct ct_err *err)
{
    struct by_id b = {.id = id, .info = out};
    if (each_at(NULL, take_id, &b)) {
        return ct_err_sys(err, errno, "/proc/self/mountinfo");
    }
    if (covered) {
        *covered = b.covered;
    }
    return b.found;
}

struct seek {
    dev_t dev;
    bool found, on_top;
};

static void look(void *ctx, const struct kvfs_mountinfo *info)
{
    struct seek *seek = ctx;
    seek->on_top = info->dev == seek->dev;
    seek->found = seek->found || seek->on_top;
}

bool kvfs_mountinfo_has(const char *path, dev_t dev, bool *on_top)
{
    struct seek seek = {.dev = dev};
    if (each_at(path, look, &seek)) {
        seek.found = seek.on_top = true;
    }
    if (on_top) {
        *on_top = seek.on_top;
    }
    return seek.found;
}

int kvfs_mountpoint_path(const char *path, char out[static PATH_MAX], struct ct_err *err)
{
    char copy[PATH_MAX];
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof(copy)) {
        return ct_err_set(err, CT_USAGE, "%s: not a path", path);
    }
    memcpy(copy, path, n + 1);
    while (n > 1 && copy[n - 1] == '/') {
        copy[--n] = '\0';
    }
    char *slash = strrchr(copy, '/');
    const char *name = slash ? slash + 1 : copy;
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        /* The working directory or the root: no name to leave untouched. */
        return realpath(copy, out) ? 0 : ct_err_sys(err, errno, "%s", path);
    }
    char parent[PATH_MAX] = ".";
    if (slash) {
        (void)snprintf(parent, sizeof(parent), "%.*s", (int)(slash == copy ? 1 : slash - copy),
                       copy);
    }
    char resolved[PATH_MAX];
    if (!realpath(parent, resolved)) {
        return ct_err_sys(err, errno, "%s", path);
    }
    const char *root = strcmp(resolved, "/") == 0 ? "" : resolved;
    int len = snprintf(out, PATH_MAX, "%s/%s", root, name);
    return len < PATH_MAX ? 0 : ct_err_sys(err, ENAMETOOLONG, "%s", path);
}
