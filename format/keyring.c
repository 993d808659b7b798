#include "format/keyring.h"

#include <jansson.h>
#include <openssl/rand.h>
#include <sodium.h>
#include <string.h>
#include <strings.h>

#include "format/base/file.h"
#include "format/base/log.h"

enum { JWK_FILE_MAX = 1 << 20 };

struct key {
    enum ct_alg alg;         /* NONE: Ed25519 */
    char *kid, *jku;         /* "" when the JWK has none */
    struct ct_secret *bytes; /* master key, or seed; NULL: public half only */
    uint8_t pub[CT_ED25519_PUB];
};

struct ct_keyring {
    struct ct_keysource source;
    struct key *keys;
    size_t count;
    ct_jku_open_fn jku_open;
    void *jku_ctx;
};

static struct ct_span kid_of(const struct key *k)
{
    return (struct ct_span){k->kid, strlen(k->kid)};
}

static void key_free(struct key *k)
{
    free(k->kid);
    free(k->jku);
    ct_secret_free(k->bytes);
}

/* ---- reading JWKs ---- */

static const char *text_of(const json_t *jwk, const char *name)
{
    const char *text = json_string_value(json_object_get(jwk, name));
    return text ? text : "";
}

/* Decodes a member of exactly `want` bytes into memory that is wiped by the caller. */
static bool bytes_of(const json_t *jwk, const char *name, uint8_t *out, size_t want)
{
    const char *text = text_of(jwk, name);
    return ct_base64_decode(text, strlen(text), out, want) == (ssize_t)want;
}

static int read_master(const json_t *jwk, struct key *k, struct ct_err *err)
{
    const char *alg = text_of(jwk, "alg");
    uint8_t bytes[CT_DEK_MAX];
    k->alg = ct_alg_parse(alg, strlen(alg));
    if (k->alg == CT_ALG_NONE) {
        return ct_err_set(err, CT_UNSUPPORTED, "algorithm \"%.32s\" is not known", alg);
    }
    size_t n = ct_alg_key_len(k->alg);
    if (bytes_of(jwk, "k", bytes, n)) {
        k->bytes = ct_secret_from(bytes, n, err);
    } else {
        ct_err_set(err, CT_MALFORMED, "k is not %zu bytes of base64", n);
    }
    ct_wipe(bytes, sizeof(bytes));
    return k->bytes ? 0 : -1;
}

/* The reference says so by alg, RFC 8037 by crv (and an alg of EdDSA). */
static bool is_ed25519(const char *alg, const char *crv)
{
    bool by_alg = strcasecmp(alg, "ed25519") == 0;
    bool by_crv = strcasecmp(crv, "ed25519") == 0;
    return (by_alg && (by_crv || !*crv)) || (by_crv && (!*alg || strcasecmp(alg, "eddsa") == 0));
}

/* The private half, and that the public one belongs to it. */
static int read_seed(const json_t *jwk, struct key *k, bool has_x, struct ct_err *err)
{
    uint8_t seed[CT_ED25519_SEED];
    uint8_t pub[CT_ED25519_PUB];
    if (bytes_of(jwk, "d", seed, sizeof(seed))) {
        k->bytes = ct_secret_from(seed, sizeof(seed), err);
    } else {
        ct_err_set(err, CT_MALFORMED, "d is not 32 bytes of base64");
    }
    ct_wipe(seed, sizeof(seed));
    if (!k->bytes || ct_ed25519_public(k->bytes, pub, err)) {
        return -1;
    }
    if (has_x && memcmp(pub, k->pub, sizeof(pub)) != 0) {
        return ct_err_set(err, CT_MALFORMED, "x is not the public half of d");
    }
    memcpy(k->pub, pub, sizeof(pub));
    return 0;
}

static int read_pair(const json_t *jwk, struct key *k, struct ct_err *err)
{
    const char *alg = text_of(jwk, "alg");
    bool has_x = json_object_get(jwk, "x") != NULL;
    if (!is_ed25519(alg, text_of(jwk, "crv"))) {
        return ct_err_set(err, CT_UNSUPPORTED, "algorithm \"%.32s\" is not known", alg);
    }
    if (has_x && !bytes_of(jwk, "x", k->pub, sizeof(k->pub))) {
        return ct_err_set(err, CT_MALFORMED, "x is not 32 bytes of base64");
    }
    if (json_object_get(jwk, "d")) {
        return read_seed(jwk, k, has_x, err);
    }
    return has_x ? 0 : ct_err_set(err, CT_MALFORMED, "neither x nor d");
}

