#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "format/base/sha256.h"
#include "format/jws.h"
#include "format/manifest.h"

#define TYP "kvfs-manifest+json"
#define KID "s-test"
#define GOOD_HEADER "{\"alg\":\"EdDSA\",\"kid\":\"" KID "\",\"typ\":\"" TYP "\"}"
#define SHA "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" /* 32 zero bytes */
#define ENTRY_A "{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "\"}"
#define ENTRY_B "{\"path\":\"b\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "\"}"

static struct ct_secret *seed, *other_seed;

/* One key, under one kid. */
struct one_key {
    struct ct_keysource base;
    uint8_t pub[CT_ED25519_PUB];
};
static struct one_key keys;

static int verify_key(struct ct_keysource *ks, const struct ct_keyref *ref,
                      uint8_t pub[static CT_ED25519_PUB], struct ct_err *err)
{
    if (!ct_span_eq(ref->kid, KID)) {
        return ct_err_set(err, CT_NOKEY, "no key %.*s", (int)ref->kid.n, ref->kid.p);
    }
    memcpy(pub, ((struct one_key *)ks)->pub, CT_ED25519_PUB);
    return 0;
}

static void setup(void)
{
    uint8_t bytes[CT_ED25519_SEED] = {1, 2, 3};
    cr_assert_eq(ct_secret_init(NULL), 0);
    seed = ct_secret_from(bytes, sizeof(bytes), NULL);
    bytes[0] = 9;
    other_seed = ct_secret_from(bytes, sizeof(bytes), NULL);
    keys.base.verify = verify_key;
    cr_assert_eq(ct_ed25519_public(seed, keys.pub, NULL), 0);
}

static void teardown(void)
{
    ct_secret_free(seed);
    ct_secret_free(other_seed);
}

TestSuite(manifest, .init = setup, .fini = teardown);

static const struct ct_span kid = {KID, sizeof(KID) - 1};

/* What any holder of the key can make: a protected header and a payload of his choice. */
static void sign_parts(const char *header, const char *payload, size_t n, struct ct_buf *out)
{
    uint8_t sig[CT_ED25519_SIG];
    ct_autobuf input = {0};
    ct_base64url_put(&input, (const uint8_t *)header, strlen(header));
    size_t head = input.len;
    ct_buf_putc(&input, '.');
    ct_base64url_put(&input, (const uint8_t *)payload, n);
    cr_assert_eq(ct_ed25519_sign(seed, input.data, input.len, sig, NULL), 0);
    ct_buf_printf(out, "{\"payload\":\"%.*s\",\"protected\":\"%.*s\",\"signature\":\"",
                  (int)(input.len - head - 1), (char *)input.data + head + 1, (int)head,
                  (char *)input.data);
    ct_base64url_put(out, sig, sizeof(sig));
    ct_buf_puts(out, "\"}");
}

static enum ct_code parse(const struct ct_buf *jws, struct ct_manifest **out, struct ct_err *err)
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

static enum ct_code parse_payload(const char *payload, struct ct_err *err)
{
    ct_autobuf jws = {0};
    sign_parts(GOOD_HEADER, payload, strlen(payload), &jws);
    return parse(&jws, NULL, err);
}

/* ---- round trip ---- */

static void add(struct ct_manifest_builder *b, const struct ct_entry *e)
{
    struct ct_err err = CT_ERR_INIT;
    cr_assert_eq(ct_manifest_builder_add(b, e, &err), 0, "%s", err.msg);
}

static const uint8_t digests[3][CT_DIGEST] = {{1}, {2}, {3}};

static void add_examples(struct ct_manifest_builder *b)
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

static void build(struct ct_buf *jws, uint64_t generation)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_manifest_builder *b = ct_manifest_builder_new(generation, &err);
    cr_assert(b);
    add_examples(b);
    cr_assert_eq(ct_manifest_builder_sign(b, seed, kid, jws, &err), 0, "%s", err.msg);
    ct_manifest_builder_free(b);
}

