#include <errno.h>
#include <sched.h>
#include <sys/mount.h>

#include "writer_fixture.h"

static struct ct_keyring *ring;

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
    ring = ring_of(KEYS "owner.jwks");
}

static void teardown(void)
{
    ct_keyring_free(ring);
}

TestSuite(writer, .init = setup, .fini = teardown, .timeout = 100);

static const char *const kid_of[] = {"m-256", "m-128", "m-chacha"};

/* Encrypts `plain` and compares its view with it, and its entry with what is there. */
static void roundtrip(const struct dir *d, const struct ct_buf *plain, const char *kid,
                      const struct ct_write_options *opt, const char *what)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_version v;
    struct ct_entry entry;
    struct ct_entry again;
    struct ct_entry_arena *arena = NULL;
    struct ct_entry_arena *arena2 = NULL;
    ct_autobuf view = {0};
    const struct ct_write_keys keys = keys_of(ring, kid, "s-1");
    put_file(d->fd, "plain", plain);
    struct ct_source *s = source_of(d->fd, "plain", &v);
    uint64_t header = 0;
    int r = ct_encrypt_header_len(s, &v, &keys, opt, &header, &err);
    cr_assert_eq(r, 0, "%s: %s", what, err.msg);
    r = ct_encrypt_file(s, &v, &keys, opt, d->fd, "out", &entry, &arena, &err);
    cr_assert_eq(r, 0, "%s: %s", what, err.msg);
    ct_source_close(s);
    enum ct_code code = view_of(d->fd, "out", ct_keyring_source(ring), &view, &err);
    cr_assert_eq(code, CT_OK, "%s: %s", what, err.msg);
    cr_assert_eq(ct_cmp_bytes(view.data, view.len, plain->data, plain->len), 0, "%s: view", what);

    s = source_of(d->fd, "out", &v);
    cr_assert_eq(v.size, header + entry.size, "%s: length of the header", what);
    r = ct_shard_entry(s, &v, ct_keyring_source(ring), &again, &arena2, &err);
    cr_assert_eq(r, 0, "%s: %s", what, err.msg);
    ct_source_close(s);
    size_t head = 8 + ct_le64(plain->data);
    cr_assert_eq(entry.kind, CT_ENTRY_SHARD);
    cr_assert_eq(entry.size, plain->len - head);
    cr_assert_arr_eq(entry.sha256, again.sha256, CT_DIGEST);
    cr_assert_eq(entry.plain_count, again.plain_count);
    for (size_t i = 0; i < entry.plain_count; i++) {
        const struct ct_digests *p = &entry.plain[i];
        cr_assert_eq(p->count, again.plain[i].count);
        cr_assert_arr_eq(p->sha256, again.plain[i].sha256, p->count * CT_DIGEST);
        r = ct_digests_check(p, p->begin, plain->data + head + p->begin, p->end - p->begin, &err);
        cr_assert_eq(r, 0, "%s: %s", what, err.msg);
    }
    ct_entry_arena_free(arena);
    ct_entry_arena_free(arena2);
    dir_clear(d);
}

static const struct gen small[] = {
    {"scalar", "I64", "[]", 8},    {"d", "F64", "[3,3]", 72},      {"empty", "F32", "[0,4]", 0},
    {"empty2", "F32", "[4,0]", 0}, {"w", "BF16", "[33,65]", 4290}, {"page", "U8", "[4096]", 4096},
    {"one", "U8", "[1]", 1},       {"q", "F4", "[6,3]", 9},        {"edge", "I8", "[3000]", 3000},
    {"last", "BOOL", "[0]", 0},
};
enum { SMALL = sizeof(small) / sizeof(*small) };

Test(writer, versions_ciphers_chunk_sizes)
{
    const uint64_t chunks[] = {1, 7, 1000, 1024, 4096, 65537, 2097152, UINT64_C(1) << 32};
    struct dir d = dir_new();
    ct_autobuf plain = {0};
    gen_file(small, SMALL, "{\"format\":\"pt\"}", &plain);
    for (size_t k = 0; k < 3; k++) {
        roundtrip(&d, &plain, kid_of[k], &(struct ct_write_options){.version = 1}, kid_of[k]);
        for (size_t i = 0; i < sizeof(chunks) / sizeof(*chunks); i++) {
            const struct ct_write_options opt = {.version = 2, .chunk_size = chunks[i]};
            roundtrip(&d, &plain, kid_of[k], &opt, kid_of[k]);
        }
    }
    dir_free(&d);
}

