#include <jansson.h>

#include "writer_fixture.h"

/* New keys for each algorithm; the signing key is s-2 of the vectors. */
static const char new_keys[] =
    "{\"keys\":[{\"kty\":\"oct\",\"alg\":\"aes256gcm\",\"kid\":\"n-256\","
    "\"k\":\"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"},"
    "{\"kty\":\"oct\",\"alg\":\"aes128gcm\",\"kid\":\"n-128\",\"k\":\"AgICAgICAgICAgICAgICAg==\"},"
    "{\"kty\":\"oct\",\"alg\":\"chacha20poly1305\",\"kid\":\"n-chacha\","
    "\"k\":\"AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\"},"
    "{\"kty\":\"okp\",\"alg\":\"ed25519\",\"kid\":\"s-2\","
    "\"x\":\"FglCM0SRM4YgleuqFVaSQmibQQ7DoO12VbiWbhoffAM=\","
    "\"d\":\"LeUEckM9LkT+2La4NX5EzTEpkDrB1FWXokL98R+PKxo=\"}]}";

static struct ct_keyring *owner, *fresh;
static json_t *vectors;
static int vector_dir;

static void setup(void)
{
    struct ct_err err = CT_ERR_INIT;
    cr_assert_eq(ct_secret_init(NULL), 0);
    owner = ring_of(KEYS "owner.jwks");
    fresh = ct_keyring_new(&err);
    cr_assert_eq(
        ct_keyring_add(fresh, (const uint8_t *)new_keys, sizeof(new_keys) - 1, "new", &err), 0,
        "%s", err.msg);
    vectors = json_load_file(TEST_VECTORS "/manifest.json", 0, NULL);
    cr_assert(vectors);
    vector_dir = open(TEST_VECTORS, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static void teardown(void)
{
    close(vector_dir);
    json_decref(vectors);
    ct_keyring_free(owner);
    ct_keyring_free(fresh);
}

TestSuite(rewrap, .init = setup, .fini = teardown, .timeout = 100);

/* The next vector that is a model, from *i on. */
static const json_t *next_good(size_t *i)
{
    const json_t *good = json_object_get(vectors, "good");
    while (*i < json_array_size(good)) {
        const json_t *e = json_array_get(good, (*i)++);
        if (json_object_get(e, "tensors")) {
            return e;
        }
    }
    return NULL;
}

static const char *text(const json_t *e, const char *name)
{
    return json_string_value(json_object_get(e, name));
}

static enum ct_alg alg_of(int dirfd, const char *name)
{
    struct ct_version v;
    struct ct_header *h = NULL;
    struct ct_keys_field k = {0};
    struct ct_source *s = source_of(dirfd, name, &v);
    cr_assert_eq(ct_header_read(s, &v, NULL, &h, NULL), 0);
    cr_assert_eq(ct_meta_keys(h, &k, NULL), 0);
    enum ct_alg alg = k.enc.alg;
    ct_keys_field_free(&k);
    ct_header_free(h);
    ct_source_close(s);
    return alg;
}

static struct ct_write_keys new_keys_for(enum ct_alg alg)
{
    return keys_of(fresh,
                   alg == CT_ALG_AES256GCM   ? "n-256"
                   : alg == CT_ALG_AES128GCM ? "n-128"
                                             : "n-chacha",
                   "s-2");
}

static void expect_view(int dirfd, const char *name, struct ct_keyring *ring, const char *sha256)
{
    struct ct_err err;
    uint8_t digest[CT_DIGEST];
    char hex[2 * CT_DIGEST + 1];
    ct_autobuf view = {0};
    cr_assert_eq(view_of(dirfd, name, ct_keyring_source(ring), &view, &err), CT_OK, "%s: %s", name,
                 err.msg);
    cr_assert_eq(ct_sha256(view.data, view.len, digest, NULL), 0);
    ct_hex(hex, digest, sizeof(digest));
    cr_expect_str_eq(hex, sha256, "%s", name);
}

struct entry {
    struct ct_entry e;
    struct ct_entry_arena *arena;
};

static struct entry entry_of(int dirfd, const char *name, struct ct_keyring *ring)
{
    struct ct_err err = CT_ERR_INIT;
    struct entry out = {0};
    struct ct_version v;
    struct ct_source *s = source_of(dirfd, name, &v);
    int r = ct_shard_entry(s, &v, ct_keyring_source(ring), &out.e, &out.arena, &err);
    cr_assert_eq(r, 0, "%s: %s", name, err.msg);
    ct_source_close(s);
    return out;
}

static void expect_same_plain(const struct ct_entry *a, const struct ct_entry *b)
{
    cr_expect_eq(a->size, b->size);
    cr_assert_eq(a->plain_count, b->plain_count);
    for (size_t i = 0; i < a->plain_count; i++) {
        cr_expect_eq(a->plain[i].begin, b->plain[i].begin);
        cr_expect_eq(a->plain[i].end, b->plain[i].end);
        cr_expect_arr_eq(a->plain[i].sha256, b->plain[i].sha256, a->plain[i].count * CT_DIGEST);
    }
}

static enum ct_code rewrap(int dirfd, const char *in, const struct dir *d, struct ct_keyring *old,
                           const struct ct_write_keys *keys, struct ct_err *err)
{
    struct ct_version v;
    const struct ct_write_options opt = {0};
    struct ct_source *s = source_of(dirfd, in, &v);
    *err = (struct ct_err)CT_ERR_INIT;
    int r = ct_rewrap_file(s, &v, ct_keyring_source(old), keys, &opt, d->fd, "out", err);
    cr_assert_eq(r == 0, err->code == CT_OK);
    ct_source_close(s);
    return err->code;
}

Test(rewrap, every_vector)
{
    struct ct_err err;
    struct dir d = dir_new();
    const json_t *e = NULL;
    for (size_t i = 0; (e = next_good(&i));) {
        const char *file = text(e, "file");
        const struct ct_write_keys keys = new_keys_for(alg_of(vector_dir, file));
        cr_assert_eq(rewrap(vector_dir, file, &d, owner, &keys, &err), CT_OK, "%s: %s", file,
                     err.msg);
        expect_view(d.fd, "out", fresh, text(e, "sha256"));
        struct entry before = entry_of(vector_dir, file, owner);
        struct entry after = entry_of(d.fd, "out", fresh);
        cr_expect_arr_eq(before.e.sha256, after.e.sha256, CT_DIGEST, "%s", file);
        expect_same_plain(&before.e, &after.e);
        ct_entry_arena_free(before.arena);
        ct_entry_arena_free(after.arena);
        ct_autobuf view = {0};
        cr_expect_eq(view_of(d.fd, "out", ct_keyring_source(owner), &view, &err), CT_NOKEY);
        dir_clear(&d);
    }
    dir_free(&d);
}

/* A personalised header in front of the body that is there. */
/* What a key server compares, without a body: only signature and keys differ. */
static void expect_facts(const struct ct_buf *all, size_t n, const struct ct_buf *header,
                         const char *file)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_header_facts before;
    struct ct_header_facts after;
    cr_expect_eq(ct_header_facts(all->data, n, ct_keyring_source(owner), &before, &err), 0,
                 "%s: %s", file, err.msg);
    cr_expect_eq(ct_header_facts(header->data, header->len, ct_keyring_source(fresh), &after, &err),
                 0, "%s: %s", file, err.msg);
    cr_expect_eq(before.body_len, all->len - n);
    cr_expect_eq(after.body_len, all->len - n);
    cr_expect_arr_eq(before.immutable, after.immutable, CT_DIGEST);
    cr_expect_arr_neq(before.sha256, after.sha256, CT_DIGEST);
    cr_expect_str_eq(before.policy.remote, after.policy.remote);
    ct_header_facts_free(&before);
    ct_header_facts_free(&after);
    cr_expect_eq(
        ct_header_facts(header->data, header->len - 1, ct_keyring_source(fresh), &after, &err), -1);
    cr_expect_eq(err.code, CT_MALFORMED);
    ct_header_facts_free(&after);
}

Test(rewrap, header_only)
{
    struct dir d = dir_new();
    const json_t *e = NULL;
    for (size_t i = 0; (e = next_good(&i));) {
        struct ct_err err = CT_ERR_INIT;
        const char *file = text(e, "file");
        ct_autobuf all = {0};
        ct_autobuf header = {0};
        const struct ct_write_keys keys = new_keys_for(alg_of(vector_dir, file));
        cr_assert_eq(ct_read_file(vector_dir, file, 1 << 26, &all, &err), 0);
        size_t n = 8 + ct_le64(all.data);
        int r = ct_rewrap_header(all.data, n, all.len - n, ct_keyring_source(owner), &keys, &header,
                                 &err);
        cr_assert_eq(r, 0, "%s: %s", file, err.msg);
        cr_expect_eq(header.len % 8, 0);
        expect_facts(&all, n, &header, file);
        ct_buf_put(&header, all.data + n, all.len - n);
        put_file(d.fd, "out", &header);
        expect_view(d.fd, "out", fresh, text(e, "sha256"));
        for (size_t cut = 0; cut < 2; cut++) {
            ct_autobuf none = {0};
            r = ct_rewrap_header(all.data, cut ? n - 1 : 7, all.len - n, ct_keyring_source(owner),
                                 &keys, &none, &err);
            cr_expect_eq(r, -1);
            cr_expect_eq(err.code, CT_MALFORMED);
            cr_expect_eq(none.len, 0);
        }
    }
    dir_free(&d);
}

static enum ct_code rekey(int dirfd, const char *in, const struct dir *d, struct ct_keyring *old,
                          const struct ct_write_keys *keys, const struct ct_write_options *opt,
                          struct entry *entry, struct ct_err *err)
{
    struct ct_version v;
    struct ct_source *s = source_of(dirfd, in, &v);
    *err = (struct ct_err)CT_ERR_INIT;
    int r = ct_rekey_file(s, &v, ct_keyring_source(old), keys, opt, d->fd, "out",
                          entry ? &entry->e : NULL, entry ? &entry->arena : NULL, err);
    cr_assert_eq(r == 0, err->code == CT_OK);
    ct_source_close(s);
    return err->code;
}

static bool has_policy(int dirfd, const char *name, struct ct_buf *out)
{
    struct ct_version v;
    struct ct_header *h = NULL;
    struct ct_policy_field p = {0};
    struct ct_source *s = source_of(dirfd, name, &v);
    cr_assert_eq(ct_header_read(s, &v, NULL, &h, NULL), 0);
    bool has = ct_meta_policy(h, &p, NULL) == 0;
    if (has) {
        ct_buf_put(out, p.local, p.local_len + 1);
        ct_buf_put(out, p.remote, p.remote_len + 1);
    }
    ct_policy_field_free(&p);
    ct_header_free(h);
    ct_source_close(s);
    return has;
}

Test(rewrap, rekey_every_vector)
{
    const struct ct_write_options options[] = {{.version = 1},
                                               {.version = 2, .chunk_size = 999, .threads = 3},
                                               {.version = 2, .chunk_size = CT_CHUNK_DEFAULT}};
    struct ct_err err;
    struct dir d = dir_new();
    const json_t *e = NULL;
    for (size_t i = 0; (e = next_good(&i));) {
        const char *file = text(e, "file");
        const struct ct_write_keys keys = keys_of(fresh, i % 2 ? "n-256" : "n-chacha", "s-2");
        struct entry said = {0};
        enum ct_code code = rekey(vector_dir, file, &d, owner, &keys, &options[i % 3], &said, &err);
        cr_assert_eq(code, CT_OK, "%s: %s", file, err.msg);
        expect_view(d.fd, "out", fresh, text(e, "sha256"));
        struct entry before = entry_of(vector_dir, file, owner);
        struct entry after = entry_of(d.fd, "out", fresh);
        cr_expect_arr_eq(said.e.sha256, after.e.sha256, CT_DIGEST, "%s", file);
        cr_expect_arr_neq(before.e.sha256, after.e.sha256, CT_DIGEST, "%s", file);
        expect_same_plain(&before.e, &after.e); /* what was encrypted still is */
        expect_same_plain(&said.e, &after.e);
        ct_autobuf policy = {0};
        ct_autobuf new_policy = {0};
        cr_expect(has_policy(vector_dir, file, &policy) && has_policy(d.fd, "out", &new_policy));
        cr_expect_eq(ct_cmp_bytes(policy.data, policy.len, new_policy.data, new_policy.len), 0);
        ct_entry_arena_free(said.arena);
        ct_entry_arena_free(before.arena);
        ct_entry_arena_free(after.arena);
        dir_clear(&d);
    }
    dir_free(&d);
}

/* No file that must be refused is laundered into a good one; where only the policy refuses, keys
 * may change. Damage in the body is found by rekey, which reads it. */
Test(rewrap, nothing_bad_passes)
{
    struct dir d = dir_new();
    size_t i = 0;
    const json_t *e = NULL;
    json_array_foreach(json_object_get(vectors, "must_fail"), i, e)
    {
        char path[256];
        struct ct_err err;
        const char *file = text(e, "file");
        (void)snprintf(path, sizeof(path), KEYS "%s", text(e, "keys"));
        struct ct_keyring *ring = ring_of(path);
        const struct ct_write_keys keys = keys_of(fresh, "n-256", "s-2");
        const struct ct_write_options opt = {.version = 2, .chunk_size = 4096};
        bool at_read = strcmp(text(e, "when"), "read") == 0;
        bool by_policy = strcmp(text(e, "errno"), "EACCES") == 0;
        enum ct_code code = rekey(vector_dir, file, &d, ring, &keys, &opt, NULL, &err);
        cr_expect_eq(code == CT_OK, by_policy, "rekey %s: %s", file, err.msg);
        if (at_read) {
            cr_expect(code == CT_TAG || code == CT_REJECTED, "rekey %s: %s", file, err.msg);
        }
        cr_expect_eq(dir_clear(&d), by_policy, "rekey %s", file);
        if (!at_read) {
            code = rewrap(vector_dir, file, &d, ring, &keys, &err);
            cr_expect_eq(code == CT_OK, by_policy, "rewrap %s: %s", file, err.msg);
            cr_expect_eq(dir_clear(&d), by_policy, "rewrap %s", file);
        }
        ct_keyring_free(ring);
    }
    dir_free(&d);
}

Test(rewrap, refusals)
{
    struct ct_err err;
    struct dir d = dir_new();
    struct ct_keyring *wrong = ring_of(KEYS "wrong-master.jwks");
    const char *file = "good/v2-a256.cryptotensors";
    const struct ct_write_keys keys = keys_of(fresh, "n-256", "s-2");
    const struct ct_write_keys other_alg = keys_of(fresh, "n-128", "s-2");
    cr_expect_eq(rewrap(vector_dir, file, &d, owner, &other_alg, &err), CT_USAGE, "%s", err.msg);
    cr_expect_eq(rewrap(vector_dir, file, &d, fresh, &keys, &err), CT_NOKEY, "%s", err.msg);
    cr_expect_eq(rewrap(vector_dir, file, &d, wrong, &keys, &err), CT_REJECTED, "%s", err.msg);
    cr_expect_eq(dir_clear(&d), 0);
    ct_keyring_free(wrong);
    dir_free(&d);
}

static int cancel(void *ctx, uint64_t bytes)
{
    (void)bytes;
    return --*(int *)ctx < 0;
}

Test(rewrap, cancel)
{
    struct dir d = dir_new();
    const char *file = "good/v1-2MiB.cryptotensors";
    const struct ct_write_keys keys = keys_of(fresh, "n-256", "s-2");
    for (int n = 0; n < 2; n++) {
        struct ct_err err;
        struct ct_version v;
        int left = 0;
        const struct ct_write_options opt = {
            .version = 2, .chunk_size = 65536, .progress = cancel, .progress_ctx = &left};
        struct ct_source *s = source_of(vector_dir, file, &v);
        struct ct_keysource *old = ct_keyring_source(owner);
        int r = n ? ct_rewrap_file(s, &v, old, &keys, &opt, d.fd, "out", &err)
                  : ct_rekey_file(s, &v, old, &keys, &opt, d.fd, "out", NULL, NULL, &err);
        cr_expect_eq(r, -1);
        cr_expect_eq(err.sys, ECANCELED, "%s", err.msg);
        cr_expect_eq(dir_clear(&d), 0);
        ct_source_close(s);
    }
    dir_free(&d);
}
