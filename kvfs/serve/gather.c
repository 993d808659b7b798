#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvfs/serve/leases.h"
#include "kvfs/serve/paths.h"

enum { DEPTH = 32 };

struct gather {
    struct kvfs_serve *s;
    struct kvfs_leases *leases;
    struct ct_err *err;
};

/* ---- the model that a header names ---- */

/* "koalavault://resources/OWNER/models/NAME/master-key" -> OWNER/NAME. */
static bool model_of_jku(struct ct_span jku, char out[KC_MODEL_MAX + 1])
{
    static const char before[] = "koalavault://resources/";
    static const char between[] = "/models/";
    static const char after[] = "/master-key";
    const size_t ends = sizeof(before) + sizeof(after) - 2;
    char owner[65];
    char name[65];
    if (jku.n <= ends || jku.n > ends + sizeof(between) + KC_MODEL_MAX ||
        memcmp(jku.p, before, sizeof(before) - 1) != 0 ||
        memcmp(jku.p + jku.n - (sizeof(after) - 1), after, sizeof(after) - 1) != 0) {
        return false;
    }
    const char *from = jku.p + sizeof(before) - 1;
    const size_t n = jku.n - ends;
    const char *middle = memmem(from, n, between, sizeof(between) - 1);
    if (!middle) {
        return false;
    }
    const char *rest = middle + sizeof(between) - 1;
    int len = snprintf(out, KC_MODEL_MAX + 1, "%.*s/%.*s", (int)(middle - from), from,
                       (int)(from + n - rest), rest);
    return len > 0 && len <= KC_MODEL_MAX && kx_split_model(out, owner, name);
}

static bool model_of(const struct gather *g, const struct ct_header *h, char out[KC_MODEL_MAX + 1])
{
    struct ct_keys_field keys = {0};
    if (g->s->config.model[0]) {
        (void)snprintf(out, KC_MODEL_MAX + 1, "%s", g->s->config.model);
        return true;
    }
    bool found = ct_meta_keys(h, &keys, NULL) == 0 && model_of_jku(keys.enc.jku, out);
    ct_keys_field_free(&keys);
    return found;
}

/* ---- the leases ---- */

/* `manifest`: the nearest directory with one, or NULL. */
static struct kvfs_lease *lease_of(const struct gather *g, const char *model, const char *manifest)
{
    struct kvfs_leases *all = g->leases;
    const char *dir = manifest ? manifest : "";
    for (size_t i = 0; i < all->count; i++) {
        struct kvfs_lease *l = &all->items[i];
        if (strcmp(l->model, model) == 0 && l->has_manifest == (manifest != NULL) &&
            (!manifest || strcmp(l->dir, dir) == 0)) {
            return l;
        }
    }
    if (all->count == KVFS_LEASES_MAX) {
        ct_err_set(g->err, CT_UNSUPPORTED,
                   "more than %d models: mount their directories one by one", KVFS_LEASES_MAX);
        return NULL;
    }
    struct kvfs_lease *l = &all->items[all->count++];
    *l = (struct kvfs_lease){.s = g->s, .has_manifest = manifest != NULL};
    (void)snprintf(l->model, sizeof(l->model), "%s", model);
    (void)snprintf(l->dir, sizeof(l->dir), "%s", dir);
    return l;
}

static int note_file(struct kvfs_lease *l, const char *path, const struct ct_version *v,
                     struct ct_err *err)
{
    struct kvfs_lease_file *more = realloc(l->files, (l->file_count + 1) * sizeof(*more));
    char *copy = strdup(path);
    if (more) {
        l->files = more;
    }
    if (!more || !copy) {
        free(copy);
        return ct_err_set(err, CT_NOMEM, "no memory for the names of files");
    }
    l->files[l->file_count++] = (struct kvfs_lease_file){v->dev, v->ino, copy};
    return 0;
}

/* Its name in the release is known once all files are. */
static int add_file(const struct gather *g, const char *path, const char *manifest,
                    const struct ct_version *v, const struct ct_header *h, const struct ct_buf *raw)
{
    char model[KC_MODEL_MAX + 1];
    if (!model_of(g, h, model)) {
        ct_log(CT_LOG_WARN, "%s names no model of a key server: it is refused", path);
        return 0;
    }
    struct kvfs_lease *l = lease_of(g, model, manifest);
    if (!l) {
        return -1;
    }
    struct ct_err why = CT_ERR_INIT;
    if (kc_shards_add(&l->shards, "-", raw->data, raw->len, h->body_len, &why)) {
        ct_log(CT_LOG_WARN, "%s: %s: it is refused", path, why.msg);
        return 0;
    }
    return note_file(l, path, v, g->err);
}

/* ---- the walk ---- */

/* What can't be opened or understood is for lookup to refuse. */
static int look_at_file(const struct gather *g, const char *path, const char *manifest,
                        struct kvfs_opened *opened)
{
    struct ct_version v;
    struct ct_measure measure;
    struct ct_header *h = NULL;
    ct_autobuf raw = {0};
    int r = 0;
    ct_version_of(&opened->st, &v);
    struct ct_source *source = ct_source_fd(opened->fd, NULL);
    opened->fd = -1;
    if (source && ct_header_measure(source, &v, &measure, NULL) == 0 &&
        measure.kind == CT_KIND_ENCRYPTED && ct_header_read(source, &v, &raw, &h, NULL) == 0) {
        r = add_file(g, path, manifest, &v, h, &raw);
    }
    ct_header_free(h);
    ct_source_close(source);
    return r;
}

