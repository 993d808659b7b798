#include <string.h>

#include "format/canon.h"
#include "format/jws.h"
#include "format/manifest_parts.h"

struct ct_manifest_builder {
    uint64_t generation;
    struct ct_entry *entries;
    size_t count, cap;
    struct ct_arena arena;
};

struct ct_manifest_builder *ct_manifest_builder_new(uint64_t generation, struct ct_err *err)
{
    if (generation > CT_MANIFEST_INT_MAX) {
        ct_err_set(err, CT_USAGE, "the generation is at most %llu",
                   (unsigned long long)CT_MANIFEST_INT_MAX);
        return NULL;
    }
    struct ct_manifest_builder *b = calloc(1, sizeof(*b));
    if (!b) {
        ct_err_set(err, CT_NOMEM, "no memory for a manifest");
        return NULL;
    }
    b->generation = generation;
    return b;
}

void ct_manifest_builder_free(struct ct_manifest_builder *b)
{
    if (b) {
        ct_arena_free(&b->arena);
        free(b->entries);
        free(b);
    }
}

static int copy_text(struct ct_arena *a, const char **text, struct ct_err *err)
{
    *text = ct_arena_copy(a, *text, strlen(*text), err);
    return *text ? 0 : -1;
}

static int copy_digests(struct ct_arena *a, struct ct_digests *d, struct ct_err *err)
{
    uint8_t(*to)[CT_DIGEST] = ct_arena_alloc(a, d->count, CT_DIGEST, err);
    if (!to) {
        return -1;
    }
    if (d->count) {
        memcpy(to, d->sha256, d->count * CT_DIGEST);
    }
    d->sha256 = (const uint8_t(*)[CT_DIGEST])to;
    return 0;
}

static int copy_plain(struct ct_arena *a, struct ct_entry *e, struct ct_err *err)
{
    struct ct_digests *to = ct_arena_alloc(a, e->plain_count, sizeof(*to), err);
    if (!to) {
        return -1;
    }
    for (size_t i = 0; i < e->plain_count; i++) {
        to[i] = e->plain[i];
        if (copy_digests(a, &to[i], err)) {
            return -1;
        }
    }
    e->plain = to;
    return 0;
}

static int make_room(struct ct_manifest_builder *b, struct ct_err *err)
{
    if (b->count < b->cap) {
        return 0;
    }
    size_t cap = b->cap ? b->cap * 2 : 64;
    struct ct_entry *p = reallocarray(b->entries, cap, sizeof(*p));
    if (!p) {
        return ct_err_set(err, CT_NOMEM, "no memory for a manifest");
    }
    b->entries = p;
    b->cap = cap;
    return 0;
}

int ct_manifest_builder_add(struct ct_manifest_builder *b, const struct ct_entry *e,
                            struct ct_err *err)
{
    struct ct_arena *a = &b->arena;
    if (ct_entry_check(e, CT_USAGE, err) || make_room(b, err)) {
        return -1;
    }
    struct ct_entry copy = {.kind = e->kind, .path = e->path, .size = e->size};
    memcpy(copy.sha256, e->sha256, sizeof(copy.sha256));
    int failed = copy_text(a, &copy.path, err);
    if (!failed && e->kind == CT_ENTRY_FILE) {
        copy.pieces = e->pieces;
        failed = copy_digests(a, &copy.pieces, err);
    } else if (!failed && e->kind == CT_ENTRY_LINK) {
        copy.target = e->target;
        failed = copy_text(a, &copy.target, err);
    } else if (!failed) {
        copy.plain_count = e->plain_count;
        copy.plain = e->plain;
        failed = copy_plain(a, &copy, err);
    }
    if (failed) {
        return -1;
    }
    b->entries[b->count++] = copy;
    return 0;
}

/* ---- the payload ---- */

static void put_text(struct ct_buf *b, const char *name, const char *value)
{
    ct_buf_puts(b, name);
    ct_canon_string(b, (struct ct_span){value, strlen(value)});
}

static void put_int(struct ct_buf *b, const char *name, uint64_t value)
{
    ct_buf_puts(b, name);
    ct_buf_u64(b, value);
}

static void put_bytes(struct ct_buf *b, const char *name, const void *p, size_t n)
{
    ct_buf_puts(b, name);
    ct_buf_putc(b, '"');
    ct_base64url_put(b, p, n);
    ct_buf_putc(b, '"');
}

static void put_plain(struct ct_buf *b, const struct ct_entry *e)
{
    for (size_t i = 0; i < e->plain_count; i++) {
        const struct ct_digests *d = &e->plain[i];
        ct_buf_puts(b, i ? "," : ",\"plain\":[");
        put_int(b, "{\"begin\":", d->begin);
        put_int(b, ",\"end\":", d->end);
        put_bytes(b, ",\"pieces\":", d->sha256, d->count * CT_DIGEST);
        ct_buf_putc(b, '}');
    }
    if (e->plain_count) {
        ct_buf_putc(b, ']');
    }
}

static void put_entry(struct ct_buf *b, const struct ct_entry *e)
{
    put_text(b, "{\"path\":", e->path);
    switch (e->kind) {
    case CT_ENTRY_FILE:
        put_int(b, ",\"kind\":\"file\",\"size\":", e->size);
        put_bytes(b, ",\"sha256\":", e->sha256, CT_DIGEST);
        if (e->pieces.count) {
            put_bytes(b, ",\"pieces\":", e->pieces.sha256, e->pieces.count * CT_DIGEST);
        }
        break;
    case CT_ENTRY_LINK:
        put_text(b, ",\"kind\":\"link\",\"target\":", e->target);
        break;
    case CT_ENTRY_SHARD:
        put_int(b, ",\"kind\":\"shard\",\"body\":", e->size);
        put_bytes(b, ",\"header\":", e->sha256, CT_DIGEST);
        put_plain(b, e);
        break;
    }
    ct_buf_putc(b, '}');
}

int ct_manifest_builder_sign(struct ct_manifest_builder *b, const struct ct_secret *seed,
                             struct ct_span kid, struct ct_buf *out, struct ct_err *err)
{
    ct_autobuf payload = {0};
    size_t before = out->len;
    if (b->count) {
        qsort(b->entries, b->count, sizeof(*b->entries), ct_entry_compare);
    }
    if (ct_entries_check(b->entries, b->count, CT_USAGE, err)) {
        return -1;
    }
    put_int(&payload, "{\"version\":", CT_MANIFEST_VERSION);
    put_int(&payload, ",\"generation\":", b->generation);
    ct_buf_puts(&payload, ",\"entries\":[");
    for (size_t i = 0; i < b->count; i++) {
        if (i) {
            ct_buf_putc(&payload, ',');
        }
        put_entry(&payload, &b->entries[i]);
    }
    ct_buf_puts(&payload, "]}");
    if (ct_buf_ok(&payload, err) ||
        ct_jws_sign(CT_MANIFEST_TYP, kid, seed, payload.data, payload.len, out, err)) {
        return -1;
    }
    if (out->len - before > CT_MANIFEST_MAX) {
        out->len = before;
        return ct_err_set(err, CT_USAGE, "the manifest would be larger than %d bytes",
                          CT_MANIFEST_MAX);
    }
    return 0;
}