Test(manifest, roundtrip)
{
    struct ct_err err;
    struct ct_manifest *m = NULL;
    ct_autobuf jws = {0};
    build(&jws, 77);
    cr_assert_eq(parse(&jws, &m, &err), CT_OK, "%s", err.msg);
    cr_assert_eq(ct_manifest_generation(m), 77);
    cr_assert_eq(ct_manifest_count(m), 6);
    const char *order[] = {"a\\b \"c\"\x01\u00fc", "config.json", "empty",
                           "tokenizer.json",       "z.link",      "z/model.safetensors"};
    for (size_t i = 0; i < 6; i++) {
        const struct ct_entry *e = ct_manifest_at(m, i);
        cr_assert_str_eq(e->path, order[i]);
        cr_assert_eq(ct_manifest_find(m, order[i]), e);
    }
    cr_assert_null(ct_manifest_at(m, 6));
    const struct ct_entry *e = ct_manifest_at(m, 3);
    cr_assert_eq(e->kind, CT_ENTRY_FILE);
    cr_assert_eq(e->size, CT_DIGEST_PIECE + 1);
    cr_assert_eq(e->sha256[0], 10);
    cr_assert_eq(e->pieces.count, 2);
    cr_assert_eq(e->pieces.end, CT_DIGEST_PIECE + 1);
    cr_assert_arr_eq(e->pieces.sha256, digests, (size_t)2 * CT_DIGEST);
    cr_assert_eq(ct_manifest_at(m, 1)->pieces.count, 0);
    cr_assert_str_eq(ct_manifest_at(m, 4)->target, "../x/\\\"\n\u00e9");
    e = ct_manifest_at(m, 5);
    cr_assert_eq(e->kind, CT_ENTRY_SHARD);
    cr_assert_eq(e->size, UINT64_C(5) << 40);
    cr_assert_eq(e->plain_count, 2);
    cr_assert_eq(e->plain[0].begin, 10);
    cr_assert_eq(e->plain[1].end, 2 * CT_DIGEST_PIECE + 21);
    cr_assert_arr_eq(e->plain[1].sha256, digests, (size_t)3 * CT_DIGEST);
    ct_manifest_ref(m);
    ct_manifest_unref(m);

    uint8_t digest[CT_DIGEST];
    char hex[2 * CT_DIGEST + 1];
    cr_assert_eq(ct_sha256(jws.data, jws.len, digest, NULL), 0);
    ct_hex(hex, digest, sizeof(digest));
    cr_assert_str_eq(ct_manifest_digest(m), hex);
    ct_manifest_unref(m);
}

Test(manifest, find_and_dirs)
{
    struct ct_err err;
    struct ct_manifest *m = NULL;
    ct_autobuf jws = {0};
    build(&jws, 0);
    cr_assert_eq(parse(&jws, &m, &err), CT_OK, "%s", err.msg);
    const char *absent[] = {
        "",       "a",  "config.jso",         "config.json/",         "config.json/x",
        "z",      "z/", "z/model.safetensor", "z/model.safetensors0", "zz",
        "./empty"};
    for (size_t i = 0; i < sizeof(absent) / sizeof(*absent); i++) {
        cr_expect_null(ct_manifest_find(m, absent[i]), "%s", absent[i]);
    }
    cr_expect(ct_manifest_has_dir(m, ""));
    cr_expect(ct_manifest_has_dir(m, "z"));
    const char *no_dirs[] = {"a", "z.", "z.link", "y", "z/model.safetensors", "zz", "config.json"};
    for (size_t i = 0; i < sizeof(no_dirs) / sizeof(*no_dirs); i++) {
        cr_expect_not(ct_manifest_has_dir(m, no_dirs[i]), "%s", no_dirs[i]);
    }
    ct_manifest_unref(m);
}

Test(manifest, empty)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_manifest *m = NULL;
    ct_autobuf jws = {0};
    struct ct_manifest_builder *b = ct_manifest_builder_new((UINT64_C(1) << 53) - 1, &err);
    cr_assert_eq(ct_manifest_builder_sign(b, seed, kid, &jws, &err), 0);
    ct_manifest_builder_free(b);
    cr_assert_eq(parse(&jws, &m, &err), CT_OK, "%s", err.msg);
    cr_assert_eq(ct_manifest_count(m), 0);
    cr_assert_eq(ct_manifest_generation(m), (UINT64_C(1) << 53) - 1);
    cr_assert_not(ct_manifest_has_dir(m, ""));
    ct_manifest_unref(m);
    cr_assert_null(ct_manifest_builder_new(UINT64_C(1) << 53, &err));
    cr_assert_eq(err.code, CT_USAGE);
}

