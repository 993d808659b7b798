/*
 * Mutations of an encrypted file that reach behind its signature: the JSON is changed, then signed
 * again as it is written, or the whole header is made anew so that DEKs and tags fit as well.
 */
#include <jansson.h>

#include "format/canon.h"
#include "format/write/write.h"
#include "tests/fuzz/model_file.h"

static struct ct_keyring *ring;

/* ---- the signature alone ---- */

static const struct ct_secret *signer_of(const struct ct_header *h, struct ct_keyring *keys)
{
    const struct ct_secret *seed = NULL;
    struct ct_span kid;
    uint8_t pub[CT_ED25519_PUB];
    struct ct_keys_field field = {0};
    bool second = ct_meta_keys(h, &field, NULL) == 0 && ct_span_eq(field.sign.kid, "s-2");
    ct_keys_field_free(&field);
    MUST(ct_keyring_signer(keys, second ? "s-2" : "s-1", &seed, &kid, pub, NULL) == 0);
    return seed;
}

/* The string after the first `"__signature__"`, without its quotes. */
static bool find_signature(const struct ct_buf *json, size_t *at, size_t *len)
{
    static const char name[] = "\"__signature__\"";
    const uint8_t *end = json->data + json->len;
    const uint8_t *p = memmem(json->data, json->len, name, sizeof(name) - 1);
    p = p ? memchr(p + sizeof(name) - 1, '"', (size_t)(end - p) - (sizeof(name) - 1)) : NULL;
    const uint8_t *close = p ? memchr(p + 1, '"', (size_t)(end - p) - 1) : NULL;
    if (!close) {
        return false;
    }
    *at = (size_t)(p + 1 - json->data);
    *len = (size_t)(close - p) - 1;
    return true;
}

int resign(struct ct_buf *json, uint64_t body_len, struct ct_keyring *keys)
{
    struct ct_header *h = NULL;
    uint8_t sig[CT_SIG_LEN];
    ct_autobuf text = {0};
    ct_autobuf out = {0};
    size_t at = 0;
    size_t len = 0;
    if (!find_signature(json, &at, &len) ||
        ct_header_parse(json->data, json->len, body_len, &h, NULL)) {
        return -1;
    }
    MUST(ct_canon_signed(h, &text, NULL) == 0);
    MUST(ct_ed25519_sign(signer_of(h, keys), text.data, text.len, sig, NULL) == 0);
    ct_header_free(h);
    ct_buf_put(&out, json->data, at);
    ct_base64_put(&out, sig, sizeof(sig));
    ct_buf_put(&out, json->data + at + len, json->len - at - len);
    json->len = 0;
    ct_buf_put(json, out.data, out.len);
    return ct_buf_ok(json, NULL);
}

/* ---- the whole header ---- */

/* IVs and DEKs only have to differ between tensors here. */
static void fill(uint8_t *p, size_t n, size_t tensor, uint8_t what)
{
    for (size_t i = 0; i < n; i++) {
        p[i] = (uint8_t)(what + 31 * tensor + i);
    }
}

/* The tag that makes n bytes of ciphertext the right ones. */
static void tag_of(struct ct_aead *a, const uint8_t *iv, const uint8_t *cipher, size_t n,
                   uint8_t *tag)
{
    uint8_t *buf = calloc(1, n + 1);
    MUST(buf && ct_aead_encrypt(a, iv, buf, n, buf, tag, NULL) == 0);
    for (size_t i = 0; i < n; i++) {
        buf[i] ^= cipher[i];
    }
    MUST(ct_aead_encrypt(a, iv, buf, n, buf, tag, NULL) == 0 && memcmp(buf, cipher, n) == 0);
    free(buf);
}

