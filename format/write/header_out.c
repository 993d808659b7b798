#include <string.h>

#include "format/write/write.h"

enum { SIG_BASE64 = 88 };

#define DEFAULT_POLICY "package model\nallow = true"

static struct ct_span span_of(const struct ct_buf *b)
{
    return (struct ct_span){(const char *)b->data, b->len};
}

/* ---- the JSON texts that reserved fields hold ---- */

static void put_string(struct ct_buf *b, const char *name, struct ct_span value)
{
    ct_buf_puts(b, name);
    ct_canon_string(b, value);
}

int ct_policy_text(const char *local, const char *remote, struct ct_buf *out, struct ct_err *err)
{
    struct ct_span texts[] = {{local ? local : DEFAULT_POLICY, 0},
                              {remote ? remote : DEFAULT_POLICY, 0}};
    for (int i = 0; i < 2; i++) {
        texts[i].n = strlen(texts[i].p);
        if (!ct_utf8_ok((const uint8_t *)texts[i].p, texts[i].n)) {
            return ct_err_set(err, CT_USAGE, "the %s policy is not UTF-8", i ? "remote" : "local");
        }
    }
    put_string(out, "{\"local\":", texts[0]);
    put_string(out, ",\"remote\":", texts[1]);
    ct_buf_putc(out, '}');
    return ct_buf_ok(out, err);
}

static void put_keyref(struct ct_buf *b, const char *alg, const char *kty,
                       const struct ct_keyref *ref)
{
    ct_buf_printf(b, "{\"alg\":\"%s\"", alg);
    if (ref->jku.n) {
        put_string(b, ",\"jku\":", ref->jku);
    }
    if (ref->kid.n) {
        put_string(b, ",\"kid\":", ref->kid);
    }
    ct_buf_printf(b, ",\"kty\":\"%s\"}", kty);
}

static void put_keys(struct ct_buf *b, const struct ct_keys_field *k)
{
    ct_buf_putc(b, '{');
    if (k->version == 2) {
        ct_buf_puts(b, "\"chunk_size\":");
        ct_buf_u64(b, k->chunk_size);
        ct_buf_putc(b, ',');
    }
    ct_buf_puts(b, "\"enc\":");
    put_keyref(b, ct_alg_name(k->enc.alg), "oct", &k->enc);
    ct_buf_puts(b, ",\"sign\":");
    put_keyref(b, "ed25519", "okp", &k->sign);
    ct_buf_printf(b, ",\"version\":\"%d\"}", k->version);
}

static void put_base64(struct ct_buf *b, const char *name, const uint8_t *p, size_t n)
{
    ct_buf_puts(b, name);
    ct_buf_putc(b, '"');
    ct_base64_put(b, p, n);
    ct_buf_putc(b, '"');
}

static void put_encrypted(struct ct_buf *b, const struct ct_encrypted *e,
                          const struct ct_keys_field *k)
{
    bool v2 = k->version == 2;
    put_base64(b, "{\"wrapped_key\":", e->wrapped_key, ct_alg_key_len(k->enc.alg));
    put_base64(b, ",\"key_iv\":", e->key_iv, sizeof(e->key_iv));
    put_base64(b, ",\"key_tag\":", e->key_tag, sizeof(e->key_tag));
    /* Under version 1 an empty tensor has neither IV nor tag. */
    put_base64(b, v2 ? ",\"base_iv\":" : ",\"iv\":", e->iv, e->tag_count ? sizeof(e->iv) : 0);
    put_base64(b, v2 ? ",\"tags\":" : ",\"tag\":", e->tags, (size_t)e->tag_count * CT_TAG_LEN);
    ct_buf_putc(b, '}');
}

static void put_encryption(struct ct_buf *b, const struct ct_header_out *h)
{
    const char *separator = "";
    ct_buf_putc(b, '{');
    for (size_t i = 0; i < h->src->tensor_count; i++) {
        if (h->enc->entries[i].encrypted) {
            put_string(b, separator, h->src->tensors[i].name);
            ct_buf_putc(b, ':');
            put_encrypted(b, &h->enc->entries[i], h->keys);
            separator = ",";
        }
    }
    ct_buf_putc(b, '}');
}

/* ---- the header ---- */

static int compare_meta(const void *a, const void *b)
{
    const struct ct_meta *x = a;
    const struct ct_meta *y = b;
    return ct_cmp_bytes(x->key.p, x->key.n, y->key.p, y->key.n);
}