Test(manifest, hundred_thousand_entries, .timeout = 60)
{
    enum { N = 100000 };
    struct ct_err err = CT_ERR_INIT;
    struct ct_manifest *m = NULL;
    ct_autobuf jws = {0};
    char path[64];
    struct ct_manifest_builder *b = ct_manifest_builder_new(1, &err);
    for (unsigned i = 0; i < N; i++) { /* not in order */
        unsigned k = (unsigned)(i * UINT64_C(7919) % N);
        (void)snprintf(path, sizeof(path), "dir-%u/sub/file-%06u.json", k % 100, k);
        add(b, &(struct ct_entry){.path = path, .size = k, .sha256 = {(uint8_t)k}});
    }
    cr_assert_eq(ct_manifest_builder_sign(b, seed, kid, &jws, &err), 0, "%s", err.msg);
    ct_manifest_builder_free(b);
    cr_assert_eq(parse(&jws, &m, &err), CT_OK, "%s", err.msg);
    cr_assert_eq(ct_manifest_count(m), N);
    for (unsigned k = 0; k < N; k += 997) {
        (void)snprintf(path, sizeof(path), "dir-%u/sub/file-%06u.json", k % 100, k);
        const struct ct_entry *e = ct_manifest_find(m, path);
        cr_assert(e && e->size == k && e->sha256[0] == (uint8_t)k);
    }
    cr_assert(ct_manifest_has_dir(m, "dir-99/sub"));
    ct_manifest_unref(m);
}

/* ---- what is not written ---- */

Test(manifest, builder_refuses_paths)
{
    char longest[4097];
    char component[300];
    memset(component, 'c', sizeof(component));
    component[256] = '\0';
    memset(longest, 'a', sizeof(longest));
    for (size_t i = 100; i < sizeof(longest); i += 100) {
        longest[i] = '/';
    }
    longest[4096] = '\0';
    const char *bad[] = {
        "",        "/",     "/a",         "a/",           "a//b",          ".",
        "..",      "./a",   "a/.",        "a/..",         "a/../b",        "../a",
        "a/./b",   "\xff",  "a/\xc0\xaf", "\xed\xa0\x80", "kvfs.manifest", "sub/kvfs.manifest",
        component, longest, NULL};
    struct ct_manifest_builder *b = ct_manifest_builder_new(1, NULL);
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        struct ct_err err = CT_ERR_INIT;
        cr_expect_eq(ct_manifest_builder_add(b, &(struct ct_entry){.path = bad[i]}, &err), -1);
        cr_expect_eq(err.code, CT_USAGE, "%s", bad[i] ? bad[i] : "NULL");
    }
    component[255] = '\0';
    longest[4095] = '\0';
    const char *good[] = {"...",
                          "a",
                          ".a",
                          "a.",
                          "..a",
                          "a/...",
                          "kvfs.manifest.old",
                          "-",
                          " ",
                          "kvfs.manifest/x",
                          component,
                          longest,
                          "\\",
                          "a\\..\\b"};
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        add(b, &(struct ct_entry){.path = good[i]});
    }
    ct_manifest_builder_free(b);
}

