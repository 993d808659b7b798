#include "keyclient/shards.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/canon.h"

/* ---- what lies on the disk ---- */

static int immutable_of(const uint8_t *header, size_t n, uint64_t body, char out[KX_HEX + 1],
                        struct ct_err *err)
{
    struct ct_header *h = NULL;
    struct ct_keys_field keys = {0};
    struct ct_encryption_field enc = {0};
    ct_autobuf text = {0};
    int r = ct_header_parse(header + CT_PREFIX, n - CT_PREFIX, body, &h, err) ||
                    ct_meta_keys(h, &keys, err) || ct_meta_encryption(h, &keys, &enc, err) ||
                    ct_canon_immutable(h, &keys, &enc, &text, err) || ct_buf_ok(&text, err) ||
                    kx_hex_sha256(text.data, text.len, out, err)
                ? -1
                : 0;
    ct_encryption_field_free(&enc);
    ct_keys_field_free(&keys);
    ct_header_free(h);
    return r;
}

int kc_shards_add(struct kc_shards *s, const char *path, const uint8_t *header, size_t n,
                  uint64_t body, struct ct_err *err)
{
    struct kc_shard shard = {.body = body, .wanted = true};
    if (!kx_is_path(path)) {
        return ct_err_set(err, CT_MALFORMED, "%.128s: not a path that a key server takes", path);
    }
    if (s->count == KX_HEADERS_MAX || n < CT_PREFIX || ct_le64(header) != n - CT_PREFIX) {
        return ct_err_set(err, CT_MALFORMED, "%s: %s", path,
                          n < CT_PREFIX ? "no header" : "more than 10000 encrypted files");
    }
    (void)snprintf(shard.path, sizeof(shard.path), "%s", path);
    if (immutable_of(header, n, body, shard.immutable, err) ||
        kx_hex_sha256(header, n, shard.local, err)) {
        return ct_err_wrap(err, "%s", path);
    }
    memcpy(shard.used, shard.local, sizeof(shard.used));
    struct kc_shard *more = realloc(s->items, (s->count + 1) * sizeof(*more));
    if (!more) {
        return ct_err_set(err, CT_NOMEM, "no memory for headers");
    }
    s->items = more;
    s->items[s->count++] = shard;
    return 0;
}

struct kc_shard *kc_shards_find(const struct kc_shards *s, const char *path)
{
    for (size_t i = 0; i < s->count; i++) {
        if (strcmp(s->items[i].path, path) == 0) {
            return &s->items[i];
        }
    }
    return NULL;
}

void kc_shards_reset(struct kc_shards *s)
{
    for (size_t i = 0; i < s->count; i++) {
        struct kc_shard *shard = &s->items[i];
        ct_buf_free(&shard->header);
        memcpy(shard->used, shard->local, sizeof(shard->used));
        shard->wanted = true;
    }
}

void kc_shards_free(struct kc_shards *s)
{
    for (size_t i = 0; i < s->count; i++) {
        ct_buf_free(&s->items[i].header);
    }
    free(s->items);
    *s = (struct kc_shards){0};
}

json_t *kc_shards_json(const struct kc_shards *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->count; i++) {
        if (s->items[i].wanted) {
            json_array_append_new(
                list, json_pack("{s:s,s:s}", "path", s->items[i].path, "sha256", s->items[i].used));
        }
    }
    return list;
}

/* ---- what the server wants ---- */

