/*
 * Opening and reading, against a second way to the same bytes that goes tensor by tensor and
 * message by message with no more than an AEAD: what a message holds is shown if its tag fits, and
 * zeros, called damaged, if not.
 */
#include "format/canon.h"
#include "format/policy/policy.h"
#include "format/unwrap.h"
#include "format/write/view_source.h"
#include "format/writer.h"
#include "tests/fuzz/model_file.h"

/* What the body must look like. */
struct expected {
    struct model_file *file;
    const struct ct_header *header;
    uint64_t body_at;
    struct ct_keys_field keys;
    struct ct_encryption_field enc;
    struct ct_deks deks;
    uint8_t *plain; /* zeros where `good` is not set */
    uint8_t *good;  /* one a byte: 1, or 2 where nothing authenticates it */
    bool whole;     /* every DEK unwraps, every byte is good */
};

static void expect_message(struct expected *x, size_t i, uint64_t index, uint64_t begin, size_t n,
                           struct ct_aead *a)
{
    const struct ct_encrypted *e = &x->enc.entries[i];
    uint8_t iv[CT_IV_LEN];
    memcpy(iv, e->iv, sizeof(iv));
    MUST(ct_be32(iv + 8) + index <= UINT32_MAX); /* no IV twice */
    ct_put_be32(iv + 8, ct_be32(iv + 8) + (uint32_t)index);
    model_file_read(x->file, x->body_at + begin, x->plain + begin, n);
    if (ct_aead_open(a, iv, x->plain + begin, n, e->tags + index * CT_TAG_LEN, x->plain + begin,
                     NULL) == 0) {
        memset(x->good + begin, 1, n);
    } else {
        memset(x->plain + begin, 0, n);
        x->whole = false;
    }
}

static void expect_tensor(struct expected *x, size_t i)
{
    const struct ct_tensor *t = &x->header->tensors[i];
    uint64_t len = t->end - t->begin;
    uint64_t unit = x->keys.version == 1 ? len : x->keys.chunk_size;
    if (!x->enc.entries[i].encrypted) {
        model_file_read(x->file, x->body_at + t->begin, x->plain + t->begin, len);
        memset(x->good + t->begin, 2, len);
        return;
    }
    if (!x->deks.good[i]) {
        x->whole = false;
        return;
    }
    struct ct_aead *a = ct_aead_new(x->keys.enc.alg, ct_dek(&x->deks, x->keys.enc.alg, i), NULL);
    MUST(a);
    for (uint64_t at = 0; at < len; at += unit < len - at ? unit : len - at) {
        expect_message(x, i, at / unit, t->begin + at, unit < len - at ? unit : len - at, a);
    }
    ct_aead_free(a);
}

/* False where the file must not be opened. */
static bool expect(struct expected *x, struct ct_keysource *keys)
{
    struct ct_secret *master = NULL;
    bool ok = ct_meta_keys(x->header, &x->keys, NULL) == 0 &&
              keys->master(keys, &x->keys.enc, &master, NULL) == 0 &&
              ct_meta_encryption(x->header, &x->keys, &x->enc, NULL) == 0 &&
              ct_unwrap(&x->enc, x->keys.enc.alg, master, &x->deks, NULL) == 0;
    ct_secret_free(master);
    if (!ok) {
        return false;
    }
    x->plain = calloc(1, x->header->body_len + 1);
    x->good = calloc(1, x->header->body_len + 1);
    MUST(x->plain && x->good);
    x->whole = true;
    for (size_t i = 0; i < x->header->tensor_count; i++) {
        expect_tensor(x, i);
    }
    return true;
}

static void expected_free(struct expected *x)
{
    free(x->plain);
    free(x->good);
    ct_deks_free(&x->deks);
    ct_encryption_field_free(&x->enc);
    ct_keys_field_free(&x->keys);
}

/* That what was opened is signed by the key that it names. */
static bool is_signed(const struct expected *x, struct ct_keysource *keys)
{
    uint8_t pub[CT_ED25519_PUB];
    uint8_t sig[CT_SIG_LEN];
    ct_autobuf text = {0};
    return keys->verify(keys, &x->keys.sign, pub, NULL) == 0 &&
           ct_meta_signature(x->header, sig, NULL) == 0 &&
           ct_canon_signed(x->header, &text, NULL) == 0 &&
           ct_ed25519_verify(pub, text.data, text.len, sig, NULL) == 0;
}

/* ---- reading ---- */