Test(manifest, builder_refuses_contradictions)
{
    const uint64_t piece = CT_DIGEST_PIECE;
    const struct ct_digests one = {0, 10, CT_DIGEST_PIECE, 1, digests};
    const struct ct_digests range[][2] = {
        {{0, 10, CT_DIGEST_PIECE, 1, digests}, {9, 20, CT_DIGEST_PIECE, 1, digests}},
        {{10, 20, CT_DIGEST_PIECE, 1, digests}, {0, 10, CT_DIGEST_PIECE, 1, digests}},
        {{0, 10, CT_DIGEST_PIECE, 1, digests}, {10, 10, CT_DIGEST_PIECE, 0, digests}},
        {{0, 10, CT_DIGEST_PIECE, 1, digests}, {20, 101, CT_DIGEST_PIECE, 1, digests}},
        {{0, 10, CT_DIGEST_PIECE, 2, digests}, {20, 30, CT_DIGEST_PIECE, 1, digests}},
        {{0, 10, 5, 2, digests}, {20, 30, CT_DIGEST_PIECE, 1, digests}},
        {{0, 10, CT_DIGEST_PIECE, 1, NULL}, {20, 30, CT_DIGEST_PIECE, 1, digests}},
    };
    struct ct_entry bad[32] = {
        {.path = "big", .size = piece + 1},
        {.path = "big", .size = piece + 1, .pieces = {0, piece + 1, CT_DIGEST_PIECE, 1, digests}},
        {.path = "big", .size = piece + 1, .pieces = {1, piece + 1, CT_DIGEST_PIECE, 2, digests}},
        {.path = "big", .size = piece + 1, .pieces = {0, piece + 1, 4096, 2, digests}},
        {.path = "small", .size = 10, .pieces = one},
        {.path = "huge", .size = UINT64_C(1) << 53},
        {.path = "link", .kind = CT_ENTRY_LINK},
        {.path = "link", .kind = CT_ENTRY_LINK, .target = ""},
        {.path = "link", .kind = CT_ENTRY_LINK, .target = "/etc"},
        {.path = "link", .kind = CT_ENTRY_LINK, .target = "\xff"},
        {.path = "shard", .kind = CT_ENTRY_SHARD, .size = 1, .plain_count = 1},
        {.path = "kind", .kind = (enum ct_entry_kind)3},
    };
    size_t n = 12;
    for (size_t i = 0; i < sizeof(range) / sizeof(*range); i++) {
        bad[n++] = (struct ct_entry){.path = "shard",
                                     .kind = CT_ENTRY_SHARD,
                                     .size = 100,
                                     .plain_count = 2,
                                     .plain = range[i]};
    }
    struct ct_manifest_builder *b = ct_manifest_builder_new(1, NULL);
    for (size_t i = 0; i < n; i++) {
        struct ct_err err = CT_ERR_INIT;
        cr_expect_eq(ct_manifest_builder_add(b, &bad[i], &err), -1, "%zu", i);
        cr_expect_eq(err.code, CT_USAGE, "%zu: %s", i, err.msg);
    }
    ct_manifest_builder_free(b);
}

Test(manifest, builder_refuses_double_and_nested_paths)
{
    const char *pairs[][2] = {{"a", "a"}, {"a", "a/b"}, {"x/y", "x/y/z/w"}, {"x/y/z/w", "x"}};
    for (size_t i = 0; i < 4; i++) {
        struct ct_err err = CT_ERR_INIT;
        ct_autobuf jws = {0};
        struct ct_manifest_builder *b = ct_manifest_builder_new(1, NULL);
        add(b, &(struct ct_entry){.path = pairs[i][0]});
        add(b, &(struct ct_entry){.path = "a.b"});
        add(b, &(struct ct_entry){.path = pairs[i][1]});
        cr_expect_eq(ct_manifest_builder_sign(b, seed, kid, &jws, &err), -1, "%zu", i);
        cr_expect_eq(err.code, CT_USAGE);
        cr_expect_eq(jws.len, 0);
        ct_manifest_builder_free(b);
    }
}

Test(manifest, builder_refuses_kids)
{
    char longest[300];
    memset(longest, 'k', sizeof(longest));
    const struct ct_span bad[] = {{NULL, 0}, {longest, 256}, {"a\0b", 3}, {"\xff", 1}};
    for (size_t i = 0; i < 4; i++) {
        struct ct_err err = CT_ERR_INIT;
        ct_autobuf jws = {0};
        struct ct_manifest_builder *b = ct_manifest_builder_new(1, NULL);
        cr_expect_eq(ct_manifest_builder_sign(b, seed, bad[i], &jws, &err), -1, "%zu", i);
        cr_expect_eq(err.code, CT_USAGE, "%zu", i);
        ct_manifest_builder_free(b);
    }
}

/* ---- tampering ---- */

Test(manifest, every_changed_byte, .timeout = 100)
{
    struct ct_err err;
    ct_autobuf jws = {0};
    build(&jws, 3);
    static const uint8_t flips[] = {0x01, 0x02, 0x20, 0x80};
    for (size_t i = 0; i + 1 < jws.len; i++) { /* the last one is a newline */
        for (size_t k = 0; k < sizeof(flips); k++) {
            jws.data[i] ^= flips[k];
            cr_expect_neq(parse(&jws, NULL, &err), CT_OK, "byte %zu ^ %x", i, flips[k]);
            jws.data[i] ^= flips[k];
        }
    }
    cr_assert_eq(parse(&jws, NULL, &err), CT_OK);
}

