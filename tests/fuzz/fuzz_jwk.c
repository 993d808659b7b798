/*
 * Key files. Whatever the text: a key that is given out has the length of its algorithm, the same
 * file twice is the same ring, what was generated is found again, and no message shows a secret.
 */
#include <jansson.h>
#include <sys/mman.h>

#include "format/base/log.h"
#include "tests/fuzz/fuzz.h"

enum { SHOWN_MIN = 16 }; /* shorter secrets may be in a message by chance */

static const json_t *texts; /* parsed input, for the log's sink */

/* ---- what may not be shown ---- */

/* Whether the text stands in some other string too: then it is no secret. */
static bool elsewhere(const json_t *v, const char *secret, bool is_secret)
{
    const char *name = NULL;
    json_t *one = NULL;
    size_t i = 0;
    bool found = !is_secret && json_is_string(v) && strstr(json_string_value(v), secret);
    json_object_foreach((json_t *)v, name, one)
    {
        found |= elsewhere(one, secret, strcmp(name, "k") == 0 || strcmp(name, "d") == 0);
    }
    json_array_foreach(v, i, one)
    {
        found |= elsewhere(one, secret, false);
    }
    return found;
}

static bool shows(const char *line, const json_t *jwk)
{
    static const char *const members[] = {"k", "d"};
    for (int i = 0; i < 2; i++) {
        const char *secret = json_string_value(json_object_get(jwk, members[i]));
        if (secret && strlen(secret) >= SHOWN_MIN && strstr(line, secret) &&
            !elsewhere(texts, secret, false)) {
            return true;
        }
    }
    return false;
}

static void check_line(const char *line)
{
    const json_t *set = json_object_get(texts, "keys");
    size_t i = 0;
    json_t *jwk = NULL;
    MUST(!shows(line, texts));
    json_array_foreach(set, i, jwk)
    {
        MUST(!shows(line, jwk));
    }
}

static void sink(void *ctx, enum ct_level level, const char *line)
{
    (void)ctx;
    (void)level;
    check_line(line);
}

void fuzz_start(void)
{
    ct_log_set_sink(sink, NULL);
}

/* Key files are JSON: half of the mutations leave it so. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    struct rng r = rng_of(seed);
    ct_autobuf text = {0};
    if (rnd(&r, 2)) {
        return LLVMFuzzerMutate(data, size, max);
    }
    ct_buf_put(&text, data, size);
    mutate_json(&text, &r);
    if (text.len > max || text.len == 0) {
        return LLVMFuzzerMutate(data, size, max);
    }
    memcpy(data, text.data, text.len);
    return text.len;
}

/* ---- choosing ---- */

struct verdict {
    int r;
    enum ct_code code;
    uint8_t bytes[32];
};

static struct verdict ask(struct ct_keyring *ring, const struct ct_keyref *ref)
{
    struct ct_keysource *s = ct_keyring_source(ring);
    struct ct_err err = CT_ERR_INIT;
    struct ct_secret *key = NULL;
    struct verdict v = {0};
    if (ref->alg == CT_ALG_NONE) {
        v.r = s->verify(s, ref, v.bytes, &err);
    } else {
        v.r = s->master(s, ref, &key, &err);
        MUST((v.r == 0) == (key != NULL));
        MUST(!key || ct_secret_len(key) == ct_alg_key_len(ref->alg));
        memcpy(v.bytes, key ? ct_secret_peek(key) : v.bytes, key ? ct_secret_len(key) : 0);
    }
    ct_secret_free(key);
    v.code = err.code;
    MUST(v.r == 0 || v.code == CT_NOKEY || v.code == CT_REJECTED);
    check_line(err.msg);
    return v;
}

static void check_writer(struct ct_keyring *ring, const char *kid)
{
    const struct ct_secret *key = NULL;
    struct ct_err err = CT_ERR_INIT;
    struct ct_span name = {0};
    enum ct_alg alg = CT_ALG_NONE;
    uint8_t pub[CT_ED25519_PUB];
    uint8_t again[CT_ED25519_PUB];
    if (ct_keyring_master(ring, kid, &key, &alg, &name, &err) == 0) {
        MUST(ct_secret_len(key) == ct_alg_key_len(alg) &&
             (!kid || ct_span_is(name, kid, strlen(kid))));
    }
    check_line(err.msg);
    if (ct_keyring_signer(ring, kid, &key, &name, pub, &err) == 0) {
        MUST(ct_ed25519_public(key, again, NULL) == 0 && memcmp(pub, again, sizeof(pub)) == 0);
    }
    check_line(err.msg);
}