/* Longer than a thread's buffer: spans of many chunks, chunks of many buffers, one long message. */
Test(writer, long_tensors)
{
    const struct gen tensors[] = {{"a", "U8", "[5000001]", 5000001},
                                  {"b", "U8", "[2097152]", 2097152},
                                  {"c", "U8", "[1]", 1},
                                  {"d", "U8", "[2097153]", 2097153},
                                  {"e", "U8", "[0]", 0},
                                  {"f", "U8", "[4194304]", 4194304}};
    const uint64_t chunks[] = {4096,    65537,   2097151, 2097152,
                               2097153, 3000000, 8388608, UINT64_C(1) << 32};
    struct dir d = dir_new();
    ct_autobuf plain = {0};
    gen_file(tensors, 6, NULL, &plain);
    for (unsigned threads = 0; threads < 6; threads += 5) {
        for (size_t k = 0; k < 3; k++) {
            struct ct_write_options opt = {.version = 1, .threads = threads};
            roundtrip(&d, &plain, kid_of[k], &opt, "long, version 1");
            opt.version = 2;
            for (size_t i = 0; i < sizeof(chunks) / sizeof(*chunks); i++) {
                opt.chunk_size = chunks[i];
                roundtrip(&d, &plain, kid_of[k], &opt, "long, version 2");
            }
        }
    }
    dir_free(&d);
}

static bool choose_some(void *ctx, struct ct_span name)
{
    return (name.n + *(const unsigned *)ctx) % 3 == 0;
}

Test(writer, partial)
{
    const struct gen tensors[] = {{"abc", "U8", "[3000000]", 3000000},
                                  {"ab", "U8", "[10]", 10},
                                  {"a", "U8", "[1048577]", 1048577},
                                  {"", "U8", "[0]", 0},
                                  {"abcd", "U8", "[0]", 0},
                                  {"abcde", "U8", "[77]", 77},
                                  {"abcdef", "U8", "[50]", 50}};
    struct dir d = dir_new();
    ct_autobuf plain = {0};
    gen_file(tensors, 7, "{\"a\":\"b\"}", &plain);
    for (unsigned shift = 0; shift < 3; shift++) {
        for (int version = 1; version <= 2; version++) {
            const struct ct_write_options opt = {.version = version,
                                                 .chunk_size = 100000,
                                                 .choose = choose_some,
                                                 .choose_ctx = &shift};
            roundtrip(&d, &plain, "m-256", &opt, "partial");
        }
    }
    dir_free(&d);
}

Test(writer, odd_files)
{
    const struct gen names[] = {{"", "U8", "[1]", 1},
                                {"quote\\\"back\\\\slash/", "U8", "[2]", 2},
                                {"\\u0000\\u0001\\b\\t\\n\\f\\r\\u001f\x7f", "U8", "[3]", 3},
                                {"\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80", "U8", "[4]", 4},
                                {"__encryption__", "U8", "[5]", 5},
                                {" ", "U8", "[6]", 6},
                                {"{\\\"a\\\":1}", "U8", "[7]", 7}};
    const struct gen same[] = {{"z", "U8", "[0]", 0},
                               {"a", "U8", "[0,1]", 0},
                               {"m", "U8", "[0]", 0},
                               {"b", "U8", "[0,7]", 0}};
    const char *metadata[] = {NULL, "{\"\":\"\"}",
                              "{\"Z\":\"1\",\"__x__\":\"{}\",\"a\":\"\\\"\\n\"}",
                              "{\"__metadata__\":\"x\",\"\xc3\xa9\":\"\\u0000\"}"};
    struct dir d = dir_new();
    for (size_t i = 0; i < 4; i++) {
        for (int version = 1; version <= 2; version++) {
            const struct ct_write_options opt = {.version = version, .chunk_size = 3};
            ct_autobuf a = {0};
            ct_autobuf b = {0};
            ct_autobuf c = {0};
            gen_file(names, 7, metadata[i], &a);
            roundtrip(&d, &a, "m-256", &opt, "names");
            gen_file(same, 4, metadata[i], &b);
            roundtrip(&d, &b, "m-256", &opt, "empty tensors");
            gen_file(NULL, 0, metadata[i], &c);
            roundtrip(&d, &c, "m-256", &opt, "no tensors");
        }
    }
    dir_free(&d);
}