Test(manifest, every_truncation)
{
    struct ct_err err;
    ct_autobuf jws = {0};
    build(&jws, 3);
    size_t whole = jws.len - 1; /* without the newline it is whole */
    for (jws.len = 0; jws.len < whole; jws.len++) {
        cr_expect_eq(parse(&jws, NULL, &err), CT_MALFORMED, "%zu bytes", jws.len);
    }
    cr_assert_eq(parse(&jws, NULL, &err), CT_OK);
}

Test(manifest, other_keys)
{
    struct ct_err err = CT_ERR_INIT;
    ct_autobuf other = {0};
    ct_autobuf unknown = {0};
    struct ct_manifest_builder *b = ct_manifest_builder_new(1, NULL);
    cr_assert_eq(ct_manifest_builder_sign(b, other_seed, kid, &other, &err), 0);
    cr_expect_eq(parse(&other, NULL, &err), CT_REJECTED);
    cr_assert_eq(ct_manifest_builder_sign(b, seed, (struct ct_span){"s-2", 3}, &unknown, &err), 0);
    cr_expect_eq(parse(&unknown, NULL, &err), CT_NOKEY);
    ct_manifest_builder_free(b);
}

/* ---- what JOSE would allow, or an attacker try: all signed with the right key ---- */

#define PAYLOAD "{\"version\":1,\"generation\":1,\"entries\":[]}"
#define REST ",\"kid\":\"" KID "\",\"typ\":\"" TYP "\"}"

Test(manifest, protected_headers)
{
    static const struct {
        const char *header;
        enum ct_code code;
    } table[] = {
        {GOOD_HEADER, CT_OK},
        {" { \"typ\" : \"" TYP "\",\n\"kid\":\"" KID "\",\"alg\":\"EdD\\u0053A\"} ", CT_OK},
        {"{\"alg\":\"none\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"None\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"HS256\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"RS256\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"ES256\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"Ed25519\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"eddsa\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"EdDSA \"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":null" REST, CT_MALFORMED},
        {"{\"alg\":[\"EdDSA\"]" REST, CT_MALFORMED},
        {"{\"kid\":\"" KID "\",\"typ\":\"" TYP "\"}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"alg\":\"EdDSA\"" REST, CT_MALFORMED},
        {"{\"alg\":\"none\",\"alg\":\"EdDSA\"" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"crit\":[]" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"crit\":[\"exp\"],\"exp\":1" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"b64\":false,\"crit\":[\"b64\"]" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"b64\":true" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"zip\":\"DEF\"" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"jku\":\"https://evil\"" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"x5u\":\"https://evil\"" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"x5c\":[]" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"x5t\":\"\"" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"jwk\":{\"kty\":\"OKP\"}" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"cty\":\"json\"" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"\":1" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"" KID "\"}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"" KID "\",\"typ\":\"JWT\"}", CT_REJECTED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"" KID "\",\"typ\":\"KVFS-manifest+json\"}", CT_REJECTED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"" KID "\",\"typ\":\"application/" TYP "\"}", CT_REJECTED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"" KID "\",\"typ\":null}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" TYP "\"}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"\",\"typ\":\"" TYP "\"}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"kid\":7,\"typ\":\"" TYP "\"}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"s-test\\u0000\",\"typ\":\"" TYP "\"}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"../s\",\"typ\":\"" TYP "\"}", CT_NOKEY},
        {"[]", CT_MALFORMED},
        {"\"EdDSA\"", CT_MALFORMED},
        {"{}", CT_MALFORMED},
        {"", CT_MALFORMED},
        {GOOD_HEADER "x", CT_MALFORMED},
        {"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", CT_MALFORMED},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct ct_err err;
        ct_autobuf jws = {0};
        sign_parts(table[i].header, PAYLOAD, strlen(PAYLOAD), &jws);
        enum ct_code code = parse(&jws, NULL, &err);
        cr_expect_eq(code, table[i].code, "%s: %s: %s", table[i].header, ct_code_name(code),
                     err.msg);
    }
}

Test(manifest, protected_header_too_long)
{
    struct ct_err err;
    ct_autobuf jws = {0};
    ct_autobuf header = {0};
    ct_buf_puts(&header, GOOD_HEADER);
    for (int i = 0; i < 3000; i++) {
        ct_buf_putc(&header, ' ');
    }
    ct_buf_putc(&header, '\0');
    sign_parts((char *)header.data, PAYLOAD, strlen(PAYLOAD), &jws);
    cr_expect_eq(parse(&jws, NULL, &err), CT_MALFORMED);
}

/* The outer object, its parts cut out of a good one: P, Y and S stand for them. */
Test(manifest, outer_objects)
{
    static const struct {
        const char *text;
        enum ct_code code;
    } table[] = {
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}", CT_OK},
        {"\t{ \"signature\" :\n\"S\" , \"protected\":\"P\",\r\"payload\":\"Y\" }\n\n", CT_OK},
        {"P.Y.S", CT_MALFORMED},
        {"{\"payload\":\"Y\",\"signatures\":[{\"protected\":\"P\",\"signature\":\"S\"}]}",
         CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\",\"header\":{}}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\",\"header\":{\"kid\":\"x\"}}",
         CT_MALFORMED},
        {"{\"header\":\"P\",\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}",
         CT_MALFORMED},
        {"{\"x\":\"\",\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"payload\":\"Y\",\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}",
         CT_MALFORMED},
        {"{\"payload\":\"\",\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}",
         CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"payload\":\"Y\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":null}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S=\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S==\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"SAAA\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y=\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y \",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"YA\",\"signature\":\"S\"}", CT_REJECTED},
        {"{\"protected\":\"P\",\"payload\":\"\",\"signature\":\"S\"}", CT_REJECTED},
        {"{\"protected\":\"P\",\"payload\":\"P\",\"signature\":\"S\"}", CT_REJECTED},
        {"{\"protected\":\"\",\"payload\":\"Y\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"protect\\u0065d\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\",}", CT_MALFORMED},
        {"{\"protected\":\"P\" \"payload\":\"Y\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}{}", CT_MALFORMED},
        {"\xef\xbb\xbf{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{'protected':'P','payload':'Y','signature':'S'}", CT_MALFORMED},
        {"{}", CT_MALFORMED},
        {"[]", CT_MALFORMED},
        {"", CT_MALFORMED},
        {"null", CT_MALFORMED},
    };
    struct ct_jws parts;
    struct ct_err err;
    ct_autobuf good = {0};
    sign_parts(GOOD_HEADER, PAYLOAD, strlen(PAYLOAD), &good);
    cr_assert_eq(ct_jws_parse(good.data, good.len, TYP, &parts, &err), 0);
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        ct_autobuf jws = {0};
        for (const char *p = table[i].text; *p; p++) {
            const struct ct_span *part = *p == 'P'   ? &parts.protected
                                         : *p == 'Y' ? &parts.payload
                                         : *p == 'S' ? &parts.signature
                                                     : NULL;
            ct_buf_put(&jws, part ? part->p : p, part ? part->n : 1);
        }
        enum ct_code code = parse(&jws, NULL, &err);
        cr_expect_eq(code, table[i].code, "%s: %s: %s", table[i].text, ct_code_name(code), err.msg);
    }
}

