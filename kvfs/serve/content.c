#include "kvfs/serve/content.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/sha256.h"

struct kvfs_content {
    atomic_uint refs;
    atomic_bool revoked;
    atomic_flag revoking;
    struct ct_err why;      /* once it is revoked */
    struct ct_model *model; /* NULL: a file as it is */
    size_t head_len;
    uint64_t size;
    uint8_t *given; /* a bit an extent; NULL: none yet */

    /* a file as it is */
    struct ct_source *source;
    struct ct_version version;
    struct ct_manifest *manifest;
    const struct ct_entry *entry; /* in it; NULL: nothing vouches for the bytes */
    uint8_t *head;                /* of a small file that a manifest vouches for: all of it */
};

struct kvfs_content *kvfs_content_model(struct ct_model *m, struct ct_err *err)
{
    struct kvfs_content *c = calloc(1, sizeof(*c));
    if (!c) {
        ct_model_unref(m);
        ct_err_set(err, CT_NOMEM, "no memory for a file");
        return NULL;
    }
    atomic_init(&c->refs, 1);
    c->model = m;
    c->size = ct_model_view_size(m);
    (void)ct_model_header(m, &c->head_len);
    return c;
}

/* A file with one digest over the whole is read now, and served from memory. */
static int load_small(struct kvfs_content *c, struct ct_err *err)
{
    uint8_t digest[CT_DIGEST];
    c->head = malloc(c->size ? c->size : 1);
    if (!c->head) {
        return ct_err_set(err, CT_NOMEM, "no memory for a file");
    }
    c->head_len = c->size;
    if (ct_source_read(c->source, c->head, c->size, 0, &c->version, err) ||
        ct_source_check(c->source, &c->version, err) || ct_sha256(c->head, c->size, digest, err)) {
        return -1;
    }
    return memcmp(digest, c->entry->sha256, sizeof(digest)) == 0
               ? 0
               : ct_err_set(err, CT_TAG, "not the content that the manifest vouches for");
}

static int check_entry(struct kvfs_content *c, struct ct_err *err)
{
    if (c->entry->kind != CT_ENTRY_FILE || c->entry->size != c->size) {
        return ct_err_set(err, CT_REJECTED, "not the file that the manifest lists under this name");
    }
    return c->entry->pieces.count ? 0 : load_small(c, err);
}

struct kvfs_content *kvfs_content_file(struct ct_source *source, const struct ct_version *version,
                                       struct ct_manifest *manifest, const struct ct_entry *entry,
                                       struct ct_err *err)
{
    struct kvfs_content *c = calloc(1, sizeof(*c));
    if (!c) {
        ct_source_close(source);
        ct_err_set(err, CT_NOMEM, "no memory for a file");
        return NULL;
    }
    atomic_init(&c->refs, 1);
    c->source = source;
    c->version = *version;
    c->size = version->size;
    if (c->size > CT_BODY_MAX) {
        kvfs_content_unref(c);
        ct_err_set(err, CT_UNSUPPORTED, "a file of more than %llu bytes",
                   (unsigned long long)CT_BODY_MAX);
        return NULL;
    }
    if (entry) {
        c->manifest = ct_manifest_ref(manifest);
        c->entry = entry;
        if (check_entry(c, err)) {
            kvfs_content_unref(c);
            return NULL;
        }
    }
    return c;
}

struct kvfs_content *kvfs_content_ref(struct kvfs_content *c)
{
    atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
    return c;
}

void kvfs_content_unref(struct kvfs_content *c)
{
    if (c && atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) == 1) {
        ct_model_unref(c->model);
        ct_source_close(c->source);
        ct_manifest_unref(c->manifest);
        free(c->head);
        free(c->given);
        free(c);
    }
}

uint64_t kvfs_content_size(const struct kvfs_content *c)
{
    return c->size;
}

const uint8_t *kvfs_content_head(const struct kvfs_content *c, size_t *len)
{
    *len = c->head_len;
    return c->model ? ct_model_header(c->model, len) : c->head;
}

struct ct_model *kvfs_content_as_model(const struct kvfs_content *c)
{
    return c->model;
}

/* Where digests vouch for the bytes, a change of name or mode is no change of content. */
static int check_source(const struct kvfs_content *c, struct ct_err *err)
{
    return c->entry ? ct_source_check_data(c->source, &c->version, err)
                    : ct_source_check(c->source, &c->version, err);
}

void kvfs_content_revoke(struct kvfs_content *c, const struct ct_err *why)
{
    if (!atomic_flag_test_and_set(&c->revoking)) {
        c->why = *why;
        atomic_store(&c->revoked, true);
    }
}

int kvfs_content_revoked(const struct kvfs_content *c, struct ct_err *err)
{
    if (!atomic_load(&c->revoked)) {
        return 0;
    }
    if (err) {
        *err = c->why;
    }
    return -1;
}

int kvfs_content_check(struct kvfs_content *c, struct ct_err *err)
{
    if (kvfs_content_revoked(c, err)) {
        return -1;
    }
    if (c->model) {
        return ct_model_check(c->model, err);
    }
    /* What was read whole and verified is in memory: its source may go. */
    return c->head ? 0 : check_source(c, err);
}