static int look_into(const struct gather *g, const char *path, const char *manifest, int fd,
                     unsigned depth);

static int look_at(const struct gather *g, const char *path, const char *manifest, unsigned depth)
{
    struct kvfs_opened opened;
    int r = 0;
    if (kvfs_source_open(g->s, path, &opened, NULL) == 0) {
        if (S_ISREG(opened.st.st_mode)) {
            r = look_at_file(g, path, manifest, &opened);
        } else if (S_ISDIR(opened.st.st_mode) && !opened.is_link) {
            r = look_into(g, path, manifest, opened.fd, depth);
            opened.fd = -1;
        }
    }
    kvfs_opened_release(&opened);
    return r;
}

static int look_into(const struct gather *g, const char *path, const char *manifest, int fd,
                     unsigned depth)
{
    char own[PATH_MAX];
    struct kvfs_opened there;
    int r = 0;
    if (kvfs_path_join(own, path, CT_MANIFEST_NAME) == 0) {
        manifest = kvfs_source_open(g->s, own, &there, NULL) == 0 ? path : manifest;
        kvfs_opened_release(&there);
    }
    DIR *dir = fdopendir(fd);
    if (!dir) {
        close(fd);
        return ct_err_set(g->err, CT_IO, "%s cannot be listed", path);
    }
    for (const struct dirent *d; r == 0 && (d = readdir(dir));) {
        char below[PATH_MAX];
        if (strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0 && depth < DEPTH &&
            kvfs_path_join(below, path, d->d_name) == 0) {
            r = look_at(g, below, manifest, depth + 1);
        }
    }
    (void)closedir(dir);
    return r;
}

/* ---- what a release calls the files ---- */

bool kvfs_lease_has(const struct kvfs_lease *l, uint64_t dev, uint64_t ino, size_t *index)
{
    for (size_t i = 0; i < l->file_count; i++) {
        if (l->files[i].ino == ino && l->files[i].dev == dev) {
            if (index) {
                *index = i;
            }
            return true;
        }
    }
    return false;
}

static bool lies_in_manifest(const struct kvfs_leases *all, const struct kvfs_lease_file *f)
{
    for (size_t i = 0; i < all->count; i++) {
        const struct kvfs_lease *l = &all->items[i];
        if (l->has_manifest && kvfs_lease_has(l, f->dev, f->ino, NULL)) {
            return true;
        }
    }
    return false;
}

static void leave_out(struct kvfs_lease *l, size_t i)
{
    const size_t after = l->file_count - i - 1;
    free(l->files[i].path);
    memmove(&l->files[i], &l->files[i + 1], after * sizeof(*l->files));
    memmove(&l->shards.items[i], &l->shards.items[i + 1], after * sizeof(*l->shards.items));
    l->file_count--;
    l->shards.count--;
}

/* The directory that all have in common. */
static void find_common(struct kvfs_lease *l)
{
    for (size_t i = 0; i < l->file_count; i++) {
        char dir[PATH_MAX];
        (void)snprintf(dir, sizeof(dir), "%s", l->files[i].path);
        kvfs_path_up(dir);
        if (i == 0) {
            (void)snprintf(l->dir, sizeof(l->dir), "%s", dir);
        }
        for (size_t n; n = strlen(l->dir),
                       n && (strncmp(dir, l->dir, n) != 0 || (dir[n] != '/' && dir[n] != '\0'));) {
            kvfs_path_up(l->dir);
        }
    }
}

/* Files that a model with a manifest has too, by another name, are that one's: the blobs of a
 * download cache, to which a snapshot's links lead. */
static void name_files(struct kvfs_leases *all, struct kvfs_lease *l, bool one_model)
{
    for (size_t i = l->has_manifest ? 0 : l->file_count; i-- > 0;) {
        if (lies_in_manifest(all, &l->files[i])) {
            leave_out(l, i);
        }
    }
    if (!l->has_manifest && !one_model) {
        find_common(l);
    }
    for (size_t i = l->file_count; i-- > 0;) {
        const char *name = kvfs_path_below(l->files[i].path, l->dir);
        if (kx_is_path(name)) {
            (void)snprintf(l->shards.items[i].path, sizeof(l->shards.items[i].path), "%s", name);
        } else {
            ct_log(CT_LOG_WARN, "%s: no name that a key server takes: it is refused", name);
            leave_out(l, i);
        }
    }
}

int kvfs_gather(struct kvfs_serve *s, struct kvfs_leases *l, struct ct_err *err)
{
    const struct gather g = {s, l, err};
    size_t kept = 0;
    l->items = calloc(KVFS_LEASES_MAX, sizeof(*l->items));
    if (!l->items) {
        return ct_err_set(err, CT_NOMEM, "no memory for leases");
    }
    if (look_at(&g, "", NULL, 0)) {
        return -1;
    }
    for (size_t i = 0; i < l->count; i++) {
        name_files(l, &l->items[i], s->config.model[0] != '\0');
    }
    for (size_t i = 0; i < l->count; i++) {
        if (l->items[i].file_count) {
            l->items[kept++] = l->items[i];
        } else {
            kc_shards_free(&l->items[i].shards);
            free(l->items[i].files);
        }
    }
    l->count = kept;
    return 0;
}