static int seal_tensor(const struct model_file *f, const struct ct_header *h, size_t i,
                       const struct ct_keys_field *k, struct ct_aead *master,
                       struct ct_encrypted *e, struct ct_arena *arena, struct rng *r)
{
    const struct ct_tensor *t = &h->tensors[i];
    const size_t key_len = ct_alg_key_len(k->enc.alg);
    uint64_t len = t->end - t->begin;
    uint64_t unit = k->version == 1 ? len : k->chunk_size;
    uint64_t count = len ? len / unit + (len % unit != 0) : k->version == 2;
    uint8_t dek[CT_DEK_MAX];
    if (count > MESSAGES_MAX) {
        return -1;
    }
    fill(dek, sizeof(dek), i, 1);
    fill(e->key_iv, CT_IV_LEN, i, 2);
    fill(e->iv, CT_IV_LEN, i, 3);
    if (rnd(r, 8) == 0) { /* the last counters there are, or one too many */
        ct_put_be32(e->iv + 8, UINT32_MAX - (uint32_t)count + rnd(r, 3));
    }
    e->encrypted = true;
    e->tag_count = (uint32_t)count;
    uint8_t *tags = ct_arena_alloc(arena, count, CT_TAG_LEN, NULL);
    ct_autofree uint8_t *cipher = malloc(len + 1);
    struct ct_aead *a = ct_aead_new(k->enc.alg, dek, NULL);
    MUST(tags && cipher && a);
    MUST(ct_aead_encrypt(master, e->key_iv, dek, key_len, e->wrapped_key, e->key_tag, NULL) == 0);
    model_file_read(f, CT_PREFIX + h->json_len + t->begin, cipher, len);
    for (uint64_t c = 0; c < count; c++) {
        uint8_t iv[CT_IV_LEN];
        uint64_t left = len - c * unit;
        memcpy(iv, e->iv, sizeof(iv));
        ct_put_be32(iv + 8, ct_be32(iv + 8) + (uint32_t)c);
        tag_of(a, iv, cipher + c * unit, left < unit ? left : unit, tags + c * CT_TAG_LEN);
    }
    e->tags = tags;
    ct_aead_free(a);
    return 0;
}

static void change_keys(struct ct_keys_field *k, struct rng *r)
{
    static const char *const kids[] = {"", "m-128", "m-256", "m-chacha"};
    static const uint64_t chunks[] = {1,       7,       16,        100,     1000,
                                      4096,    2097151, 2097152,   2097153, UINT64_C(1) << 32,
                                      3000000, 65537,   UINT64_MAX};
    if (rnd(r, 4) == 0) {
        k->version = 3 - k->version;
    }
    if (k->version == 2 && (k->chunk_size == 0 || rnd(r, 3) == 0)) {
        k->chunk_size = chunks[rnd(r, sizeof(chunks) / sizeof(chunks[0]))];
    }
    if (rnd(r, 4) == 0) {
        k->enc.alg = (enum ct_alg)(1 + rnd(r, 3));
    }
    /* The kid that the vectors have for it. */
    k->enc.kid = (struct ct_span){kids[k->enc.alg], strlen(kids[k->enc.alg])};
    if (!ct_span_eq(k->sign.kid, "s-2")) {
        k->sign.kid = (struct ct_span){"s-1", 3};
    }
}

int reseal(const struct model_file *f, const struct ct_header *h, const struct ct_keys_field *keys,
           struct ct_keyring *keyring, struct rng *r, struct ct_buf *out)
{
    struct ct_keys_field k = *keys;
    struct ct_encryption_field old = {0};
    struct ct_arena arena = {0};
    struct ct_secret *master = NULL;
    const struct ct_span *policy = ct_header_meta(h, "__policy__");
    bool listed = ct_meta_encryption(h, keys, &old, NULL) == 0;
    change_keys(&k, r);
    struct ct_encryption_field enc = {.count = h->tensor_count};
    enc.entries = ct_arena_alloc(&arena, h->tensor_count, sizeof(*enc.entries), NULL);
    struct ct_keysource *source = ct_keyring_source(keyring);
    MUST(enc.entries && source->master(source, &k.enc, &master, NULL) == 0);
    struct ct_aead *a = ct_aead_new(k.enc.alg, ct_secret_peek(master), NULL);
    MUST(a);
    int ret = policy ? 0 : -1;
    for (size_t i = 0; ret == 0 && i < h->tensor_count; i++) {
        bool wanted = listed ? old.entries[i].encrypted : rnd(r, 4);
        if (wanted != (rnd(r, 16) == 0)) {
            ret = seal_tensor(f, h, i, &k, a, &enc.entries[i], &arena, r);
        }
    }
    if (ret == 0) {
        const struct ct_header_out header = {h, &k, &enc, *policy, signer_of(h, keyring)};
        ret = ct_header_out(&header, out, NULL, NULL);
    }
    ct_aead_free(a);
    ct_secret_free(master);
    ct_arena_free(&arena);
    ct_encryption_field_free(&old);
    return ret;
}

/* ---- the layout ---- */

static uint64_t bits_of(const char *dtype)
{
    static const char *const bits[] = {"F4", "4", "F6_E2M3", "6", "F6_E3M2", "6", NULL};
    for (int i = 0; bits[i]; i += 2) {
        if (strcmp(dtype, bits[i]) == 0) {
            return (uint64_t)(bits[i + 1][0] - '0');
        }
    }
    return strstr(dtype, "64") ? 64 : strstr(dtype, "32") ? 32 : strstr(dtype, "16") ? 16 : 8;
}