static int take_entry(struct kc_shards *s, const json_t *entry, struct ct_err *err)
{
    const char *path = NULL;
    const char *sha256 = NULL;
    const char *immutable = NULL;
    json_int_t body = 0;
    if (json_unpack((json_t *)entry, "{s:s,s:s,s:s,s:I}", "path", &path, "sha256", &sha256,
                    "immutable_sha256", &immutable, "body", &body) ||
        !kx_is_hex(sha256, KX_HEX) || !kx_is_hex(immutable, KX_HEX) || body < 0) {
        return ct_err_set(err, CT_MALFORMED, "a header in the synchronisation is malformed");
    }
    struct kc_shard *shard = kc_shards_find(s, path);
    if (!shard) {
        return ct_err_set(err, CT_REJECTED,
                          "body_outdated: %s is missing here; get the current files", path);
    }
    if ((uint64_t)body != shard->body || strcmp(immutable, shard->immutable) != 0) {
        return ct_err_set(err, CT_REJECTED,
                          "body_outdated: %s is of another generation than the server's; get the "
                          "current files",
                          path);
    }
    shard->wanted = true;
    memcpy(shard->used, sha256, KX_HEX + 1);
    return 0;
}

/* Bytes that are not of an entry's digest, or that belong to none, are refused. */
static int take_header(struct kc_shards *s, const json_t *sent, struct ct_err *err)
{
    char digest[KX_HEX + 1];
    const char *path = json_string_value(json_object_get(sent, "path"));
    const json_t *text = json_object_get(sent, "header");
    const size_t n = json_string_length(text);
    struct kc_shard *shard = path ? kc_shards_find(s, path) : NULL;
    ct_autobuf bytes = {0};
    uint8_t *to = text ? ct_buf_reserve(&bytes, n + 1) : NULL;
    ssize_t len = to ? ct_base64_decode(json_string_value(text), n, to, n) : -1;
    if (!shard || !shard->wanted || len < CT_PREFIX) {
        return ct_err_set(err, CT_MALFORMED, "the server sent a header that belongs to no file");
    }
    bytes.len = (size_t)len;
    if (kx_hex_sha256(bytes.data, bytes.len, digest, err)) {
        return -1;
    }
    if (strcmp(digest, shard->used) != 0) {
        return ct_err_set(err, CT_REJECTED, "%s: the header is not the one that the server signed",
                          shard->path);
    }
    ct_buf_free(&shard->header);
    shard->header = bytes;
    bytes = (struct ct_buf){0};
    return 0;
}

/* Whether the bytes of what is to be used are there. */
static int check_whole(const struct kc_shards *s, struct ct_err *err)
{
    for (size_t i = 0; i < s->count; i++) {
        const struct kc_shard *shard = &s->items[i];
        char digest[KX_HEX + 1];
        if (!shard->wanted || (!shard->header.len && strcmp(shard->used, shard->local) == 0)) {
            continue;
        }
        if (!shard->header.len ||
            kx_hex_sha256(shard->header.data, shard->header.len, digest, err) ||
            strcmp(digest, shard->used) != 0) {
            return ct_err_set(err, CT_REJECTED, "%s: the server did not send its header",
                              shard->path);
        }
    }
    return 0;
}

int kc_shards_sync(struct kc_shards *s, const json_t *payload, const json_t *sent,
                   struct ct_err *err)
{
    size_t i = 0;
    const json_t *each = NULL;
    const json_t *entries = json_object_get(payload, "headers");
    char digest[KX_HEX + 1];
    const char *wanted = json_string_value(json_object_get(payload, "headers_sha256"));
    if (kx_headers_digest(entries, digest, err)) { /* and no path twice */
        return -1;
    }
    if (!wanted || strcmp(digest, wanted) != 0 || !json_is_array(sent)) {
        return ct_err_set(err, CT_MALFORMED, "the synchronisation contradicts itself");
    }
    for (i = 0; i < s->count; i++) {
        s->items[i].wanted = false;
    }
    json_array_foreach(entries, i, each)
    {
        if (take_entry(s, each, err)) {
            return -1;
        }
    }
    json_array_foreach(sent, i, each)
    {
        if (take_header(s, each, err)) {
            return -1;
        }
    }
    for (i = 0; i < s->count; i++) {
        if (strcmp(s->items[i].used, s->items[i].local) == 0) {
            ct_buf_free(&s->items[i].header); /* the local one again */
        }
    }
    return check_whole(s, err);
}