Test(writer, a_thousand_tensors)
{
    static struct gen tensors[1000];
    static char names[1000][32];
    struct dir d = dir_new();
    ct_autobuf plain = {0};
    static char shapes[1000][32];
    for (size_t i = 0; i < 1000; i++) {
        size_t len = i * i % 4099;
        (void)snprintf(names[i], sizeof(names[i]), "layer.%zu.weight", i);
        (void)snprintf(shapes[i], sizeof(shapes[i]), "[%zu]", len);
        tensors[i] = (struct gen){names[i], "U8", shapes[i], len};
    }
    gen_file(tensors, 1000, "{\"format\":\"pt\"}", &plain);
    roundtrip(&d, &plain, "m-256", &(struct ct_write_options){.version = 1}, "v1");
    roundtrip(&d, &plain, "m-chacha",
              &(struct ct_write_options){.version = 2, .chunk_size = 1001, .threads = 7}, "v2");
    dir_free(&d);
}

/* ---- refusals: each leaves nothing behind ---- */

static enum ct_code encrypt(const struct dir *d, const char *in, const char *out,
                            const struct ct_write_keys *keys, const struct ct_write_options *opt,
                            struct ct_err *err)
{
    struct ct_version v;
    struct ct_source *s = source_of(d->fd, in, &v);
    *err = (struct ct_err)CT_ERR_INIT;
    int r = ct_encrypt_file(s, &v, keys, opt, d->fd, out, NULL, NULL, err);
    cr_assert_eq(r == 0, err->code == CT_OK);
    ct_source_close(s);
    return err->code;
}

static bool choose_none(void *ctx, struct ct_span name)
{
    (void)ctx;
    (void)name;
    return false;
}

Test(writer, refusals)
{
    struct ct_err err;
    struct dir d = dir_new();
    ct_autobuf plain = {0};
    gen_file(small, SMALL, NULL, &plain);
    put_file(d.fd, "plain", &plain);
    const struct ct_write_keys keys = keys_of(ring, "m-256", "s-1");
    struct ct_write_keys bad_alg = keys;
    bad_alg.alg = CT_ALG_AES128GCM;
    struct ct_write_keys bad_kid = keys;
    bad_kid.master_kid = (struct ct_span){"\xff", 1};
    const struct {
        const struct ct_write_keys *keys;
        struct ct_write_options opt;
    } table[] = {
        {&keys, {.version = 0, .chunk_size = 1}},
        {&keys, {.version = 3, .chunk_size = 1}},
        {&keys, {.version = 2, .chunk_size = 0}},
        {&keys, {.version = 2, .chunk_size = (UINT64_C(1) << 32) + 1}},
        {&keys, {.version = 2, .chunk_size = 100, .choose = choose_none}},
        {&keys, {.version = 2, .chunk_size = 100, .policy_local = "\xff"}},
        {&bad_alg, {.version = 1}},
        {&bad_kid, {.version = 1}},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        enum ct_code code = encrypt(&d, "plain", "out", table[i].keys, &table[i].opt, &err);
        cr_expect_eq(code, CT_USAGE, "%zu: %s", i, err.msg);
    }
    const struct ct_write_options opt = {.version = 1};
    cr_expect_eq(encrypt(&d, "plain", "plain", &keys, &opt, &err), CT_EXISTS);
    cr_assert_eq(encrypt(&d, "plain", "out", &keys, &opt, &err), CT_OK, "%s", err.msg);
    cr_expect_eq(encrypt(&d, "plain", "out", &keys, &opt, &err), CT_EXISTS);
    cr_expect_eq(encrypt(&d, "out", "out2", &keys, &opt, &err), CT_USAGE);
    cr_expect(strstr(err.msg, "already"), "%s", err.msg);
    cr_expect_eq(dir_clear(&d), 2);
    ct_autobuf reserved = {0};
    gen_file(small, 1, "{\"__policy__\":\"{}\"}", &reserved);
    put_file(d.fd, "plain", &reserved);
    cr_expect_eq(encrypt(&d, "plain", "out", &keys, &opt, &err), CT_USAGE);
    reserved.len--;
    put_file(d.fd, "plain", &reserved);
    cr_expect_eq(encrypt(&d, "plain", "out", &keys, &opt, &err), CT_MALFORMED);
    cr_expect_eq(dir_clear(&d), 1);
    dir_free(&d);
}