/* Gives every tensor the offsets that its shape and place ask for; some of them another dtype. */
static void lay_out(struct ct_buf *json, struct rng *r)
{
    static const char *const dtypes[] = {"F4", "F6_E2M3", "F6_E3M2", "U8", "BF16", "C64", "new"};
    json_t *root = json_loadb((char *)json->data, json->len, JSON_ALLOW_NUL, NULL);
    const char *name = NULL;
    json_t *t = NULL;
    json_int_t at = 0;
    json_object_foreach(root, name, t)
    {
        if (rnd(r, 16) == 0) {
            json_object_set_new(t, "dtype", json_string(dtypes[rnd(r, 7)]));
        }
        const char *dtype = json_string_value(json_object_get(t, "dtype"));
        const json_t *shape = json_object_get(t, "shape");
        uint64_t elements = 1;
        size_t i = 0;
        json_t *v = NULL;
        if (strcmp(name, "__metadata__") == 0 || !dtype) {
            continue;
        }
        json_array_foreach(shape, i, v)
        {
            (void)ct_mul_u64(elements, (uint64_t)json_integer_value(v), &elements);
        }
        json_int_t size = (json_int_t)(elements > BODY_MAX ? 0 : elements * bits_of(dtype) / 8);
        json_object_set_new(t, "data_offsets", json_pack("[I,I]", at, at + size));
        at += size;
    }
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    if (text) {
        json->len = 0;
        ct_buf_puts(json, text);
    }
    ct_wiping_free(text);
    json_decref(root);
}

/* ---- all of it ---- */

struct parts {
    struct ct_buf json, body;
};

static void take_apart(struct parts *p, const uint8_t *data, size_t size)
{
    uint64_t n = ct_le64(data);
    size_t have = size - CT_PREFIX;
    size_t len = n < have ? (size_t)n : have;
    ct_buf_put(&p->json, data + CT_PREFIX, len);
    ct_buf_put(&p->body, data + CT_PREFIX + len, have - len);
}

static void put_together(const struct parts *p, struct ct_buf *out)
{
    uint8_t prefix[CT_PREFIX];
    ct_put_le64(prefix, p->json.len);
    ct_buf_put(out, prefix, sizeof(prefix));
    ct_buf_put(out, p->json.data, p->json.len);
    ct_buf_put(out, p->body.data, p->body.len);
}

/* A small body gets the length that the header says. */
static uint64_t fit_body(struct parts *p)
{
    uint64_t want = body_of(p->json.data, p->json.len);
    if (want <= SMALL_BODY && want < p->body.len) {
        p->body.len = want;
    }
    for (uint8_t c = 0; want <= SMALL_BODY && p->body.len < want; c++) {
        ct_buf_putc(&p->body, (char)c);
    }
    return want;
}

static void seal(struct parts *p, struct rng *r)
{
    ct_autobuf file = {0};
    ct_autobuf header = {0};
    struct model_file f;
    struct ct_header *h = NULL;
    struct ct_keys_field keys = {0};
    put_together(p, &file);
    model_file_init(&f, file.data, file.len);
    if (ct_header_parse(p->json.data, p->json.len, f.size - CT_PREFIX - p->json.len, &h, NULL) ==
            0 &&
        f.size < BODY_MAX + CT_HEADER_MAX && ct_meta_keys(h, &keys, NULL) == 0 &&
        reseal(&f, h, &keys, ring, r, &header) == 0) {
        p->json.len = 0;
        ct_buf_put(&p->json, header.data + CT_PREFIX, header.len - CT_PREFIX);
    }
    ct_keys_field_free(&keys);
    ct_header_free(h);
}

static void mutate_parts(struct parts *p, struct rng *r)
{
    uint32_t what = rnd(r, 16);
    if (what < 10) {
        mutate_json(&p->json, r);
    } else if (what < 12) {
        mutate_bytes(&p->json);
    } else if (what < 13) {
        mutate_bytes(&p->body);
    }
    if (rnd(r, 3) == 0) {
        lay_out(&p->json, r);
    }
    uint64_t body = rnd(r, 8) ? fit_body(p) : p->body.len;
    uint32_t how = rnd(r, 16);
    if (how < 7) {
        seal(p, r);
    } else if (how < 14) {
        (void)resign(&p->json, body, ring);
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    struct rng r = rng_of(seed);
    struct parts p = {0};
    ct_autobuf out = {0};
    ring = ring ? ring : vector_keys();
    if (size < CT_PREFIX + 2 || rnd(&r, 32) == 0) {
        return LLVMFuzzerMutate(data, size, max);
    }
    take_apart(&p, data, size);
    mutate_parts(&p, &r);
    put_together(&p, &out);
    ct_buf_free(&p.json);
    ct_buf_free(&p.body);
    if (out.failed || out.len > max) {
        return LLVMFuzzerMutate(data, size, max);
    }
    memcpy(data, out.data, out.len);
    return out.len;
}
