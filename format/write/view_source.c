#include "format/write/view_source.h"

#include <pthread.h>
#include <string.h>

/* One decrypted extent. Threads that go through the file side by side need neighbouring extents,
 * so extent e lives in slot e % count and is seldom decrypted twice. */
struct slot {
    pthread_mutex_t lock;
    bool valid;
    uint32_t extent;
    uint8_t *buf; /* CT_EXTENT_MAX */
};

struct view {
    struct ct_source base;
    struct ct_source *in;
    struct ct_version in_version, version;
    struct ct_model *model;
    size_t count;
    struct slot slots[];
};

/* ---- the model owns its source; ours is borrowed ---- */

struct borrowed {
    struct ct_source base;
    struct ct_source *to;
};

static ssize_t borrowed_pread(struct ct_source *s, void *buf, size_t n, uint64_t offset,
                              struct ct_err *err)
{
    struct ct_source *to = ((struct borrowed *)s)->to;
    return to->ops->pread(to, buf, n, offset, err);
}

static int borrowed_version(struct ct_source *s, struct ct_version *v, struct ct_err *err)
{
    struct ct_source *to = ((struct borrowed *)s)->to;
    return to->ops->version(to, v, err);
}

static void borrowed_close(struct ct_source *s)
{
    free(s);
}

static const struct ct_source_ops borrowed_ops = {
    .pread = borrowed_pread, .version = borrowed_version, .close = borrowed_close};

static struct ct_source *borrow(struct ct_source *to, struct ct_err *err)
{
    struct borrowed *b = calloc(1, sizeof(*b));
    if (!b) {
        ct_err_set(err, CT_NOMEM, "no memory for a source");
        return NULL;
    }
    b->base.ops = &borrowed_ops;
    b->to = to;
    return &b->base;
}

/* ---- the view ---- */

static int fill(struct view *v, struct slot *slot, uint32_t extent, struct ct_err *err)
{
    struct ct_damages damages = {0};
    slot->valid = false;
    if (ct_model_read(v->model, extent, slot->buf, &damages, err)) {
        return -1;
    }
    if (damages.count) {
        ct_err_set(err, damages.items[0].code, "%s", damages.items[0].what);
    } else {
        slot->extent = extent;
        slot->valid = true;
    }
    ct_damages_free(&damages);
    return slot->valid ? 0 : -1;
}

static ssize_t read_body(struct view *v, void *buf, size_t n, uint64_t at, struct ct_err *err)
{
    struct ct_extent extent;
    uint32_t i = ct_model_extent_at(v->model, at);
    struct slot *slot = &v->slots[i % v->count];
    ct_model_extent(v->model, i, &extent);
    uint64_t left = extent.begin + extent.len - at;
    n = n < left ? n : left;
    pthread_mutex_lock(&slot->lock);
    int r = slot->valid && slot->extent == i ? 0 : fill(v, slot, i, err);
    if (r == 0) {
        memcpy(buf, slot->buf + (at - extent.begin), n);
    }
    pthread_mutex_unlock(&slot->lock);
    return r ? -1 : (ssize_t)n;
}

static ssize_t view_pread(struct ct_source *s, void *buf, size_t n, uint64_t offset,
                          struct ct_err *err)
{
    struct view *v = (struct view *)s;
    size_t head_len = 0;
    const uint8_t *head = ct_model_header(v->model, &head_len);
    if (offset < head_len) {
        n = n < head_len - offset ? n : head_len - offset;
        memcpy(buf, head + offset, n);
        return (ssize_t)n;
    }
    if (n == 0 || offset >= v->version.size) {
        return 0;
    }
    return read_body(v, buf, n, offset - head_len, err);
}

static int view_version(struct ct_source *s, struct ct_version *out, struct ct_err *err)
{
    struct view *v = (struct view *)s;
    if (v->in->ops->version(v->in, out, err)) {
        return -1;
    }
    if (ct_version_same(out, &v->in_version)) {
        *out = v->version;
    }
    return 0;
}

static void view_close(struct ct_source *s)
{
    struct view *v = (struct view *)s;
    for (size_t i = 0; i < v->count; i++) {
        pthread_mutex_destroy(&v->slots[i].lock);
        ct_wiping_free(v->slots[i].buf);
    }
    ct_model_unref(v->model);
    free(v);
}

static const struct ct_source_ops view_ops = {
    .pread = view_pread, .version = view_version, .close = view_close};

static int open_model(struct view *v, struct ct_keysource *keys, struct ct_err *err)
{
    const struct ct_open how = {
        .source = borrow(v->in, err), .version = v->in_version, .keys = keys, .path = ""};
    if (!how.source || ct_model_open(&how, &v->model, err)) {
        return -1;
    }
    v->version = v->in_version;
    v->version.size = ct_model_view_size(v->model);
    return 0;
}

struct ct_source *ct_view_source(struct ct_source *in, const struct ct_version *version,
                                 struct ct_keysource *keys, size_t slots, struct ct_version *plain,
                                 struct ct_err *err)
{
    struct view *v = calloc(1, sizeof(*v) + slots * sizeof(v->slots[0]));
    if (!v) {
        ct_err_set(err, CT_NOMEM, "no memory for a view");
        return NULL;
    }
    v->base.ops = &view_ops;
    v->in = in;
    v->in_version = *version;
    bool ok = true;
    for (; ok && v->count < slots; v->count++) {
        pthread_mutex_init(&v->slots[v->count].lock, NULL);
        v->slots[v->count].buf = ct_wiping_malloc(CT_EXTENT_MAX);
        ok = v->slots[v->count].buf;
    }
    if (!ok) {
        ct_err_set(err, CT_NOMEM, "no memory for a view");
    }
    if (!ok || open_model(v, keys, err)) {
        view_close(&v->base);
        return NULL;
    }
    *plain = v->version;
    return &v->base;
}
