#include "kvfs/domains.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/file.h"

const char *kvfs_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

int kvfs_open_dir_of(const char *path, struct ct_err *err)
{
    size_t n = (size_t)(kvfs_base_name(path) - path);
    char *dir = n ? strndup(path, n) : strdup(".");
    if (!dir) {
        return ct_err_set(err, CT_NOMEM, "no memory for a path");
    }
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        ct_err_sys(err, errno, "%s", dir);
    }
    free(dir);
    return fd;
}

bool kvfs_is_manifest(const struct kvfs_item *item)
{
    return item->kind != KVFS_ITEM_DIR && strcmp(kvfs_base_name(item->path), CT_MANIFEST_NAME) == 0;
}

const char *kvfs_path_in(const struct kvfs_domain *domain, const char *path)
{
    size_t n = strlen(domain->dir);
    return n ? path + n + 1 : path;
}

static bool beneath(const char *dir, const char *path)
{
    size_t n = strlen(dir);
    return n == 0 || (strncmp(dir, path, n) == 0 && path[n] == '/');
}

/* As a mount has it: of a directory of which an upper manifest lists something, that one has the
 * word, whatever manifest lies there. */
struct kvfs_domain *kvfs_domain_of(const struct kvfs_domains *d, const char *path)
{
    struct kvfs_domain *found = NULL;
    for (size_t i = 0; i < d->count; i++) {
        struct kvfs_domain *one = &d->items[i];
        if (beneath(one->dir, path) &&
            (!found || (one->manifest &&
                        ct_manifest_has_dir(one->manifest, kvfs_path_in(one, found->dir))))) {
            found = one;
        }
    }
    return found;
}

static int deeper_first(const void *a, const void *b)
{
    size_t x = strlen(((const struct kvfs_domain *)a)->dir);
    size_t y = strlen(((const struct kvfs_domain *)b)->dir);
    return x < y ? 1 : x > y ? -1 : 0;
}

struct kvfs_domain *kvfs_domains_add(struct kvfs_domains *d, const char *dir, size_t n,
                                     struct ct_err *err)
{
    struct kvfs_domain *all = reallocarray(d->items, d->count + 1, sizeof(*all));
    char *copy = strndup(dir, n);
    d->items = all ? all : d->items;
    if (!all || !copy) {
        free(copy);
        ct_err_set(err, CT_NOMEM, "no memory for manifests");
        return NULL;
    }
    all[d->count++] = (struct kvfs_domain){.dir = copy};
    qsort(all, d->count, sizeof(*all), deeper_first);
    for (size_t i = 0; i < d->count; i++) {
        if (all[i].dir == copy) {
            return &all[i];
        }
    }
    return NULL;
}

static int read_manifest(struct kvfs_domain *d, const struct kvfs_walk *walk, const char *path,
                         struct ct_keysource *keys, struct ct_err *err)
{
    struct stat st;
    ct_autofd fd = kvfs_open_regular(walk->fd, path, &st, err);
    if (fd < 0 || ct_read_fd(fd, CT_MANIFEST_MAX, &d->text, err)) {
        return -1;
    }
    return ct_manifest_parse(d->text.data, d->text.len, keys, &d->manifest, err);
}

int kvfs_domains_find(struct kvfs_domains *d, const struct kvfs_walk *walk,
                      struct ct_keysource *keys, bool tolerate, struct ct_err *err)
{
    for (size_t i = 0; i < walk->count; i++) {
        const char *path = walk->items[i].path;
        size_t n = (size_t)(kvfs_base_name(path) - path);
        if (!kvfs_is_manifest(&walk->items[i])) {
            continue;
        }
        struct kvfs_domain *one = kvfs_domains_add(d, path, n ? n - 1 : 0, err);
        if (!one) {
            return -1;
        }
        if (read_manifest(one, walk, path, keys, &one->why) && !tolerate) {
            *err = one->why;
            return n ? ct_err_wrap(err, "%s", path) : -1;
        }
    }
    return 0;
}

void kvfs_domains_free(struct kvfs_domains *d)
{
    for (size_t i = 0; i < d->count; i++) {
        ct_manifest_unref(d->items[i].manifest);
        ct_buf_free(&d->items[i].text);
        free(d->items[i].dir);
    }
    free(d->items);
    *d = (struct kvfs_domains){0};
}