static int read_jwk(const json_t *jwk, struct key *k, struct ct_err *err)
{
    const char *kty = text_of(jwk, "kty");
    const json_t *kid = json_object_get(jwk, "kid");
    if (kid && !json_is_string(kid)) {
        return ct_err_set(err, CT_MALFORMED, "kid is not a string");
    }
    k->kid = strdup(text_of(jwk, "kid"));
    k->jku = strdup(text_of(jwk, "jku"));
    if (!k->kid || !k->jku) {
        return ct_err_set(err, CT_NOMEM, "no memory for a key");
    }
    if (strcasecmp(kty, "oct") == 0) {
        return read_master(jwk, k, err);
    }
    if (strcasecmp(kty, "okp") == 0) {
        return read_pair(jwk, k, err);
    }
    return ct_err_set(err, CT_UNSUPPORTED, "key type \"%.32s\" is not known", kty);
}

static int add_jwk(struct ct_keyring *r, const json_t *jwk, const char *where, struct ct_err *err)
{
    struct ct_err why = CT_ERR_INIT;
    struct key k = {0};
    if (read_jwk(jwk, &k, &why)) {
        key_free(&k);
        if (why.code == CT_NOMEM) {
            return ct_err_set(err, CT_NOMEM, "%s", why.msg);
        }
        ct_log(CT_LOG_WARN, "%s: key \"%.64s\" is left out: %s", where, text_of(jwk, "kid"),
               why.msg);
        return 0;
    }
    struct key *keys = realloc(r->keys, (r->count + 1) * sizeof(*keys));
    if (!keys) {
        key_free(&k);
        return ct_err_set(err, CT_NOMEM, "no memory for a key");
    }
    r->keys = keys;
    r->keys[r->count++] = k;
    return 0;
}

static int add_value(struct ct_keyring *r, const json_t *value, const char *where,
                     struct ct_err *err)
{
    const json_t *set = json_object_get(value, "keys");
    size_t i = 0;
    const json_t *jwk = NULL;
    if (!set && json_object_get(value, "kty")) {
        return add_jwk(r, value, where, err);
    }
    if (!json_is_array(set)) {
        return ct_err_set(err, CT_MALFORMED, "%s is neither a JWK nor a JWK Set", where);
    }
    json_array_foreach(set, i, jwk)
    {
        if (add_jwk(r, jwk, where, err)) {
            return -1;
        }
    }
    return 0;
}

int ct_keyring_add(struct ct_keyring *r, const uint8_t *json, size_t n, const char *where,
                   struct ct_err *err)
{
    /* The parser's error is not shown: it can quote the text. */
    json_t *value = json_loadb((const char *)json, n, JSON_REJECT_DUPLICATES, NULL);
    if (!value) {
        return ct_err_set(err, CT_MALFORMED, "%s is not JSON", where);
    }
    int result = add_value(r, value, where, err);
    json_decref(value);
    return result;
}

/* ---- choosing ---- */

static bool same_key(const struct key *a, const struct key *b)
{
    if (a->alg != b->alg) {
        return false;
    }
    if (a->alg == CT_ALG_NONE) {
        return memcmp(a->pub, b->pub, sizeof(a->pub)) == 0;
    }
    return sodium_memcmp(ct_secret_peek(a->bytes), ct_secret_peek(b->bytes),
                         ct_alg_key_len(a->alg)) == 0;
}

/* What a search for one key found. */
struct choice {
    const struct key *key; /* NULL: none */
    bool several;          /* that differ */
    bool other_alg;        /* `key` is for another algorithm */
};

static bool chosen(const struct choice *c)
{
    return c->key && !c->several && !c->other_alg;
}

/* By kty and kid; without a kid, by kty and algorithm. */
static struct choice choose(const struct ct_keyring *r, enum ct_alg alg, struct ct_span kid)
{
    struct choice c = {0};
    for (size_t i = 0; i < r->count; i++) {
        const struct key *k = &r->keys[i];
        struct ct_span have = kid_of(k);
        if ((k->alg == CT_ALG_NONE) != (alg == CT_ALG_NONE) ||
            (kid.n ? !ct_span_is(have, kid.p, kid.n) : k->alg != alg)) {
            continue;
        }
        if (!c.key) {
            c.key = k;
            c.other_alg = k->alg != alg;
        } else if (!same_key(c.key, k)) {
            c.several = true;
        }
    }
    return c;
}