static int open_with(const struct expected *x, struct ct_open how, struct ct_keyring *ring,
                     struct ct_model **out)
{
    struct ct_err err = CT_ERR_INIT;
    how.source = &x->file->source;
    how.version = model_file_version(x->file);
    how.keys = ct_keyring_source(ring);
    int r = ct_model_open(&how, out, &err);
    MUST(r == 0 ? *out != NULL : !*out && err.code != CT_OK && err.msg[0]);
    MUST(r == 0 ||
         (ct_err_errno(&err) > 0 && strcmp(ct_errno_name(ct_err_errno(&err)), "E?") != 0));
    return r ? (int)err.code : 0;
}

static bool in_damages(const struct ct_damages *d, uint64_t at)
{
    for (size_t i = 0; i < d->count; i++) {
        if (at >= d->items[i].begin && at < d->items[i].end) {
            return true;
        }
    }
    return false;
}

static void check_damages(const struct ct_damages *d, const struct ct_extent *e)
{
    uint64_t at = e->begin;
    for (size_t i = 0; i < d->count; i++) {
        const struct ct_damage *one = &d->items[i];
        MUST(one->begin >= at && one->end > one->begin && one->end <= e->begin + e->len);
        MUST(one->code == CT_TAG || one->code == CT_REJECTED);
        MUST(one->what[0]);
        at = one->end;
    }
}

/* Where there is no damage everything is as expected, where there is one nothing is shown. */
static void check_extent(const struct expected *x, const struct ct_extent *e, const uint8_t *buf,
                         const struct ct_damages *d)
{
    check_damages(d, e);
    if (d->count == 0) {
        MUST(memcmp(buf, x->plain + e->begin, e->len) == 0);
        MUST(!memchr(x->good + e->begin, 0, e->len));
        return;
    }
    for (uint32_t i = 0; i < e->len; i++) {
        bool damaged = in_damages(d, e->begin + i);
        MUST(damaged == !x->good[e->begin + i]);
        MUST(buf[i] == (damaged ? 0 : x->plain[e->begin + i]));
    }
}

/* Room for one extent, and not a byte more. */
static uint8_t *room_for(const struct ct_extent *e)
{
    uint8_t *buf = malloc(e->len);
    MUST(buf);
    memset(buf, 0xaa, e->len);
    return buf;
}

/* Without decrypting the verdict is the same. */
static void verify(struct ct_model *m, uint32_t i, uint8_t *buf, const struct ct_damages *read)
{
    struct ct_damages d = {0};
    MUST(ct_model_verify(m, i, buf, &d, NULL) == 0 && d.count == read->count);
    for (size_t k = 0; k < d.count; k++) {
        MUST(d.items[k].begin == read->items[k].begin && d.items[k].end == read->items[k].end &&
             d.items[k].code == read->items[k].code);
    }
    ct_damages_free(&d);
}

static void read_all(const struct expected *x, struct ct_model *m)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < ct_model_extent_count(m); i++) {
        struct ct_extent e;
        struct ct_damages d = {0};
        ct_model_extent(m, i, &e);
        MUST(e.begin == at && e.len > 0 && e.len <= CT_EXTENT_MAX);
        MUST(ct_model_extent_at(m, e.begin) == i);
        MUST(ct_model_extent_at(m, e.begin + e.len - 1) == i);
        uint8_t *buf = room_for(&e);
        MUST(ct_model_read(m, i, buf, &d, NULL) == 0);
        check_extent(x, &e, buf, &d);
        verify(m, i, buf, &d);
        free(buf);
        ct_damages_free(&d);
        at += e.len;
    }
    MUST(at == ct_model_body_len(m));
}

/* The extent at `at`, which is to fail as a whole. */
static void read_fails(struct ct_model *m, uint64_t at, enum ct_code code)
{
    struct ct_extent e;
    struct ct_damages d = {0};
    struct ct_err err = CT_ERR_INIT;
    uint32_t i = ct_model_extent_at(m, at);
    ct_model_extent(m, i, &e);
    uint8_t *buf = room_for(&e);
    MUST(ct_model_read(m, i, buf, &d, &err) == -1 && err.code == code && d.count == 0);
    for (uint32_t k = 0; k < e.len; k++) {
        MUST(buf[k] == 0);
    }
    free(buf);
}

/* A bit changes in the source, once it was read and authenticated: nothing but its own message
 * suffers, and where something vouches for it, it is not shown. */