Test(writer, chunks_too_small_for_a_header)
{
    struct ct_err err;
    struct dir d = dir_new();
    ct_autobuf plain = {0};
    const struct gen big = {"a", "U8", "[8000000]", 8000000};
    gen_file(&big, 1, NULL, &plain);
    put_file(d.fd, "plain", &plain);
    const struct ct_write_keys keys = keys_of(ring, "m-256", "s-1");
    for (uint64_t chunk = 1; chunk <= 2; chunk++) {
        const struct ct_write_options opt = {.version = 2, .chunk_size = chunk};
        enum ct_code code = encrypt(&d, "plain", "out", &keys, &opt, &err);
        cr_expect_eq(code, chunk == 1 ? CT_USAGE : CT_OK, "%s", err.msg);
    }
    dir_free(&d);
}

struct progress {
    uint64_t bytes, calls, cancel_at;
    int inside;
    int touch_fd; /* the source, to be changed meanwhile; 0: not */
};

static int on_progress(void *ctx, uint64_t bytes)
{
    struct progress *p = ctx;
    cr_assert_eq(p->inside++, 0, "two threads at once");
    p->bytes += bytes;
    p->calls++;
    if (p->touch_fd) {
        cr_assert_eq(ct_pwrite_full(p->touch_fd, "x", 1, 300, NULL), 0);
    }
    p->inside--;
    return p->cancel_at && p->calls >= p->cancel_at;
}

static void put_long(const struct dir *d)
{
    const struct gen tensors[] = {{"a", "U8", "[12000001]", 12000001},
                                  {"b", "U8", "[9000000]", 9000000}};
    ct_autobuf plain = {0};
    gen_file(tensors, 2, NULL, &plain);
    put_file(d->fd, "plain", &plain);
}

Test(writer, progress_and_cancel)
{
    struct ct_err err;
    struct dir d = dir_new();
    const struct ct_write_keys keys = keys_of(ring, "m-256", "s-1");
    for (int version = 1; version <= 2; version++) {
        struct progress p = {0};
        struct ct_write_options opt = {.version = version,
                                       .chunk_size = 100000,
                                       .threads = 4,
                                       .progress = on_progress,
                                       .progress_ctx = &p};
        put_long(&d);
        cr_assert_eq(encrypt(&d, "plain", "out", &keys, &opt, &err), CT_OK, "%s", err.msg);
        cr_expect_eq(p.bytes, 21000001);
        cr_expect_eq(dir_clear(&d), 2);
        uint64_t calls = p.calls;
        put_long(&d);
        for (uint64_t at = 1; at <= calls; at++) {
            p = (struct progress){.cancel_at = at};
            cr_expect_eq(encrypt(&d, "plain", "out", &keys, &opt, &err), CT_IO);
            cr_expect_eq(err.sys, ECANCELED, "%s", err.msg);
            cr_expect_eq(p.calls, at, "called after it cancelled");
        }
        cr_expect_eq(dir_clear(&d), 1);
    }
    dir_free(&d);
}

Test(writer, source_changes_meanwhile)
{
    struct ct_err err;
    struct dir d = dir_new();
    const struct ct_write_keys keys = keys_of(ring, "m-256", "s-1");
    put_long(&d);
    struct progress p = {.touch_fd = openat(d.fd, "plain", O_RDWR | O_CLOEXEC)};
    const struct ct_write_options opt = {
        .version = 2, .chunk_size = CT_CHUNK_DEFAULT, .progress = on_progress, .progress_ctx = &p};
    cr_expect_eq(encrypt(&d, "plain", "out", &keys, &opt, &err), CT_STALE, "%s", err.msg);
    close(p.touch_fd);
    cr_expect_eq(dir_clear(&d), 1);
    dir_free(&d);
}

/* A source whose medium fails at some offset. */
struct failing {
    struct ct_source base;
    struct ct_source *real;
    uint64_t at;
};

static ssize_t failing_pread(struct ct_source *s, void *buf, size_t n, uint64_t offset,
                             struct ct_err *err)
{
    const struct failing *f = (const struct failing *)s;
    if (offset + n > f->at) {
        return ct_err_sys(err, EIO, "read");
    }
    return f->real->ops->pread(f->real, buf, n, offset, err);
}

static int failing_version(struct ct_source *s, struct ct_version *v, struct ct_err *err)
{
    const struct failing *f = (const struct failing *)s;
    return f->real->ops->version(f->real, v, err);
}