static int no_key(const char *what, struct ct_span kid, const struct choice *c, struct ct_err *err)
{
    int n = (int)(kid.n < 128 ? kid.n : 128);
    if (c->several) {
        return kid.n ? ct_err_set(err, CT_REJECTED, "several different %ss of kid %.*s", what, n,
                                  kid.p)
                     : ct_err_set(err, CT_NOKEY, "the header names no %s, and there are several",
                                  what);
    }
    if (c->other_alg) {
        return ct_err_set(err, CT_REJECTED, "the %s of kid %.*s is for another algorithm", what, n,
                          kid.p);
    }
    return kid.n ? ct_err_set(err, CT_NOKEY, "no %s of kid %.*s", what, n, kid.p)
                 : ct_err_set(err, CT_NOKEY, "the header names no %s, and there is none", what);
}

static int copy_master(const struct choice *c, struct ct_secret **out, struct ct_err *err)
{
    const struct ct_secret *bytes = c->key->bytes;
    *out = ct_secret_from(ct_secret_peek(bytes), ct_secret_len(bytes), err);
    return *out ? 0 : -1;
}

/* The keys of the file that a `file://` jku names, in a ring of their own; NULL if it can't be. */
static struct ct_keyring *ring_of_jku(const struct ct_keyring *r, struct ct_span jku)
{
    static const char scheme[] = "file://";
    char path[4096];
    size_t skip = sizeof(scheme) - 1;
    struct ct_err why = CT_ERR_INIT;
    if (!r->jku_open || jku.n <= skip || jku.n - skip >= sizeof(path) ||
        memcmp(jku.p, scheme, skip) != 0 || memchr(jku.p, '\0', jku.n)) {
        return NULL;
    }
    memcpy(path, jku.p + skip, jku.n - skip);
    path[jku.n - skip] = '\0';
    ct_autofd fd = r->jku_open(r->jku_ctx, path, &why);
    ct_autobuf text = {0};
    struct ct_keyring *ring = NULL;
    if (fd >= 0 && !ct_read_fd(fd, JWK_FILE_MAX, &text, &why) && (ring = ct_keyring_new(&why)) &&
        !ct_keyring_add(ring, text.data, text.len, path, &why)) {
        return ring;
    }
    ct_keyring_free(ring);
    ct_log(CT_LOG_WARN, "jku %s: %s", path, why.msg);
    return NULL;
}

static int ring_master(struct ct_keysource *ks, const struct ct_keyref *ref, struct ct_secret **out,
                       struct ct_err *err)
{
    struct ct_keyring *r = (struct ct_keyring *)ks;
    struct choice c = choose(r, ref->alg, ref->kid);
    struct ct_keyring *there = c.key ? NULL : ring_of_jku(r, ref->jku);
    if (there) {
        c = choose(there, ref->alg, ref->kid);
    }
    int result = chosen(&c) ? copy_master(&c, out, err) : no_key("master key", ref->kid, &c, err);
    ct_keyring_free(there);
    return result;
}

static int ring_verify(struct ct_keysource *ks, const struct ct_keyref *ref,
                       uint8_t pub[static CT_ED25519_PUB], struct ct_err *err)
{
    struct choice c = choose((struct ct_keyring *)ks, CT_ALG_NONE, ref->kid);
    if (!chosen(&c)) {
        return no_key("verification key", ref->kid, &c, err);
    }
    memcpy(pub, c.key->pub, CT_ED25519_PUB);
    return 0;
}

/* ---- the ring ---- */

struct ct_keyring *ct_keyring_new(struct ct_err *err)
{
    struct ct_keyring *r = calloc(1, sizeof(*r));
    if (!r) {
        ct_err_set(err, CT_NOMEM, "no memory for a keyring");
        return NULL;
    }
    r->source = (struct ct_keysource){ring_master, ring_verify};
    return r;
}

void ct_keyring_free(struct ct_keyring *r)
{
    if (r) {
        for (size_t i = 0; i < r->count; i++) {
            key_free(&r->keys[i]);
        }
        free(r->keys);
        free(r);
    }
}

size_t ct_keyring_count(const struct ct_keyring *r)
{
    return r->count;
}

void ct_keyring_set_jku(struct ct_keyring *r, ct_jku_open_fn fn, void *ctx)
{
    r->jku_open = fn;
    r->jku_ctx = ctx;
}

