#include "format/canon.h"

#include <string.h>

#include "format/base/sort.h"

static void put_escaped(struct ct_buf *out, unsigned char c)
{
    static const char hex[] = "0123456789abcdef";
    static const char names[] = {[8] = 'b', [9] = 't', [10] = 'n', [12] = 'f', [13] = 'r'};
    ct_buf_putc(out, '\\');
    if (c == '"' || c == '\\') {
        ct_buf_putc(out, (char)c);
    } else if (c < sizeof(names) && names[c]) {
        ct_buf_putc(out, names[c]);
    } else {
        ct_buf_puts(out, "u00");
        ct_buf_putc(out, hex[c >> 4]);
        ct_buf_putc(out, hex[c & 15]);
    }
}

void ct_canon_string(struct ct_buf *out, struct ct_span s)
{
    ct_buf_putc(out, '"');
    size_t from = 0;
    for (size_t i = 0; i < s.n; i++) {
        i += ct_scan_plain((const uint8_t *)s.p + i, s.n - i);
        unsigned char c = i < s.n ? (unsigned char)s.p[i] : 'x';
        if (c < 0x20 || c == '"' || c == '\\') {
            ct_buf_put(out, s.p + from, i - from);
            put_escaped(out, c);
            from = i + 1;
        }
    }
    ct_buf_put(out, s.p + from, s.n - from);
    ct_buf_putc(out, '"');
}

void ct_canon_tensor(struct ct_buf *out, const struct ct_tensor *t)
{
    ct_canon_string(out, t->name);
    ct_buf_puts(out, ":{\"dtype\":");
    ct_canon_string(out, t->dtype);
    ct_buf_puts(out, ",\"shape\":[");
    for (uint32_t i = 0; i < t->rank; i++) {
        if (i) {
            ct_buf_putc(out, ',');
        }
        ct_buf_u64(out, t->shape[i]);
    }
    ct_buf_puts(out, "],\"data_offsets\":[");
    ct_buf_u64(out, t->begin);
    ct_buf_putc(out, ',');
    ct_buf_u64(out, t->end);
    ct_buf_puts(out, "]}");
}

static void put_pair(struct ct_buf *out, struct ct_span key, struct ct_span value, bool *first)
{
    if (!*first) {
        ct_buf_putc(out, ',');
    }
    *first = false;
    ct_canon_string(out, key);
    ct_buf_putc(out, ':');
    ct_canon_string(out, value);
}

/* Everything between the outer braces but the metadata; `comma` if something stands before. */
static void put_tensors(struct ct_buf *out, const struct ct_header *h, bool comma)
{
    for (size_t i = 0; i < h->tensor_count; i++) {
        if (comma || i) {
            ct_buf_putc(out, ',');
        }
        ct_canon_tensor(out, &h->tensors[i]);
    }
}

int ct_canon_signed(const struct ct_header *h, struct ct_buf *out, struct ct_err *err)
{
    bool first = true;
    ct_buf_putc(out, '{');
    if (h->has_metadata) {
        ct_buf_puts(out, "\"__metadata__\":{");
        for (size_t i = 0; i < h->meta_count; i++) {
            if (!ct_span_eq(h->meta[i].key, "__signature__")) {
                put_pair(out, h->meta[i].key, h->meta[i].value, &first);
            }
        }
        ct_buf_putc(out, '}');
    }
    put_tensors(out, h, h->has_metadata);
    ct_buf_putc(out, '}');
    return ct_buf_ok(out, err);
}

/* ---- the immutable part ---- */

struct named {
    struct ct_span name;
    size_t index;
};

static int by_name(const void *a, const void *b)
{
    const struct named *x = a;
    const struct named *y = b;
    return ct_cmp_bytes(x->name.p, x->name.n, y->name.p, y->name.n);
}

static void put_base64(struct ct_buf *out, const char *name, const uint8_t *p, size_t n)
{
    ct_buf_printf(out, "\"%s\":\"", name);
    ct_base64_put(out, p, n);
    ct_buf_putc(out, '"');
}

