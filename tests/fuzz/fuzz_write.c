/*
 * The writer, over the same inputs as fuzz_header: their view, as a plain file with the body as it
 * stands, is encrypted, rewrapped and given new keys; each of these must show the plain file again.
 * The input's hash says how. After a bit of it changed, nothing is written from it.
 */
#include <fcntl.h>

#include "format/base/sha256.h"
#include "format/canon.h"
#include "format/model.h"
#include "format/writer.h"
#include "tests/fuzz/model_file.h"

enum { CHUNKED_MAX = 1 << 16 }; /* bodies up to here are cut into the smallest chunks, too */

static struct ct_keyring *ring;
static char path[] = "/dev/shm/kvfs-fuzz-XXXXXX";
static int dir;

static void remove_dir(void)
{
    (void)rmdir(path);
}

void fuzz_start(void)
{
    silence();
    ring = vector_keys();
    MUST(mkdtemp(path));
    dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    MUST(dir >= 0 && atexit(remove_dir) == 0);
}

/* One input: the plain file, and how to write it. */
struct job {
    struct ct_buf plain;
    struct ct_write_options opt;
    struct rng r;
    uint32_t mask;
};

static struct ct_write_keys some_keys(struct rng *r)
{
    static const char *const masters[] = {"m-128", "m-256", "m-chacha"};
    static const char *const signers[] = {"s-1", "s-2"};
    struct ct_write_keys k = {0};
    uint8_t pub[CT_ED25519_PUB];
    MUST(ct_keyring_master(ring, masters[rnd(r, 3)], &k.master, &k.alg, &k.master_kid, NULL) == 0);
    MUST(ct_keyring_signer(ring, signers[rnd(r, 2)], &k.seed, &k.sign_kid, pub, NULL) == 0);
    return k;
}

static bool choose(void *ctx, struct ct_span tensor)
{
    const struct job *job = ctx;
    return job->mask >> (tensor.n % 32) & 1;
}

static void choose_options(struct job *job, const struct ct_header *h)
{
    static const uint64_t chunks[] = {4096, 65537, 2097151, 2097152, 2097153, UINT64_C(1) << 32,
                                      1,    7,     16,      100};
    uint32_t many = h->body_len <= CHUNKED_MAX ? 10 : 6;
    job->opt.version = (int)rnd(&job->r, 2) + 1;
    job->opt.chunk_size = chunks[rnd(&job->r, many)];
    job->opt.threads = 1 + rnd(&job->r, 2);
    job->mask = rnd(&job->r, 3) ? UINT32_MAX : rnd(&job->r, UINT32_MAX);
    bool some = false;
    for (size_t i = 0; i < h->tensor_count; i++) {
        some |= choose(job, h->tensors[i].name);
    }
    job->mask = some ? job->mask : UINT32_MAX; /* a file without any is refused */
    job->opt.choose = choose;
    job->opt.choose_ctx = job;
    job->opt.policy_local = rnd(&job->r, 2) ? "package model\nallow = false\n" : NULL;
}

/* ---- looking at what was written ---- */

static struct ct_source *source_of(const char *name, struct ct_version *v)
{
    struct ct_source *s = ct_source_fd(openat(dir, name, O_RDONLY | O_CLOEXEC), NULL);
    MUST(s && s->ops->version(s, v, NULL) == 0);
    return s;
}

static void check_shows(const struct job *job, const char *name)
{
    struct ct_open how = {.keys = ct_keyring_source(ring), .path = name};
    struct ct_model *m = NULL;
    size_t head = 0;
    static uint8_t buf[CT_EXTENT_MAX];
    how.source = source_of(name, &how.version);
    MUST(ct_model_open(&how, &m, NULL) == 0);
    const uint8_t *shown = ct_model_header(m, &head);
    MUST(ct_model_view_size(m) == job->plain.len && memcmp(shown, job->plain.data, head) == 0);
    for (uint32_t i = 0; i < ct_model_extent_count(m); i++) {
        struct ct_extent e;
        struct ct_damages d = {0};
        ct_model_extent(m, i, &e);
        MUST(ct_model_read(m, i, buf, &d, NULL) == 0 && d.count == 0);
        MUST(memcmp(buf, job->plain.data + head + e.begin, e.len) == 0);
    }
    ct_model_unref(m);
}