struct ct_keysource *ct_keyring_source(struct ct_keyring *r)
{
    return &r->source;
}

/* The one key of this kid with private bytes, or the only one where kid is NULL. */
static const struct key *for_writing(const struct ct_keyring *r, bool sign, const char *kid,
                                     struct ct_err *err)
{
    const struct key *found = NULL;
    const char *what = sign ? "signing key" : "master key";
    for (size_t i = 0; i < r->count; i++) {
        const struct key *k = &r->keys[i];
        if ((k->alg == CT_ALG_NONE) != sign || !k->bytes || (kid && strcmp(kid, k->kid) != 0)) {
            continue;
        }
        if (found && !same_key(found, k)) {
            ct_err_set(err, CT_USAGE, kid ? "several %ss have this kid" : "several %ss: name one",
                       what);
            return NULL;
        }
        found = k;
    }
    if (!found) {
        ct_err_set(err, CT_NOKEY, "no %s%s%s", what, kid ? " of kid " : "", kid ? kid : "");
    }
    return found;
}

int ct_keyring_signer(struct ct_keyring *r, const char *kid, const struct ct_secret **seed,
                      struct ct_span *kid_out, uint8_t pub[static CT_ED25519_PUB],
                      struct ct_err *err)
{
    const struct key *k = for_writing(r, true, kid, err);
    if (!k) {
        return -1;
    }
    *seed = k->bytes;
    *kid_out = kid_of(k);
    memcpy(pub, k->pub, CT_ED25519_PUB);
    return 0;
}

int ct_keyring_master(struct ct_keyring *r, const char *kid, const struct ct_secret **key,
                      enum ct_alg *alg, struct ct_span *kid_out, struct ct_err *err)
{
    const struct key *k = for_writing(r, false, kid, err);
    if (!k) {
        return -1;
    }
    *key = k->bytes;
    *alg = k->alg;
    *kid_out = kid_of(k);
    return 0;
}

struct ct_span ct_keyring_jku(const struct ct_keyring *r, const struct ct_secret *key)
{
    for (size_t i = 0; i < r->count; i++) {
        if (r->keys[i].bytes == key) {
            return (struct ct_span){r->keys[i].jku, strlen(r->keys[i].jku)};
        }
    }
    return (struct ct_span){"", 0};
}

/* ---- making keys ---- */

static void put_member(struct ct_buf *out, const char *name, const uint8_t *p, size_t n)
{
    ct_buf_printf(out, ",\"%s\":\"", name);
    ct_base64_put(out, p, n);
    ct_buf_putc(out, '"');
}

static void put_start(struct ct_buf *out, const char *kty, const char *alg, const char *kid)
{
    json_t *text = json_string(kid);
    char *quoted = text ? json_dumps(text, JSON_ENCODE_ANY) : NULL;
    if (!quoted) {
        out->failed = true;
    } else {
        ct_buf_printf(out, "{\"kty\":\"%s\",\"alg\":\"%s\",\"kid\":%s", kty, alg, quoted);
    }
    ct_wiping_free(quoted);
    json_decref(text);
}

int ct_key_generate(enum ct_alg alg, const char *kid, struct ct_buf *out, struct ct_buf *pub_out,
                    struct ct_err *err)
{
    size_t n = alg == CT_ALG_NONE ? CT_ED25519_SEED : ct_alg_key_len(alg);
    uint8_t pub[CT_ED25519_PUB];
    ct_autosecret bytes = ct_secret_new(n, err);
    if (!bytes) {
        return -1;
    }
    if (RAND_priv_bytes(ct_secret_bytes(bytes), (int)n) != 1) {
        return ct_err_set(err, CT_IO, "no random numbers");
    }
    if (alg == CT_ALG_NONE) {
        if (ct_ed25519_public(bytes, pub, err)) {
            return -1;
        }
        put_start(out, "okp", "ed25519", kid);
        put_member(out, "x", pub, sizeof(pub));
        put_member(out, "d", ct_secret_peek(bytes), n);
        put_start(pub_out, "okp", "ed25519", kid);
        put_member(pub_out, "x", pub, sizeof(pub));
        ct_buf_putc(pub_out, '}');
        if (ct_buf_ok(pub_out, err)) {
            return -1;
        }
    } else {
        put_start(out, "oct", ct_alg_name(alg), kid);
        put_member(out, "k", ct_secret_peek(bytes), n);
    }
    ct_buf_putc(out, '}');
    return ct_buf_ok(out, err);
}