Test(writer, source_fails)
{
    static const struct ct_source_ops ops = {.pread = failing_pread, .version = failing_version};
    struct ct_err err = CT_ERR_INIT;
    struct ct_version v;
    struct dir d = dir_new();
    const struct ct_write_keys keys = keys_of(ring, "m-256", "s-1");
    const struct ct_write_options opt = {.version = 2, .chunk_size = 65536};
    put_long(&d);
    struct failing f = {.base.ops = &ops, .real = source_of(d.fd, "plain", &v)};
    for (f.at = 0; f.at < v.size; f.at += 3000000) {
        int r = ct_encrypt_file(&f.base, &v, &keys, &opt, d.fd, "out", NULL, NULL, &err);
        cr_expect_eq(r, -1);
        cr_expect_eq(err.code, CT_IO);
        cr_expect_eq(err.sys, EIO);
    }
    ct_source_close(f.real);
    cr_expect_eq(dir_clear(&d), 1);
    dir_free(&d);
}

Test(writer, disk_full)
{
    struct ct_err err;
    struct dir d = dir_new();
    const struct ct_write_keys keys = keys_of(ring, "m-256", "s-1");
    const struct ct_write_options opt = {.version = 1};
    put_long(&d);
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mkdirat(d.fd, "full", 0700)) {
        dir_free(&d);
        cr_skip("no right to mount");
    }
    char path[128];
    (void)snprintf(path, sizeof(path), "%s/full", d.path);
    cr_assert_eq(mount("tmpfs", path, "tmpfs", 0, "size=4m"), 0);
    struct dir full = {.fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    memcpy(full.path, path, sizeof(full.path) - 1);
    struct ct_version v;
    struct ct_source *s = source_of(d.fd, "plain", &v);
    struct progress p = {0};
    struct ct_write_options counted = opt;
    counted.progress = on_progress;
    counted.progress_ctx = &p;
    int r = ct_encrypt_file(s, &v, &keys, &counted, full.fd, "out", NULL, NULL, &err);
    cr_expect_eq(r, -1);
    cr_expect_eq(err.code, CT_IO);
    cr_expect_eq(err.sys, ENOSPC, "%s", err.msg);
    cr_expect_eq(p.calls, 0, "the full disk was found late");
    ct_source_close(s);
    cr_expect_eq(dir_clear(&full), 0);
    close(full.fd);
    umount(path);
    rmdir(path);
    dir_free(&d);
}

/* ---- side files ---- */

Test(writer, copy_file)
{
    const size_t sizes[] = {0, 1, CT_DIGEST_PIECE, CT_DIGEST_PIECE + 1, 3 * CT_DIGEST_PIECE + 5};
    struct dir d = dir_new();
    for (size_t i = 0; i < 5; i++) {
        struct ct_err err = CT_ERR_INIT;
        struct ct_version v;
        struct ct_entry e[2];
        struct ct_entry_arena *arena[2];
        uint8_t digest[CT_DIGEST];
        ct_autobuf bytes = {0};
        ct_autobuf copy = {0};
        memset(ct_buf_reserve(&bytes, sizes[i] + 1), (int)i, sizes[i] + 1);
        bytes.len = sizes[i];
        put_file(d.fd, "in", &bytes);
        struct ct_source *s = source_of(d.fd, "in", &v);
        struct progress p = {0};
        const struct ct_write_options opt = {.progress = on_progress, .progress_ctx = &p};
        int r = ct_copy_file(s, &v, &opt, d.fd, "out", 0640, &e[0], &arena[0], &err);
        cr_assert_eq(r, 0, "%s", err.msg);
        r = ct_copy_file(s, &v, NULL, -1, NULL, 0, &e[1], &arena[1], &err);
        cr_assert_eq(r, 0, "%s", err.msg);
        cr_expect_eq(p.bytes, sizes[i]);
        cr_assert_eq(ct_read_file(d.fd, "out", 1 << 23, &copy, &err), 0);
        cr_expect_eq(ct_cmp_bytes(copy.data, copy.len, bytes.data, bytes.len), 0);
        cr_assert_eq(ct_sha256(bytes.data, bytes.len, digest, NULL), 0);
        for (int k = 0; k < 2; k++) {
            cr_expect_eq(e[k].kind, CT_ENTRY_FILE);
            cr_expect_eq(e[k].size, sizes[i]);
            cr_expect_arr_eq(e[k].sha256, digest, CT_DIGEST);
            cr_expect_eq(e[k].pieces.count, sizes[i] > CT_DIGEST_PIECE ? (sizes[i] >> 20) + 1 : 0);
            cr_expect(e[k].pieces.count == 0 ||
                      ct_digests_check(&e[k].pieces, 0, bytes.data, bytes.len, &err) == 0);
            ct_entry_arena_free(arena[k]);
        }
        r = ct_copy_file(s, &v, NULL, d.fd, "out", 0640, &e[0], &arena[0], &err);
        cr_expect_eq(r, -1);
        cr_expect_eq(err.code, CT_EXISTS);
        p.cancel_at = 1;
        r = ct_copy_file(s, &v, &opt, d.fd, "out2", 0640, &e[0], &arena[0], &err);
        cr_expect_eq(r, sizes[i] ? -1 : 0);
        ct_source_close(s);
        cr_expect_eq(dir_clear(&d), sizes[i] ? 2 : 3);
        ct_entry_arena_free(r ? NULL : arena[0]);
    }
    dir_free(&d);
}