/* The header in canonical form; with `signature` (base64) it is what the file holds. */
static int put_header(const struct ct_header_out *h, const struct ct_span *signature,
                      struct ct_buf *out, struct ct_err *err)
{
    ct_autobuf keys = {0};
    ct_autobuf encryption = {0};
    put_keys(&keys, h->keys);
    put_encryption(&encryption, h);
    if (ct_buf_ok(&keys, err) || ct_buf_ok(&encryption, err)) {
        return -1;
    }
    ct_autofree struct ct_meta *meta = calloc(h->src->meta_count + 4, sizeof(*meta));
    if (!meta) {
        return ct_err_set(err, CT_NOMEM, "no memory for a header");
    }
    size_t n = 0;
    meta[n++] = (struct ct_meta){{"__crypto_keys__", 15}, span_of(&keys)};
    meta[n++] = (struct ct_meta){{"__encryption__", 14}, span_of(&encryption)};
    meta[n++] = (struct ct_meta){{"__policy__", 10}, h->policy};
    if (signature) {
        meta[n++] = (struct ct_meta){{"__signature__", 13}, *signature};
    }
    for (size_t i = 0; i < h->src->meta_count; i++) {
        if (!ct_meta_is_reserved(h->src->meta[i].key)) {
            meta[n++] = h->src->meta[i];
        }
    }
    qsort(meta, n, sizeof(*meta), compare_meta);
    for (size_t i = 0; i < n; i++) {
        put_string(out, i ? "," : "{\"__metadata__\":{", meta[i].key);
        put_string(out, ":", meta[i].value);
    }
    ct_buf_putc(out, '}');
    for (size_t i = 0; i < h->src->tensor_count; i++) {
        ct_buf_putc(out, ',');
        ct_canon_tensor(out, &h->src->tensors[i]);
    }
    ct_buf_putc(out, '}');
    return ct_buf_ok(out, err);
}

static size_t padded(size_t n)
{
    return (n + 7) / 8 * 8;
}

int ct_header_out_len(const struct ct_header_out *h, uint64_t *len, struct ct_err *err)
{
    char blank[SIG_BASE64];
    const struct ct_span signature = {memset(blank, 'A', sizeof(blank)), sizeof(blank)};
    ct_autobuf text = {0};
    if (put_header(h, &signature, &text, err)) {
        return -1;
    }
    if (padded(text.len) > CT_HEADER_MAX) {
        return ct_err_set(err, CT_USAGE,
                          "the header would have %zu bytes, %d are allowed: use larger chunks",
                          text.len, CT_HEADER_MAX);
    }
    *len = CT_PREFIX + padded(text.len);
    return 0;
}

int ct_immutable_digest(const struct ct_header *h, const struct ct_keys_field *keys,
                        const struct ct_encryption_field *enc, uint8_t digest[static CT_DIGEST],
                        struct ct_err *err)
{
    ct_autobuf text = {0};
    if (ct_canon_immutable(h, keys, enc, &text, err)) {
        return -1;
    }
    return ct_sha256(text.data, text.len, digest, err);
}

static int digest_parsed(const struct ct_header *h, uint8_t *digest, struct ct_err *err)
{
    struct ct_keys_field keys = {0};
    struct ct_encryption_field enc = {0};
    int r = ct_meta_keys(h, &keys, err) || ct_meta_encryption(h, &keys, &enc, err) ||
                    ct_immutable_digest(h, &keys, &enc, digest, err)
                ? -1
                : 0;
    ct_encryption_field_free(&enc);
    ct_keys_field_free(&keys);
    return r;
}

/* A reader parses the header, writes its canonical form and verifies that. So do we, before we
 * sign: what would not be read alike is not written. */
static int read_back(const struct ct_header_out *h, const struct ct_buf *text, uint8_t *immutable,
                     struct ct_err *err)
{
    uint8_t digest[CT_DIGEST];
    struct ct_header *parsed = NULL;
    ct_autobuf canonical = {0};
    if (ct_header_parse(text->data, text->len, h->src->body_len, &parsed, err)) {
        return ct_err_wrap(err, "the header to be written");
    }
    int r = ct_canon_signed(parsed, &canonical, err);
    if (r == 0 && ct_cmp_bytes(canonical.data, canonical.len, text->data, text->len) != 0) {
        r = ct_err_set(err, CT_MALFORMED, "the header to be written would not be read alike");
    }
    if (r == 0) {
        r = digest_parsed(parsed, immutable ? immutable : digest, err);
    }
    ct_header_free(parsed);
    return r;
}

int ct_header_out(const struct ct_header_out *h, struct ct_buf *out, uint8_t *immutable,
                  struct ct_err *err)
{
    uint8_t sig[CT_SIG_LEN];
    uint8_t prefix[CT_PREFIX];
    ct_autobuf text = {0};
    ct_autobuf base64 = {0};
    if (put_header(h, NULL, &text, err) || read_back(h, &text, immutable, err) ||
        ct_ed25519_sign(h->seed, text.data, text.len, sig, err)) {
        return -1;
    }
    ct_base64_put(&base64, sig, sizeof(sig));
    const struct ct_span signature = span_of(&base64);
    text.len = 0;
    if (ct_buf_ok(&base64, err) || put_header(h, &signature, &text, err)) {
        return -1;
    }
    while (text.len % 8 && !text.failed) {
        ct_buf_putc(&text, ' ');
    }
    ct_put_le64(prefix, text.len);
    ct_buf_put(out, prefix, sizeof(prefix));
    ct_buf_put(out, text.data, text.len);
    return ct_buf_ok(&text, err) || ct_buf_ok(out, err) ? -1 : 0;
}
