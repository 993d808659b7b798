#include <string.h>

#include "format/base/arena.h"
#include "format/meta_parts.h"

struct enc_parser {
    struct ct_scan scan;
    const struct ct_header *header;
    const struct ct_keys_field *keys;
    struct ct_encryption_field *out;
    struct ct_arena *arena;
    struct ct_buf name;
    struct ct_buf text;  /* a base64 string as it stands */
    struct ct_buf bytes; /* decoded */
};

static int take_base64(struct enc_parser *e)
{
    e->text.len = e->bytes.len = 0;
    if (ct_scan_string_to(&e->scan, &e->text)) {
        return -1;
    }
    size_t cap = e->text.len / 4 * 3 + 3;
    uint8_t *to = ct_buf_reserve(&e->bytes, cap);
    if (!to) {
        return ct_buf_ok(&e->bytes, e->scan.err);
    }
    ssize_t n = e->text.len ? ct_base64_decode((char *)e->text.data, e->text.len, to, cap) : 0;
    if (n < 0) {
        return ct_scan_fail(&e->scan, "not base64");
    }
    e->bytes.len = (size_t)n;
    return 0;
}

static int take_exactly(struct enc_parser *e, uint8_t *to, size_t n)
{
    if (take_base64(e)) {
        return -1;
    }
    if (e->bytes.len != n) {
        return ct_scan_fail(&e->scan, "a value of the wrong length");
    }
    if (n) {
        memcpy(to, e->bytes.data, n);
    }
    return 0;
}

static uint64_t message_count(const struct ct_keys_field *keys, uint64_t len)
{
    if (keys->version == 1) {
        return len ? 1 : 0;
    }
    return len ? len / keys->chunk_size + (len % keys->chunk_size != 0) : 1;
}

static int take_tags(struct enc_parser *e, const struct ct_tensor *t, struct ct_encrypted *entry)
{
    uint64_t want = message_count(e->keys, t->end - t->begin);
    if (take_base64(e)) {
        return -1;
    }
    if (e->bytes.len % CT_TAG_LEN || e->bytes.len / CT_TAG_LEN != want || want > UINT32_MAX) {
        return ct_scan_fail(&e->scan, "not one tag for each message");
    }
    uint8_t *tags = ct_arena_alloc(e->arena, e->bytes.len, 1, e->scan.err);
    if (!tags) {
        return -1;
    }
    if (e->bytes.len) {
        memcpy(tags, e->bytes.data, e->bytes.len);
    }
    entry->tags = tags;
    entry->tag_count = (uint32_t)want;
    return 0;
}

static int take_iv(struct enc_parser *e, const struct ct_tensor *t, struct ct_encrypted *entry)
{
    bool none = e->keys->version == 1 && t->begin == t->end;
    return take_exactly(e, entry->iv, none ? 0 : CT_IV_LEN);
}

static int take_entry_members(struct enc_parser *e, const struct ct_tensor *t,
                              struct ct_encrypted *entry)
{
    static const char *const v1[] = {"wrapped_key", "key_iv",   "key_tag", "iv",
                                     "tag",         "enc_algo", NULL};
    static const char *const v2[] = {"wrapped_key", "key_iv",   "key_tag", "base_iv",
                                     "tags",        "enc_algo", NULL};
    unsigned seen = 0;
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&e->scan, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&e->scan, '}', &first)) == 1) {
        int which = -1;
        if (ct_scan_member(&e->scan, e->keys->version == 1 ? v1 : v2, &seen, &which)) {
            return -1;
        }
        int r = 0;
        switch (which) {
        case 0:
            r = take_exactly(e, entry->wrapped_key, ct_alg_key_len(e->keys->enc.alg));
            break;
        case 1:
            r = take_exactly(e, entry->key_iv, CT_IV_LEN);
            break;
        case 2:
            r = take_exactly(e, entry->key_tag, CT_TAG_LEN);
            break;
        case 3:
            r = take_iv(e, t, entry);
            break;
        case 4:
            r = take_tags(e, t, entry);
            break;
        case 5:
            r = ct_scan_string(&e->scan, NULL, NULL);
            break;
        default:
            r = ct_scan_fail(&e->scan, "a member that this version does not have");
        }
        if (r) {
            return -1;
        }
    }
    if (more < 0) {
        return -1;
    }
    if ((seen & 31) != 31) {
        return ct_scan_fail(&e->scan, "a member is missing");
    }
    if (e->keys->version == 2 && ct_be32(entry->iv + 8) > UINT32_MAX - (entry->tag_count - 1)) {
        return ct_scan_fail(&e->scan, "the chunk counter overflows");
    }
    return 0;
}

static int take_entry(struct enc_parser *e)
{
    e->name.len = 0;
    if (ct_scan_string_to(&e->scan, &e->name) || ct_scan_expect(&e->scan, ':')) {
        return -1;
    }
    struct ct_span name = {(const char *)e->name.data, e->name.len};
    ptrdiff_t i = ct_header_find(e->header, name);
    struct ct_encrypted *entry = i < 0 ? NULL : &e->out->entries[i];
    int r = 0;
    if (!entry || entry->encrypted) {
        r = ct_scan_fail(&e->scan, entry ? "twice" : "does not exist");
    } else {
        entry->encrypted = true;
        r = take_entry_members(e, &e->header->tensors[i], entry);
    }
    return r ? ct_err_wrap(e->scan.err, "tensor %.*s", ct_span_shown(name), name.p) : 0;
}

static int take_entries(struct enc_parser *e)
{
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&e->scan, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&e->scan, '}', &first)) == 1) {
        if (take_entry(e)) {
            return -1;
        }
    }
    return more < 0 ? -1 : ct_scan_end(&e->scan);
}

int ct_meta_encryption(const struct ct_header *h, const struct ct_keys_field *keys,
                       struct ct_encryption_field *out, struct ct_err *err)
{
    struct ct_err mine;
    *out = (struct ct_encryption_field){.count = h->tensor_count};
    const struct ct_span *text = ct_meta_field(h, "__encryption__", err);
    if (!text) {
        return -1;
    }
    struct ct_arena *arena = calloc(1, sizeof(*arena));
    out->arena = arena;
    if (!arena ||
        !(out->entries = ct_arena_alloc(arena, h->tensor_count, sizeof(*out->entries), err))) {
        ct_encryption_field_free(out);
        return ct_err_set(err, CT_NOMEM, "no memory for __encryption__");
    }
    struct enc_parser e = {.header = h, .keys = keys, .out = out, .arena = arena};
    ct_scan_memory(&e.scan, text->p, text->n, &mine);
    int r = take_entries(&e);
    ct_buf_free(&e.name);
    ct_buf_free(&e.text);
    ct_buf_free(&e.bytes);
    if (r) {
        ct_encryption_field_free(out);
        return ct_meta_failed("__encryption__", &mine, err);
    }
    return 0;
}

void ct_encryption_field_free(struct ct_encryption_field *f)
{
    if (f->arena) {
        ct_arena_free(f->arena);
        free(f->arena);
    }
    *f = (struct ct_encryption_field){0};
}