/* ---- keys and IVs ---- */

static int compare_12(const void *a, const void *b)
{
    return memcmp(a, b, 12);
}

static int compare_32(const void *a, const void *b)
{
    return memcmp(a, b, 32);
}

static void expect_distinct(uint8_t *items, size_t n, size_t len, const char *what)
{
    qsort(items, n, len, len == 12 ? compare_12 : compare_32);
    for (size_t i = 1; i < n; i++) {
        cr_assert_neq(memcmp(items + i * len, items + (i - 1) * len, len), 0, "%s twice", what);
    }
}

/* Unwraps what is in the header as a reader would. */
static void collect(const struct ct_encryption_field *f, const struct ct_write_keys *keys,
                    uint8_t *key_ivs, uint8_t *ivs, uint8_t *deks)
{
    struct ct_aead *a = ct_aead_new(keys->alg, ct_secret_peek(keys->master), NULL);
    for (size_t i = 0; i < f->count; i++) {
        const struct ct_encrypted *e = &f->entries[i];
        memcpy(key_ivs + 12 * i, e->key_iv, 12);
        memcpy(ivs + 12 * i, e->iv, 12);
        cr_assert_leq((uint64_t)ct_be32(e->iv + 8) + e->tag_count - 1, UINT32_MAX);
        cr_assert_eq(
            ct_aead_open(a, e->key_iv, e->wrapped_key, 32, e->key_tag, deks + 32 * i, NULL), 0);
    }
    ct_aead_free(a);
}

Test(writer, nothing_random_twice)
{
    enum { N = 100000 };
    static struct gen tensors[N];
    static char names[N][8];
    static uint8_t key_ivs[2 * N][12];
    static uint8_t ivs[2 * N][12];
    static uint8_t deks[2 * N][32];
    struct ct_err err;
    struct dir d = dir_new();
    ct_autobuf plain = {0};
    for (size_t i = 0; i < N; i++) {
        (void)snprintf(names[i], sizeof(names[i]), "%zu", i);
        tensors[i] = (struct gen){names[i], "U8", "[3]", 3};
    }
    gen_file(tensors, N, NULL, &plain);
    put_file(d.fd, "plain", &plain);
    const struct ct_write_keys keys = keys_of(ring, "m-256", "s-1");
    const struct ct_write_options opt = {.version = 2, .chunk_size = 1};
    for (size_t round = 0; round < 2; round++) { /* the same file, encrypted twice */
        struct ct_version v;
        struct ct_header *h = NULL;
        struct ct_keys_field k = {0};
        struct ct_encryption_field f = {0};
        cr_assert_eq(encrypt(&d, "plain", "out", &keys, &opt, &err), CT_OK, "%s", err.msg);
        struct ct_source *s = source_of(d.fd, "out", &v);
        cr_assert_eq(ct_header_read(s, &v, NULL, &h, &err), 0, "%s", err.msg);
        cr_assert_eq(ct_meta_keys(h, &k, &err), 0, "%s", err.msg);
        cr_assert_eq(ct_meta_encryption(h, &k, &f, &err), 0, "%s", err.msg);
        cr_assert_eq(f.count, N);
        collect(&f, &keys, key_ivs[round * N], ivs[round * N], deks[round * N]);
        ct_encryption_field_free(&f);
        ct_keys_field_free(&k);
        ct_header_free(h);
        ct_source_close(s);
        unlinkat(d.fd, "out", 0);
    }
    expect_distinct(key_ivs[0], sizeof(key_ivs) / 12, 12, "key_iv");
    expect_distinct(ivs[0], sizeof(ivs) / 12, 12, "base_iv");
    expect_distinct(deks[0], sizeof(deks) / 32, 32, "DEK");
    dir_free(&d);
}