static void check_entry(const char *name, const struct ct_entry *said)
{
    struct ct_version v;
    struct ct_entry entry;
    struct ct_entry_arena *arena = NULL;
    struct ct_source *s = source_of(name, &v);
    MUST(ct_shard_entry(s, &v, ct_keyring_source(ring), &entry, &arena, NULL) == 0);
    MUST(entry.kind == said->kind && entry.size == said->size);
    MUST(memcmp(entry.sha256, said->sha256, CT_DIGEST) == 0);
    MUST(entry.plain_count == said->plain_count);
    for (size_t i = 0; i < entry.plain_count; i++) {
        const struct ct_digests *a = &entry.plain[i];
        const struct ct_digests *b = &said->plain[i];
        MUST(a->begin == b->begin && a->end == b->end && a->count == b->count);
        MUST(memcmp(a->sha256, b->sha256, a->count * CT_DIGEST) == 0);
    }
    ct_entry_arena_free(arena);
    ct_source_close(s);
}

/* ---- writing ---- */

static void encrypt(struct job *job)
{
    struct model_file f;
    struct ct_entry entry;
    struct ct_entry_arena *arena = NULL;
    const struct ct_write_keys keys = some_keys(&job->r);
    model_file_init(&f, job->plain.data, job->plain.len);
    struct ct_version v = model_file_version(&f);
    MUST(ct_encrypt_file(&f.source, &v, &keys, &job->opt, dir, "a", &entry, &arena, NULL) == 0);
    check_entry("a", &entry);
    check_shows(job, "a");
    ct_entry_arena_free(arena);
}

/* The source breaks at its end. */
static void encrypt_broken(struct job *job)
{
    struct model_file f;
    struct ct_err err = CT_ERR_INIT;
    const struct ct_write_keys keys = some_keys(&job->r);
    model_file_init(&f, job->plain.data, job->plain.len);
    struct ct_version v = model_file_version(&f);
    f.fail_at = job->plain.len - 1;
    MUST(ct_encrypt_file(&f.source, &v, &keys, &job->opt, dir, "x", NULL, NULL, &err) == -1);
    MUST(err.code == CT_IO && unlinkat(dir, "x", 0) == -1);
}

static void rewrap(struct job *job)
{
    struct ct_version v;
    struct ct_err err = CT_ERR_INIT;
    const struct ct_write_keys keys = some_keys(&job->r);
    struct ct_source *s = source_of("a", &v);
    int r = ct_rewrap_file(s, &v, ct_keyring_source(ring), &keys, &job->opt, dir, "b", &err);
    ct_source_close(s);
    if (r) {
        MUST(err.code == CT_USAGE && faccessat(dir, "b", F_OK, 0) == -1); /* another algorithm */
        return;
    }
    check_shows(job, "b");
    MUST(unlinkat(dir, "b", 0) == 0);
}

static void rekey(struct job *job)
{
    struct ct_version v;
    struct ct_entry entry;
    struct ct_entry_arena *arena = NULL;
    const struct ct_write_keys keys = some_keys(&job->r);
    struct ct_source *s = source_of("a", &v);
    struct ct_write_options opt = job->opt;
    opt.version = 1 + (int)rnd(&job->r, 2);
    opt.chunk_size = 65537;
    opt.choose = NULL;
    MUST(ct_rekey_file(s, &v, ct_keyring_source(ring), &keys, &opt, dir, "c", &entry, &arena,
                       NULL) == 0);
    check_entry("c", &entry);
    check_shows(job, "c");
    ct_entry_arena_free(arena);
    ct_source_close(s);
    MUST(unlinkat(dir, "c", 0) == 0);
}

/* A bit of the file changes: either nobody can tell, or nothing comes of it. */
static void rekey_damaged(struct job *job, uint64_t body_len)
{
    struct ct_version v;
    struct ct_err err = CT_ERR_INIT;
    uint8_t c = 0;
    const struct ct_write_keys keys = some_keys(&job->r);
    ct_autofd fd = openat(dir, "a", O_RDWR | O_CLOEXEC);
    struct ct_source *s = source_of("a", &v);
    off_t at = (off_t)(v.size - 1 - rnd(&job->r, (uint32_t)body_len));
    MUST(pread(fd, &c, 1, at) == 1);
    c ^= 1;
    MUST(pwrite(fd, &c, 1, at) == 1 && s->ops->version(s, &v, NULL) == 0);
    job->opt.choose = NULL;
    int r =
        ct_rekey_file(s, &v, ct_keyring_source(ring), &keys, &job->opt, dir, "d", NULL, NULL, &err);
    MUST(r == 0 ? job->mask != UINT32_MAX : err.code == CT_TAG);
    MUST((unlinkat(dir, "d", 0) == 0) == (r == 0));
    ct_source_close(s);
}