static void read_flipped(const struct expected *x, struct ct_model *m, uint64_t at, bool vouched)
{
    struct ct_extent e;
    struct ct_damages d = {0};
    uint32_t i = ct_model_extent_at(m, at);
    ct_model_extent(m, i, &e);
    uint8_t *buf = room_for(&e);
    x->file->flip_at = x->body_at + at;
    MUST(ct_model_read(m, i, buf, &d, NULL) == 0);
    check_damages(&d, &e);
    MUST(in_damages(&d, at) == (vouched || x->good[at] != 2));
    for (uint32_t k = 0; k < e.len; k++) {
        bool damaged = d.count && in_damages(&d, e.begin + k);
        uint8_t flip = !damaged && e.begin + k == at ? 0x40 : 0;
        MUST(buf[k] == (damaged ? 0 : x->plain[e.begin + k] ^ flip));
        MUST(damaged || x->good[e.begin + k]);
    }
    ct_damages_free(&d);
    free(buf);
    x->file->flip_at = UINT64_MAX;
}

/* A byte of the body that depends on the whole input. */
static uint64_t some_byte(const struct expected *x, const uint8_t *raw, size_t n)
{
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ raw[i]) * 0x100000001b3;
    }
    return (h >> 16) % x->header->body_len;
}

static void check_reads(const struct expected *x, struct ct_model *m, uint64_t at, bool vouched)
{
    if (x->header->body_len == 0) {
        read_all(x, m);
        return;
    }
    x->file->fail_at = x->body_at + at; /* before anything was authenticated */
    read_fails(m, at, CT_IO);
    x->file->fail_at = UINT64_MAX;
    read_all(x, m);
    read_flipped(x, m, at, vouched);
    x->file->mtime_ns = 1;
    read_fails(m, at, CT_STALE);
    MUST(ct_model_check(m, NULL) == -1);
    x->file->mtime_ns = 0;
    read_all(x, m);
}

/* ---- what else can be done with a file that opens ---- */

static void check_info(const struct expected *x, const struct ct_model *m)
{
    struct ct_model_info info;
    size_t head = 0;
    ct_autobuf view = {0};
    uint64_t bare = 0;
    ct_model_info(m, &info);
    MUST(ct_view_header(x->header, &view, NULL) == 0);
    const uint8_t *shown = ct_model_header(m, &head);
    MUST(head == view.len && memcmp(shown, view.data, head) == 0);
    MUST(ct_model_body_len(m) == x->header->body_len);
    MUST(ct_model_view_size(m) == head + x->header->body_len);
    MUST(info.version == x->keys.version && info.alg == x->keys.enc.alg);
    MUST(info.tensors == x->header->tensor_count && info.encrypted == x->deks.encrypted);
    MUST(info.unwrapped <= x->deks.unwrapped && strlen(info.header_sha256) == 64);
    for (size_t i = 0; i < x->header->tensor_count; i++) {
        const struct ct_tensor *t = &x->header->tensors[i];
        bare += x->enc.entries[i].encrypted ? 0 : t->end - t->begin;
    }
    MUST(info.unauthenticated_bytes == (info.manifest ? 0 : bare));
}

/* A manifest over this file vouches for it, unencrypted tensors included. */
static void check_manifest(const struct expected *x, struct ct_keyring *ring, uint64_t at)
{
    struct ct_version v = model_file_version(x->file);
    struct ct_entry entry;
    struct ct_entry_arena *arena = NULL;
    struct ct_manifest *manifest = NULL;
    struct ct_model *m = NULL;
    const struct ct_secret *seed = NULL;
    struct ct_span kid;
    uint8_t pub[CT_ED25519_PUB];
    ct_autobuf jws = {0};
    struct ct_manifest_builder *b = ct_manifest_builder_new(1, NULL);
    MUST(b && ct_keyring_signer(ring, "s-2", &seed, &kid, pub, NULL) == 0);
    MUST(ct_shard_entry(&x->file->source, &v, ct_keyring_source(ring), &entry, &arena, NULL) == 0);
    entry.path = "d/m";
    MUST(ct_manifest_builder_add(b, &entry, NULL) == 0);
    entry.path = "d/other";
    entry.sha256[at % CT_DIGEST] ^= 1;
    MUST(ct_manifest_builder_add(b, &entry, NULL) == 0);
    MUST(ct_manifest_builder_sign(b, seed, kid, &jws, NULL) == 0);
    MUST(ct_manifest_parse(jws.data, jws.len, ct_keyring_source(ring), &manifest, NULL) == 0);
    MUST(open_with(x, (struct ct_open){.manifest = manifest, .path = "d/m"}, ring, &m) == 0);
    check_info(x, m);
    check_reads(x, m, at, true);
    ct_model_unref(m);
    MUST(open_with(x, (struct ct_open){.manifest = manifest, .path = "d"}, ring, &m) ==
         CT_REJECTED);
    MUST(open_with(x, (struct ct_open){.manifest = manifest, .path = "d/other"}, ring, &m) ==
         CT_REJECTED);
    ct_manifest_unref(manifest);
    ct_manifest_builder_free(b);
    ct_entry_arena_free(arena);
}

