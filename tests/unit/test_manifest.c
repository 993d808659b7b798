#include "manifest_fixture.h"

TestSuite(manifest, .init = setup, .fini = teardown);

/* ---- round trip ---- */

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