/* One more time the same keys: the same answers. */
static void check_twice(struct ct_keyring *once, struct ct_keyring *twice, struct ct_span kid)
{
    for (int alg = CT_ALG_NONE; alg <= CT_ALG_CHACHA20POLY1305; alg++) {
        const struct ct_keyref ref = {(enum ct_alg)alg, kid, {0}};
        struct verdict a = ask(once, &ref);
        struct verdict b = ask(twice, &ref);
        MUST(a.r == b.r && a.code == b.code && memcmp(a.bytes, b.bytes, sizeof(a.bytes)) == 0);
    }
}

/* ---- the same file by jku ---- */

struct text {
    const uint8_t *p;
    size_t n;
};

static int open_jku(void *ctx, const char *path, struct ct_err *err)
{
    const struct text *t = ctx;
    int fd = memfd_create("jwk", MFD_CLOEXEC);
    MUST(strcmp(path, "/k") == 0);
    MUST(fd >= 0 && ct_write_full(fd, t->p, t->n, err) == 0 && lseek(fd, 0, SEEK_SET) == 0);
    return fd;
}

static void check_jku(struct ct_keyring *ring, struct text *t, struct ct_span kid)
{
    struct ct_keyring *empty = ct_keyring_new(NULL);
    MUST(empty);
    ct_keyring_set_jku(empty, open_jku, t);
    for (int alg = CT_ALG_AES128GCM; alg <= CT_ALG_CHACHA20POLY1305; alg++) {
        const struct ct_keyref there = {(enum ct_alg)alg, kid, {"file:///k", 9}};
        struct verdict a = ask(ring, &there);
        struct verdict b = ask(empty, &there);
        MUST(a.r == b.r && a.code == b.code && memcmp(a.bytes, b.bytes, sizeof(a.bytes)) == 0);
    }
    const struct ct_keyref sign = {CT_ALG_NONE, kid, {"file:///k", 9}};
    MUST(ask(empty, &sign).r == -1); /* never from a jku */
    ct_keyring_free(empty);
}

/* ---- making keys ---- */

static void check_generated(const char *kid)
{
    ct_autobuf secret = {0};
    ct_autobuf public = {0};
    struct ct_keyring *ring = ct_keyring_new(NULL);
    const struct ct_keyref ref = {CT_ALG_NONE, {kid, strlen(kid)}, {0}};
    MUST(ring);
    for (int alg = CT_ALG_NONE; alg <= CT_ALG_CHACHA20POLY1305; alg++) {
        secret.len = public.len = 0;
        MUST(ct_key_generate((enum ct_alg)alg, kid, &secret, &public, NULL) == 0);
        MUST(ct_keyring_add(ring, secret.data, secret.len, "g", NULL) == 0);
        MUST(ct_keyring_count(ring) == (size_t)alg + 1);
        if (alg == CT_ALG_NONE) {
            MUST(ask(ring, &ref).r == 0);
            check_writer(ring, kid);
        }
    }
    ct_keyring_free(ring);
}

static void check_ring(struct ct_keyring *ring, struct text *t)
{
    static const char *const kids[] = {"", "m-256", "m-128", "s-1", NULL};
    const json_t *first = json_array_get(json_object_get(texts, "keys"), 0);
    const char *kid = json_string_value(json_object_get(first ? first : texts, "kid"));
    struct ct_keyring *twice = ct_keyring_new(NULL);
    MUST(twice && ct_keyring_add(twice, t->p, t->n, "f", NULL) == 0);
    MUST(ct_keyring_add(twice, t->p, t->n, "f", NULL) == 0);
    MUST(ct_keyring_count(twice) == 2 * ct_keyring_count(ring));
    for (int i = 0; kids[i] || (i == 4 && kid); i++) {
        const char *name = kids[i] ? kids[i] : kid;
        const struct ct_span span = {name, strlen(name)};
        check_twice(ring, twice, span);
        check_jku(ring, t, span);
        check_writer(ring, name);
        if (!kids[i]) {
            check_generated(name);
            break;
        }
    }
    check_writer(ring, NULL);
    ct_keyring_free(twice);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ct_err err = CT_ERR_INIT;
    struct text t = {data, size};
    json_t *root = json_loadb((const char *)data, size, 0, NULL);
    struct ct_keyring *ring = ct_keyring_new(NULL);
    texts = root;
    MUST(ring);
    if (ct_keyring_add(ring, data, size, "f", &err) == 0) {
        check_ring(ring, &t);
    } else {
        MUST(err.code == CT_MALFORMED && ct_keyring_count(ring) == 0);
        check_line(err.msg);
    }
    ct_keyring_free(ring);
    texts = NULL;
    json_decref(root);
    return 0;
}