static const char *kid_for(enum ct_alg alg)
{
    return alg == CT_ALG_AES128GCM ? "m-128" : alg == CT_ALG_AES256GCM ? "m-256" : "m-chacha";
}

/* Under other keys the file is still the same; the header in use is not the file's own. */
static void check_rewrapped(const struct expected *x, struct ct_keyring *ring, const uint8_t *raw,
                            size_t raw_len, uint64_t at)
{
    struct ct_write_keys keys = {0};
    struct ct_model *m = NULL;
    struct ct_err err = CT_ERR_INIT;
    uint8_t pub[CT_ED25519_PUB];
    ct_autobuf out = {0};
    MUST(ct_keyring_master(ring, kid_for(x->keys.enc.alg), &keys.master, &keys.alg,
                           &keys.master_kid, NULL) == 0 &&
         ct_keyring_signer(ring, "s-2", &keys.seed, &keys.sign_kid, pub, NULL) == 0);
    int r = ct_rewrap_header(raw, raw_len, x->header->body_len, ct_keyring_source(ring), &keys,
                             &out, &err);
    MUST((r == 0) == (x->deks.unwrapped == x->deks.encrypted));
    if (r) {
        MUST(err.code == CT_REJECTED);
        return;
    }
    struct ct_open how = {.header = out.data, .header_len = out.len};
    MUST(open_with(x, how, ring, &m) == 0);
    check_info(x, m);
    check_reads(x, m, at, false);
    ct_model_unref(m);
    how.header_len = at < out.len ? (size_t)at : out.len - 1;
    MUST(open_with(x, how, ring, &m) == CT_MALFORMED);
}

/* What rekey reads from. */
static void check_view(const struct expected *x, struct ct_keyring *ring, const struct ct_model *m)
{
    struct ct_version v = model_file_version(x->file);
    struct ct_version plain;
    size_t head = 0;
    const uint8_t *shown = ct_model_header(m, &head);
    struct ct_source *s =
        ct_view_source(&x->file->source, &v, ct_keyring_source(ring), 1, &plain, NULL);
    MUST(s && plain.size == ct_model_view_size(m));
    ct_autofree uint8_t *buf = malloc(plain.size + 1);
    int r = ct_source_read(s, buf, plain.size, 0, &plain, NULL);
    MUST((r == 0) == (!memchr(x->good, 0, x->header->body_len)));
    if (r == 0) {
        MUST(memcmp(buf, shown, head) == 0);
        MUST(memcmp(buf + head, x->plain, x->header->body_len) == 0);
    }
    ct_source_close(s);
}

/* The policy decides, and nothing but the policy. */
static void check_policy(const struct expected *x, struct ct_keyring *ring,
                         const struct ct_model *open)
{
    static json_t *input;
    struct ct_model *m = NULL;
    if (!input) {
        input =
            ct_policy_input(&(struct ct_policy_context){.host = "h", .path = "/m", .model = ""});
    }
    int r = open_with(x, (struct ct_open){.policy_input = input}, ring, &m);
    MUST(r == 0 || r == CT_POLICY);
    MUST((r == 0) == (ct_model_allow(open, input, NULL) == 0));
    ct_model_unref(m);
}

static void check_open(const struct expected *x, struct ct_model *m, const uint8_t *raw,
                       size_t raw_len, struct ct_keyring *ring)
{
    struct ct_model *strict = NULL;
    struct ct_model_info info;
    uint64_t at = x->header->body_len ? some_byte(x, raw, raw_len) : 0;
    ct_model_info(m, &info);
    check_info(x, m);
    check_reads(x, m, at, false);
    MUST(ct_model_version(m)->size == x->file->size);
    check_policy(x, ring, m);
    int r = open_with(x, (struct ct_open){.refuse_unencrypted = true}, ring, &strict);
    MUST(r == (info.unauthenticated_bytes ? CT_REJECTED : 0));
    ct_model_unref(strict);
    check_manifest(x, ring, at);
    check_rewrapped(x, ring, raw, raw_len, at);
    check_view(x, ring, m);
}

void check_model(struct model_file *f, const struct ct_header *h, const uint8_t *raw,
                 size_t raw_len, struct ct_keyring *ring)
{
    struct expected x = {.file = f, .header = h, .body_at = CT_PREFIX + h->json_len};
    struct ct_model *m = NULL;
    int r = open_with(&x, (struct ct_open){0}, ring, &m);
    if (r == 0 && h->body_len <= BODY_MAX) {
        MUST(expect(&x, ct_keyring_source(ring)) && is_signed(&x, ct_keyring_source(ring)));
        check_open(&x, m, raw, raw_len, ring);
    }
    ct_model_unref(m);
    expected_free(&x);
}
