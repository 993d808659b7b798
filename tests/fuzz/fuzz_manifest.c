/*
 * A manifest's payload, signed here with a fixed key, so that every mutation gets past the
 * signature; the first byte chooses. 0: payload; 1: protected header (over a good payload);
 * otherwise: the whole object as it is, signed by nobody.
 */
#include "format/jws.h"
#include "format/manifest.h"
#include "tests/fuzz/fuzz.h"

#define TYP "kvfs-manifest+json"

static const struct ct_span kid = {"f", 1};
static uint8_t public_key[CT_ED25519_PUB];
static struct ct_secret *seed;

static int verify(struct ct_keysource *ks, const struct ct_keyref *ref,
                  uint8_t pub[static CT_ED25519_PUB], struct ct_err *err)
{
    (void)ks;
    if (!ct_span_is(ref->kid, kid.p, kid.n)) {
        return ct_err_set(err, CT_NOKEY, "no such key");
    }
    memcpy(pub, public_key, sizeof(public_key));
    return 0;
}

static struct ct_keysource keys = {.verify = verify};

void fuzz_start(void)
{
    static const uint8_t bytes[CT_ED25519_SEED] = {42};
    seed = ct_secret_from(bytes, sizeof(bytes), NULL);
    MUST(seed && ct_ed25519_public(seed, public_key, NULL) == 0);
}

/* All but the first byte is JSON: most mutations leave it so. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned number)
{
    struct rng r = rng_of(number);
    ct_autobuf text = {0};
    if (size < 2 || rnd(&r, 3) == 0) {
        return LLVMFuzzerMutate(data, size, max);
    }
    ct_buf_put(&text, data + 1, size - 1);
    mutate_json(&text, &r);
    if (text.len >= max) {
        return LLVMFuzzerMutate(data, size, max);
    }
    memcpy(data + 1, text.data, text.len);
    return text.len + 1;
}

static void check_path(const struct ct_manifest *m, size_t i)
{
    const struct ct_entry *e = ct_manifest_at(m, i);
    char parent[4096];
    char *slash = NULL;
    MUST(ct_manifest_find(m, e->path) == e);
    MUST(e->path[0] && e->path[0] != '/' && !strstr(e->path, "//"));
    MUST(i == 0 || strcmp(ct_manifest_at(m, i - 1)->path, e->path) < 0);
    MUST(ct_manifest_has_dir(m, "") && !ct_manifest_has_dir(m, e->path));
    MUST(strlen(e->path) < sizeof(parent));
    memcpy(parent, e->path, strlen(e->path) + 1);
    while ((slash = strrchr(parent, '/'))) {
        *slash = '\0';
        MUST(ct_manifest_has_dir(m, parent) && !ct_manifest_find(m, parent));
    }
}

static void check_digests(const struct ct_digests *a, const struct ct_digests *b)
{
    MUST(a->begin == b->begin && a->end == b->end && a->count == b->count);
    MUST(a->count == 0 || a->piece == b->piece);
    MUST(a->count == 0 || memcmp(a->sha256, b->sha256, a->count * sizeof(*a->sha256)) == 0);
}

static void check_same(const struct ct_entry *a, const struct ct_entry *b)
{
    MUST(a->kind == b->kind && a->size == b->size && strcmp(a->path, b->path) == 0);
    MUST(memcmp(a->sha256, b->sha256, CT_DIGEST) == 0);
    MUST(a->kind != CT_ENTRY_LINK || strcmp(a->target, b->target) == 0);
    MUST(a->plain_count == b->plain_count);
    check_digests(&a->pieces, &b->pieces);
    for (size_t i = 0; i < a->plain_count; i++) {
        MUST(a->plain[i].begin < a->plain[i].end && a->plain[i].end <= a->size);
        MUST(i == 0 || a->plain[i - 1].end <= a->plain[i].begin);
        check_digests(&a->plain[i], &b->plain[i]);
    }
}

/* What was accepted keeps every promise that the header file makes, and is written alike. */
static void check(const struct ct_manifest *m)
{
    ct_autobuf jws = {0};
    struct ct_manifest *again = NULL;
    struct ct_manifest_builder *b = ct_manifest_builder_new(ct_manifest_generation(m), NULL);
    MUST(b);
    for (size_t i = ct_manifest_count(m); i-- > 0;) {
        check_path(m, i);
        MUST(ct_manifest_builder_add(b, ct_manifest_at(m, i), NULL) == 0);
    }
    MUST(ct_manifest_builder_sign(b, seed, kid, &jws, NULL) == 0);
    MUST(ct_manifest_parse(jws.data, jws.len, &keys, &again, NULL) == 0);
    MUST(ct_manifest_count(again) == ct_manifest_count(m));
    MUST(ct_manifest_generation(again) == ct_manifest_generation(m));
    MUST(strlen(ct_manifest_digest(again)) == 2 * (size_t)CT_DIGEST);
    for (size_t i = 0; i < ct_manifest_count(m); i++) {
        check_same(ct_manifest_at(m, i), ct_manifest_at(again, i));
    }
    ct_manifest_unref(again);
    ct_manifest_builder_free(b);
}

static void sign_with_header(const uint8_t *header, size_t n, struct ct_buf *out)
{
    static const char payload[] = "{\"version\":1,\"generation\":1,\"entries\":[]}";
    uint8_t sig[CT_ED25519_SIG];
    ct_autobuf input = {0};
    ct_base64url_put(&input, header, n);
    size_t head = input.len;
    ct_buf_putc(&input, '.');
    ct_base64url_put(&input, (const uint8_t *)payload, sizeof(payload) - 1);
    MUST(ct_ed25519_sign(seed, input.data, input.len, sig, NULL) == 0);
    ct_buf_puts(out, "{\"protected\":\"");
    ct_buf_put(out, input.data, head);
    ct_buf_puts(out, "\",\"payload\":\"");
    ct_buf_put(out, input.data + head + 1, input.len - head - 1);
    ct_buf_puts(out, "\",\"signature\":\"");
    ct_base64url_put(out, sig, sizeof(sig));
    ct_buf_puts(out, "\"}");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_manifest *m = NULL;
    ct_autobuf jws = {0};
    if (size == 0) {
        return 0;
    }
    if (data[0] == 0) {
        MUST(ct_jws_sign(TYP, kid, seed, data + 1, size - 1, &jws, NULL) == 0);
    } else if (data[0] == 1) {
        sign_with_header(data + 1, size - 1, &jws);
    } else {
        ct_buf_put(&jws, data, size);
    }
    if (ct_manifest_parse(jws.data, jws.len, &keys, &m, &err) == 0) {
        check(m);
    } else {
        MUST(err.code != CT_OK && err.msg[0]);
    }
    ct_manifest_unref(m);
    return 0;
}