static void put_immutable_entry(struct ct_buf *out, int version, struct ct_span name,
                                const struct ct_encrypted *e)
{
    /* An empty tensor of version 1 has neither IV nor tag. */
    size_t iv_len = version == 1 && e->tag_count == 0 ? 0 : CT_IV_LEN;
    ct_canon_string(out, name);
    ct_buf_puts(out, ":{");
    put_base64(out, version == 1 ? "iv" : "base_iv", e->iv, iv_len);
    ct_buf_putc(out, ',');
    put_base64(out, version == 1 ? "tag" : "tags", e->tags, (size_t)e->tag_count * CT_TAG_LEN);
    ct_buf_putc(out, '}');
}

static int put_immutable_encryption(const struct ct_header *h, int version,
                                    const struct ct_encryption_field *enc, struct ct_buf *out,
                                    struct ct_err *err)
{
    ct_autofree struct named *names = calloc(h->tensor_count ? h->tensor_count : 1, sizeof(*names));
    size_t n = 0;
    if (!names) {
        return ct_err_set(err, CT_NOMEM, "no memory for %zu names", h->tensor_count);
    }
    for (size_t i = 0; i < h->tensor_count; i++) {
        if (enc->entries[i].encrypted) {
            names[n++] = (struct named){h->tensors[i].name, i};
        }
    }
    if (ct_sort(names, n, sizeof(*names), by_name, err)) {
        return -1;
    }
    ct_buf_putc(out, '{');
    for (size_t i = 0; i < n; i++) {
        if (i) {
            ct_buf_putc(out, ',');
        }
        put_immutable_entry(out, version, names[i].name, &enc->entries[names[i].index]);
    }
    ct_buf_putc(out, '}');
    return ct_buf_ok(out, err);
}

int ct_canon_immutable(const struct ct_header *h, const struct ct_keys_field *keys,
                       const struct ct_encryption_field *enc, struct ct_buf *out,
                       struct ct_err *err)
{
    ct_autobuf text = {0};
    if (put_immutable_encryption(h, keys->version, enc, &text, err)) {
        return -1;
    }
    bool first = true;
    ct_buf_puts(out, "{\"__metadata__\":{");
    for (size_t i = 0; i < h->meta_count; i++) {
        struct ct_span key = h->meta[i].key;
        if (ct_span_eq(key, "__signature__") || ct_span_eq(key, "__crypto_keys__")) {
            continue;
        }
        struct ct_span value = ct_span_eq(key, "__encryption__")
                                   ? (struct ct_span){(const char *)text.data, text.len}
                                   : h->meta[i].value;
        put_pair(out, key, value, &first);
    }
    ct_buf_putc(out, '}');
    put_tensors(out, h, true);
    ct_buf_putc(out, '}');
    return ct_buf_ok(out, err);
}

/* ---- the view ---- */

int ct_view_header(const struct ct_header *h, struct ct_buf *out, struct ct_err *err)
{
    size_t start = out->len;
    bool first = true;
    ct_buf_put(out, "\0\0\0\0\0\0\0", CT_PREFIX);
    ct_buf_putc(out, '{');
    for (size_t i = 0; i < h->meta_count; i++) {
        if (ct_meta_is_reserved(h->meta[i].key)) {
            continue;
        }
        if (first) {
            ct_buf_puts(out, "\"__metadata__\":{");
        }
        put_pair(out, h->meta[i].key, h->meta[i].value, &first);
    }
    if (!first) {
        ct_buf_putc(out, '}');
    }
    put_tensors(out, h, !first);
    ct_buf_putc(out, '}');
    while (!out->failed && (out->len - start) % 8) {
        ct_buf_putc(out, ' ');
    }
    if (ct_buf_ok(out, err)) {
        return -1;
    }
    ct_put_le64(out->data + start, out->len - start - CT_PREFIX);
    return 0;
}