Test(manifest, larger_than_allowed)
{
    struct ct_err err;
    ct_autobuf jws = {0};
    build(&jws, 1);
    cr_assert(ct_buf_reserve(&jws, CT_MANIFEST_MAX));
    size_t n = jws.len;
    memset(jws.data + n, ' ', CT_MANIFEST_MAX);
    jws.len = CT_MANIFEST_MAX;
    cr_expect_eq(parse(&jws, NULL, &err), CT_OK, "%s", err.msg);
    jws.len++;
    cr_expect_eq(parse(&jws, NULL, &err), CT_MALFORMED);
}

/* ---- payloads, all signed ---- */

#define WITH(entries) "{\"version\":1,\"generation\":1,\"entries\":[" entries "]}"
#define FILE_OF(path) "{\"path\":\"" path "\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "\"}"
#define SHARD(rest)                                                                                \
    WITH("{\"path\":\"m\",\"kind\":\"shard\",\"body\":100,\"header\":\"" SHA "\"" rest "}")

Test(manifest, payloads)
{
    static const struct {
        const char *payload;
        enum ct_code code;
    } table[] = {
        {WITH(""), CT_OK},
        {WITH(ENTRY_A), CT_OK},
        {WITH(ENTRY_A "," ENTRY_B), CT_OK},
        {" { \"entries\" : [ ] ,\n\"generation\":9007199254740991,\t\"version\":1 } ", CT_OK},
        {"{\"version\":2,\"generation\":1,\"entries\":[]}", CT_UNSUPPORTED},
        {"{\"version\":0,\"generation\":1,\"entries\":[]}", CT_UNSUPPORTED},
        {"{\"version\":2,\"generation\":1,\"entries\":[],\"new\":{\"in\":[2]}}", CT_UNSUPPORTED},
        {"{\"version\":\"1\",\"generation\":1,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1.0,\"generation\":1,\"entries\":[]}", CT_MALFORMED},
        {"{\"generation\":1,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":-1,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":-0,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":01,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1e0,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":9007199254740992,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":99999999999999999999999,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":null,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1,\"entries\":{}}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1,\"entries\":null}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1,\"entries\":[],\"more\":1}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1,\"generation\":1,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1,\"entries\":[],\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"version\":2,\"generation\":1,\"entries\":[]}", CT_MALFORMED},
        {WITH("") "x", CT_MALFORMED},
        {WITH("") "{}", CT_MALFORMED},
        {"[]", CT_MALFORMED},
        {"", CT_MALFORMED},
        {"{", CT_MALFORMED},
        {"1", CT_MALFORMED},
        {WITH("1"), CT_MALFORMED},
        {WITH("{}"), CT_MALFORMED},
        {WITH("[]"), CT_MALFORMED},
        {WITH(ENTRY_A ","), CT_MALFORMED},
        {WITH(ENTRY_A " " ENTRY_B), CT_MALFORMED},
        {WITH(ENTRY_B "," ENTRY_A), CT_MALFORMED},
        {WITH(ENTRY_A "," ENTRY_A), CT_MALFORMED},
        {WITH(ENTRY_A "," FILE_OF("a/b")), CT_MALFORMED},
        {WITH(ENTRY_A "," FILE_OF("a.b") "," FILE_OF("a/b")), CT_MALFORMED},
        {WITH(FILE_OF("\\u0061") "," ENTRY_B), CT_OK},
        {WITH(ENTRY_A "," FILE_OF("\\u0061")), CT_MALFORMED},
        {WITH(FILE_OF("a\\\\b")), CT_OK},
        {WITH(FILE_OF("a\\u0000b")), CT_MALFORMED},
        {WITH(FILE_OF("")), CT_MALFORMED},
        {WITH(FILE_OF(".")), CT_MALFORMED},
        {WITH(FILE_OF("..")), CT_MALFORMED},
        {WITH(FILE_OF("../a")), CT_MALFORMED},
        {WITH(FILE_OF("a/../b")), CT_MALFORMED},
        {WITH(FILE_OF("\\u002e\\u002e/b")), CT_MALFORMED},
        {WITH(FILE_OF("a//b")), CT_MALFORMED},
        {WITH(FILE_OF("/a")), CT_MALFORMED},
        {WITH(FILE_OF("\\/a")), CT_MALFORMED},
        {WITH(FILE_OF("a/")), CT_MALFORMED},
        {WITH(FILE_OF("kvfs.manifest")), CT_MALFORMED},
        {WITH(FILE_OF("\xff")), CT_MALFORMED},
        {WITH(FILE_OF("\\ud800")), CT_MALFORMED},
        {WITH(FILE_OF("\xed\xa0\x80")), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"sha256\":\"" SHA "\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"size\":1,\"sha256\":\"" SHA "\"}"), CT_MALFORMED},
        {WITH("{\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "\"}"), CT_MALFORMED},
        {WITH("{\"path\":1,\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"dir\",\"size\":1,\"sha256\":\"" SHA "\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "=\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "A\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA SHA "\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "\",\"x\":1}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA
              "\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA
              "\",\"target\":\"b\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA
              "\",\"pieces\":\"" SHA "\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA
              "\",\"pieces\":\"\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1048577,\"sha256\":\"" SHA "\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1048577,\"sha256\":\"" SHA
              "\",\"pieces\":\"" SHA "\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":9007199254740991,\"sha256\":\"" SHA
              "\",\"pieces\":\"" SHA "\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"link\",\"target\":\"../b\"}"), CT_OK},
        {WITH("{\"target\":\"b\",\"kind\":\"link\",\"path\":\"a\"}"), CT_OK},
        {WITH("{\"path\":\"a\",\"kind\":\"link\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"link\",\"target\":\"\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"link\",\"target\":\"/b\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"link\",\"target\":\"b\\u0000\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"link\",\"target\":\"b\",\"size\":1}"), CT_MALFORMED},
        {SHARD(""), CT_OK},
        {SHARD(",\"plain\":[{\"begin\":0,\"end\":100,\"pieces\":\"" SHA "\"}]"), CT_OK},
        {SHARD(",\"size\":1"), CT_MALFORMED},
        {SHARD(",\"plain\":[]"), CT_MALFORMED},
        {SHARD(",\"plain\":{}"), CT_MALFORMED},
        {SHARD(",\"plain\":[{}]"), CT_MALFORMED},
        {SHARD(",\"plain\":[{\"begin\":0,\"end\":101,\"pieces\":\"" SHA "\"}]"), CT_MALFORMED},
        {SHARD(",\"plain\":[{\"begin\":5,\"end\":5,\"pieces\":\"\"}]"), CT_MALFORMED},
        {SHARD(",\"plain\":[{\"begin\":5,\"end\":6,\"pieces\":\"\"}]"), CT_MALFORMED},
        {SHARD(",\"plain\":[{\"begin\":6,\"end\":5,\"pieces\":\"" SHA "\"}]"), CT_MALFORMED},
        {SHARD(",\"plain\":[{\"begin\":0,\"end\":5,\"pieces\":\"" SHA "\",\"x\":1}]"),
         CT_MALFORMED},
        {SHARD(",\"plain\":[{\"begin\":0,\"end\":5,\"pieces\":\"" SHA "\"},"
               "{\"begin\":5,\"end\":9,\"pieces\":\"" SHA "\"}]"),
         CT_OK},
        {SHARD(",\"plain\":[{\"begin\":0,\"end\":5,\"pieces\":\"" SHA "\"},"
               "{\"begin\":4,\"end\":9,\"pieces\":\"" SHA "\"}]"),
         CT_MALFORMED},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct ct_err err;
        enum ct_code code = parse_payload(table[i].payload, &err);
        cr_expect_eq(code, table[i].code, "%s: %s: %s", table[i].payload, ct_code_name(code),
                     err.msg);
    }
}