static void write_all(struct job *job, const struct ct_header *h)
{
    choose_options(job, h);
    encrypt_broken(job);
    encrypt(job);
    rewrap(job);
    rekey(job);
    if (h->body_len) {
        rekey_damaged(job, h->body_len);
    }
    MUST(unlinkat(dir, "a", 0) == 0);
    MUST(rmdir(path) == 0 && mkdir(path, 0700) == 0); /* nothing else is left */
    close(dir);
    dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    MUST(dir >= 0);
}

/* As a side file. */
static void copy(struct model_file *f)
{
    struct ct_version v = model_file_version(f);
    struct ct_version now;
    struct ct_entry entry;
    struct ct_entry_arena *arena = NULL;
    uint8_t digest[CT_DIGEST];
    ct_autobuf text = {0};
    MUST(ct_copy_file(&f->source, &v, NULL, dir, "s", 0600, &entry, &arena, NULL) == 0);
    struct ct_source *s = source_of("s", &now);
    MUST(now.size == f->size && entry.size == f->size && entry.kind == CT_ENTRY_FILE);
    uint8_t *p = ct_buf_reserve(&text, now.size);
    MUST(p && ct_source_read(s, p, now.size, 0, &now, NULL) == 0);
    MUST(ct_sha256(p, now.size, digest, NULL) == 0 && memcmp(digest, entry.sha256, CT_DIGEST) == 0);
    for (size_t at = 0; at < now.size && entry.pieces.count; at += CT_DIGEST_PIECE) {
        size_t n = now.size - at < CT_DIGEST_PIECE ? now.size - at : CT_DIGEST_PIECE;
        MUST(ct_digests_check(&entry.pieces, at, p + at, n, NULL) == 0);
        p[at] ^= 1;
        MUST(ct_digests_check(&entry.pieces, at, p + at, n, NULL) == -1);
    }
    ct_source_close(s);
    ct_entry_arena_free(arena);
    MUST(unlinkat(dir, "s", 0) == 0);
}

/* The input itself, which may be encrypted, and may be signed by a key that we have. */
static void write_raw(struct model_file *f, struct job *job)
{
    struct ct_version v = model_file_version(f);
    struct ct_write_options opt = job->opt;
    const struct ct_write_keys keys = some_keys(&job->r);
    opt.choose = NULL;
    int r = ct_encrypt_file(&f->source, &v, &keys, &opt, dir, "e", NULL, NULL, NULL);
    MUST((unlinkat(dir, "e", 0) == 0) == (r == 0));
    r = ct_rekey_file(&f->source, &v, ct_keyring_source(ring), &keys, &opt, dir, "e", NULL, NULL,
                      NULL);
    MUST((unlinkat(dir, "e", 0) == 0) == (r == 0));
    r = ct_rewrap_file(&f->source, &v, ct_keyring_source(ring), &keys, &opt, dir, "e", NULL);
    MUST((unlinkat(dir, "e", 0) == 0) == (r == 0));
}

static unsigned hash(const uint8_t *p, size_t n)
{
    unsigned h = 2166136261;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ p[i]) * 16777619;
    }
    return h;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_file f;
    struct job job = {.r = rng_of(hash(data, size))};
    struct ct_header *h = NULL;
    model_file_init(&f, data, size);
    struct ct_version v = model_file_version(&f);
    if (ct_header_read(&f.source, &v, NULL, &h, NULL) == 0 && h->body_len <= BODY_MAX) {
        MUST(ct_view_header(h, &job.plain, NULL) == 0);
        uint8_t *body = ct_buf_reserve(&job.plain, h->body_len);
        MUST(body);
        model_file_read(&f, CT_PREFIX + h->json_len, body, h->body_len);
        job.plain.len += h->body_len;
        write_all(&job, h);
        copy(&f);
        write_raw(&f, &job);
    }
    ct_buf_free(&job.plain);
    ct_header_free(h);
    return 0;
}