uint32_t kvfs_content_extents(const struct kvfs_content *c)
{
    if (c->model) {
        return ct_model_extent_count(c->model);
    }
    return (uint32_t)((c->size - c->head_len + CT_EXTENT_MAX - 1) / CT_EXTENT_MAX);
}

uint32_t kvfs_content_extent_at(const struct kvfs_content *c, uint64_t offset)
{
    return c->model ? ct_model_extent_at(c->model, offset - c->head_len)
                    : (uint32_t)((offset - c->head_len) / CT_EXTENT_MAX);
}

void kvfs_content_extent(const struct kvfs_content *c, uint32_t i, uint64_t *begin, uint32_t *len)
{
    if (c->model) {
        struct ct_extent x;
        ct_model_extent(c->model, i, &x);
        *begin = x.begin + c->head_len;
        *len = x.len;
        return;
    }
    uint64_t left = c->size - (uint64_t)i * CT_EXTENT_MAX;
    *begin = (uint64_t)i * CT_EXTENT_MAX;
    *len = left < CT_EXTENT_MAX ? (uint32_t)left : CT_EXTENT_MAX;
}

static int note_piece(struct ct_damages *damages, uint64_t begin, uint64_t end, struct ct_err *err)
{
    struct ct_damage *items = realloc(damages->items, (damages->count + 1) * sizeof(*items));
    if (!items) {
        return ct_err_set(err, CT_NOMEM, "no memory to say what is damaged");
    }
    damages->items = items;
    items[damages->count++] = (struct ct_damage){
        .begin = begin,
        .end = end,
        .code = CT_TAG,
        .what = "not the content that the manifest vouches for",
    };
    return 0;
}

static int check_pieces(const struct kvfs_content *c, uint64_t begin, uint8_t *buf, uint32_t len,
                        struct ct_damages *damages, struct ct_err *err)
{
    uint32_t piece = c->entry->pieces.piece;
    for (uint32_t at = 0; at < len; at += piece) {
        uint32_t n = len - at < piece ? len - at : piece;
        if (ct_digests_check(&c->entry->pieces, begin + at, buf + at, n, NULL)) {
            memset(buf + at, 0, n);
            if (note_piece(damages, begin + at, begin + at + n, err)) {
                return -1;
            }
        }
    }
    return 0;
}

static int read_file(struct kvfs_content *c, uint32_t extent, uint8_t *buf,
                     struct ct_damages *damages, struct ct_err *err)
{
    uint64_t begin = 0;
    uint32_t len = 0;
    kvfs_content_extent(c, extent, &begin, &len);
    return check_source(c, err) || ct_source_read(c->source, buf, len, begin, &c->version, err) ||
                   check_source(c, err) ||
                   (c->entry && check_pieces(c, begin, buf, len, damages, err))
               ? -1
               : 0;
}

/* Ranges of the body become those of the file. */
static int shift(const struct kvfs_content *c, struct ct_damages *damages)
{
    for (size_t i = 0; i < damages->count; i++) {
        damages->items[i].begin += c->head_len;
        damages->items[i].end += c->head_len;
    }
    return 0;
}

int kvfs_content_read(struct kvfs_content *c, uint32_t extent, uint8_t *buf,
                      struct ct_damages *damages, struct ct_err *err)
{
    if (kvfs_content_revoked(c, err)) {
        return -1;
    }
    if (!c->model) {
        return read_file(c, extent, buf, damages, err);
    }
    return ct_model_read(c->model, extent, buf, damages, err) ? -1 : shift(c, damages);
}

int kvfs_content_load(struct kvfs_content *c, struct ct_load *load, uint32_t extent,
                      struct ct_damages *damages, struct ct_err *err)
{
    if (kvfs_content_revoked(c, err)) {
        return -1;
    }
    return ct_load_read(load, extent, damages, err) ? -1 : shift(c, damages);
}

uint32_t kvfs_content_pending(struct kvfs_content *c, uint32_t extent)
{
    return c->model ? ct_model_pending(c->model, extent) : 0;
}

void kvfs_content_fetch(struct kvfs_content *c, uint32_t extent)
{
    if (c->model) {
        ct_model_fetch(c->model, extent);
    } else if (c->source) {
        uint64_t begin = 0;
        uint32_t len = 0;
        kvfs_content_extent(c, extent, &begin, &len);
        ct_source_fetch(c->source, begin, len);
    }
}

bool kvfs_content_is_near(struct kvfs_content *c, uint32_t extent)
{
    uint64_t begin = 0;
    uint32_t len = 0;
    if (c->model) {
        return ct_model_is_near(c->model, extent);
    }
    kvfs_content_extent(c, extent, &begin, &len);
    return !c->source || ct_source_is_near(c->source, begin, len);
}

void kvfs_content_give(struct kvfs_content *c, uint32_t extent)
{
    if (!c->given) {
        c->given =
            calloc(kvfs_content_extents(c) / 8 + 1, 1); /* without memory: as if never given */
    }
    if (c->given) {
        c->given[extent / 8] |= (uint8_t)(1U << extent % 8);
    }
}

bool kvfs_content_was_given(const struct kvfs_content *c, uint32_t extent)
{
    return c->given && c->given[extent / 8] >> extent % 8 & 1;
}

void kvfs_content_forget_given(struct kvfs_content *c)
{
    free(c->given);
    c->given = NULL;
}
