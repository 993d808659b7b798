/* What the tests of the manifest share: one key, an example, parsing. */
#ifndef MANIFEST_FIXTURE_H
#define MANIFEST_FIXTURE_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "format/base/sha256.h"
#include "format/jws.h"
#include "format/manifest.h"

#define TYP "kvfs-manifest+json"
#define KID "s-test"

static struct ct_secret *seed, *other_seed;

/* One key, under one kid. */
struct one_key {
    struct ct_keysource base;
    uint8_t pub[CT_ED25519_PUB];
};
static struct one_key keys;

static inline int verify_key(struct ct_keysource *ks, const struct ct_keyref *ref,
                             uint8_t pub[static CT_ED25519_PUB], struct ct_err *err)
{
    if (!ct_span_eq(ref->kid, KID)) {
        return ct_err_set(err, CT_NOKEY, "no key %.*s", (int)ref->kid.n, ref->kid.p);
    }
    memcpy(pub, ((struct one_key *)ks)->pub, CT_ED25519_PUB);
    return 0;
}

static inline void setup(void)
{
    uint8_t bytes[CT_ED25519_SEED] = {1, 2, 3};
    cr_assert_eq(ct_secret_init(NULL), 0);
    seed = ct_secret_from(bytes, sizeof(bytes), NULL);
    bytes[0] = 9;
    other_seed = ct_secret_from(bytes, sizeof(bytes), NULL);
    keys.base.verify = verify_key;
    cr_assert_eq(ct_ed25519_public(seed, keys.pub, NULL), 0);
}

static inline void teardown(void)
{
    ct_secret_free(seed);
    ct_secret_free(other_seed);
}

static const struct ct_span kid = {KID, sizeof(KID) - 1};

static inline enum ct_code parse(const struct ct_buf *jws, struct ct_manifest **out,
                                 struct ct_err *err)
{
    struct ct_manifest *m = NULL;
    *err = (struct ct_err)CT_ERR_INIT;
    int r = ct_manifest_parse(jws->data, jws->len, &keys.base, &m, err);
    cr_assert_eq(r == 0, m != NULL);
    cr_assert_eq(r == 0, err->code == CT_OK);
    if (out) {
        *out = m;
    } else {
        ct_manifest_unref(m);
    }
    return err->code;
}

static inline void add(struct ct_manifest_builder *b, const struct ct_entry *e)
{
    struct ct_err err = CT_ERR_INIT;
    cr_assert_eq(ct_manifest_builder_add(b, e, &err), 0, "%s", err.msg);
}

static const uint8_t digests[3][CT_DIGEST] = {{1}, {2}, {3}};

static inline void add_examples(struct ct_manifest_builder *b)
{
    struct ct_digests plain[] = {
        {.begin = 10, .end = 20, .piece = CT_DIGEST_PIECE, .count = 1, .sha256 = digests},
        {.begin = 20,
         .end = 2 * CT_DIGEST_PIECE + 21,
         .piece = CT_DIGEST_PIECE,
         .count = 3,
         .sha256 = digests}};
    add(b, &(struct ct_entry){.kind = CT_ENTRY_SHARD,
                              .path = "z/model.safetensors",
                              .size = UINT64_C(5) << 40,
                              .sha256 = {7},
                              .plain_count = 2,
                              .plain = plain});
    add(b,
        &(struct ct_entry){
            .kind = CT_ENTRY_FILE, .path = "config.json", .size = CT_DIGEST_PIECE, .sha256 = {8}});
    add(b, &(struct ct_entry){.kind = CT_ENTRY_FILE, .path = "empty", .size = 0, .sha256 = {9}});
    add(b, &(struct ct_entry){.kind = CT_ENTRY_FILE,
                              .path = "tokenizer.json",
                              .size = CT_DIGEST_PIECE + 1,
                              .sha256 = {10},
                              .pieces = {.end = CT_DIGEST_PIECE + 1,
                                         .piece = CT_DIGEST_PIECE,
                                         .count = 2,
                                         .sha256 = digests}});
    add(b,
        &(struct ct_entry){.kind = CT_ENTRY_LINK, .path = "z.link", .target = "../x/\\\"\n\u00e9"});
    add(b, &(struct ct_entry){.kind = CT_ENTRY_FILE, .path = "a\\b \"c\"\x01\u00fc", .size = 1});
}

static inline void build(struct ct_buf *jws, uint64_t generation)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_manifest_builder *b = ct_manifest_builder_new(generation, &err);
    cr_assert(b);
    add_examples(b);
    cr_assert_eq(ct_manifest_builder_sign(b, seed, kid, jws, &err), 0, "%s", err.msg);
    ct_manifest_builder_free(b);
}

#endif