/* ---- digests ---- */

Test(manifest, digests_check)
{
    enum { PIECE = 16, LEN = 40 };
    uint8_t bytes[LEN];
    uint8_t sums[3][CT_DIGEST];
    for (size_t i = 0; i < LEN; i++) {
        bytes[i] = (uint8_t)i;
    }
    for (size_t i = 0; i < 3; i++) {
        size_t n = i < 2 ? PIECE : LEN - 2 * PIECE;
        cr_assert_eq(ct_sha256(bytes + i * PIECE, n, sums[i], NULL), 0);
    }
    const uint64_t at = 1000;
    const struct ct_digests d = {at, at + LEN, PIECE, 3, (const uint8_t(*)[CT_DIGEST])sums};
    static const struct {
        uint64_t offset;
        size_t n;
        int r;
    } table[] = {{0, 40, 0},  {0, 16, 0},   {0, 32, 0},  {16, 24, 0},  {32, 8, 0},
                 {16, 16, 0}, {0, 0, 0},    {40, 0, -1}, {0, 15, -1},  {1, 16, -1},
                 {32, 9, -1}, {16, 32, -1}, {0, 39, -1}, {48, 16, -1}, {32, 7, -1}};
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct ct_err err = CT_ERR_INIT;
        uint64_t offset = table[i].offset;
        int r = ct_digests_check(&d, at + offset, bytes + (offset < LEN ? offset : 0), table[i].n,
                                 &err);
        cr_expect_eq(r, table[i].r, "%zu", i);
        cr_expect_eq(err.code, r ? CT_USAGE : CT_OK, "%zu", i);
    }
    struct ct_err err = CT_ERR_INIT;
    cr_expect_eq(ct_digests_check(&d, at - PIECE, bytes, PIECE, &err), -1);
    cr_expect_eq(ct_digests_check(&d, UINT64_MAX - 7, bytes, PIECE, &err), -1);
    for (size_t i = 0; i < LEN; i++) {
        bytes[i] ^= 0x40;
        cr_expect_eq(ct_digests_check(&d, at, bytes, LEN, &err), -1);
        cr_expect_eq(err.code, CT_TAG);
        bytes[i] ^= 0x40;
    }
}
