#include "format/manifest.h"

#include <string.h>

#include "format/jws.h"
#include "format/manifest_parts.h"

_Static_assert((int)CT_DIGEST == (int)CT_SHA256_LEN, "a digest is SHA-256");

static int verify(const struct ct_jws *jws, struct ct_keysource *keys, struct ct_err *err)
{
    uint8_t pub[CT_ED25519_PUB];
    const struct ct_keyref ref = {.alg = CT_ALG_NONE, .kid = {jws->kid, jws->kid_len}};
    if (keys->verify(keys, &ref, pub, err)) {
        return -1;
    }
    return ct_jws_verify(jws, pub, err);
}

static int read_into(struct ct_manifest *m, const uint8_t *text, size_t n,
                     struct ct_keysource *keys, struct ct_err *err)
{
    struct ct_jws jws;
    uint8_t digest[CT_DIGEST];
    ct_autobuf payload = {0};
    if (n > CT_MANIFEST_MAX) {
        return ct_err_set(err, CT_MALFORMED, "larger than %d bytes", CT_MANIFEST_MAX);
    }
    if (ct_jws_parse(text, n, CT_MANIFEST_TYP, &jws, err) || verify(&jws, keys, err) ||
        ct_jws_payload(&jws, &payload, err) ||
        ct_manifest_read_payload(m, payload.data, payload.len, err) ||
        ct_sha256(text, n, digest, err)) {
        return -1;
    }
    ct_hex(m->digest, digest, sizeof(digest));
    return 0;
}

int ct_manifest_parse(const uint8_t *jws, size_t n, struct ct_keysource *keys,
                      struct ct_manifest **out, struct ct_err *err)
{
    struct ct_manifest *m = calloc(1, sizeof(*m));
    *out = NULL;
    if (!m) {
        return ct_err_set(err, CT_NOMEM, "no memory for a manifest");
    }
    atomic_init(&m->refs, 1);
    if (read_into(m, jws, n, keys, err)) {
        ct_manifest_unref(m);
        return ct_err_wrap(err, CT_MANIFEST_NAME);
    }
    *out = m;
    return 0;
}

struct ct_manifest *ct_manifest_ref(struct ct_manifest *m)
{
    atomic_fetch_add_explicit(&m->refs, 1, memory_order_relaxed);
    return m;
}

void ct_manifest_unref(struct ct_manifest *m)
{
    if (m && atomic_fetch_sub_explicit(&m->refs, 1, memory_order_acq_rel) == 1) {
        ct_arena_free(&m->arena);
        free(m->entries);
        free(m);
    }
}

uint64_t ct_manifest_generation(const struct ct_manifest *m)
{
    return m->generation;
}

size_t ct_manifest_count(const struct ct_manifest *m)
{
    return m->count;
}

const struct ct_entry *ct_manifest_at(const struct ct_manifest *m, size_t i)
{
    return i < m->count ? &m->entries[i] : NULL;
}

const char *ct_manifest_digest(const struct ct_manifest *m)
{
    return m->digest;
}

/* The first entry whose path is not less than the n bytes of `path` followed by `last`. */
static size_t lower_bound(const struct ct_manifest *m, const char *path, const char *last)
{
    size_t n = strlen(path);
    size_t lo = 0;
    size_t hi = m->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const char *at = m->entries[mid].path;
        int c = strncmp(at, path, n);
        if (c == 0) {
            c = strcmp(at + n, last);
        }
        lo = c < 0 ? mid + 1 : lo;
        hi = c < 0 ? hi : mid;
    }
    return lo;
}

const struct ct_entry *ct_manifest_find(const struct ct_manifest *m, const char *path)
{
    size_t i = lower_bound(m, path, "");
    return i < m->count && strcmp(m->entries[i].path, path) == 0 ? &m->entries[i] : NULL;
}

bool ct_manifest_has_dir(const struct ct_manifest *m, const char *path)
{
    size_t n = strlen(path);
    if (n == 0) {
        return m->count > 0;
    }
    size_t i = lower_bound(m, path, "/");
    return i < m->count && strncmp(m->entries[i].path, path, n) == 0 &&
           m->entries[i].path[n] == '/';
}

int ct_digests_check(const struct ct_digests *d, uint64_t offset, const uint8_t *bytes, size_t n,
                     struct ct_err *err)
{
    uint64_t end = 0;
    if (offset < d->begin || !ct_add_u64(offset, n, &end) || end > d->end || d->piece == 0 ||
        (offset - d->begin) % d->piece || (n % d->piece && end != d->end) ||
        d->count != (d->end - d->begin) / d->piece + ((d->end - d->begin) % d->piece != 0)) {
        return ct_err_set(err, CT_USAGE, "bytes to compare are not whole pieces");
    }
    for (uint64_t i = (offset - d->begin) / d->piece; n > 0; i++) {
        uint8_t digest[CT_DIGEST];
        size_t len = n < d->piece ? n : d->piece;
        if (ct_sha256(bytes, len, digest, err)) {
            return -1;
        }
        if (memcmp(digest, d->sha256[i], sizeof(digest)) != 0) {
            return ct_err_set(err, CT_TAG, "piece %llu: SHA-256 is not what the manifest says",
                              (unsigned long long)i);
        }
        bytes += len;
        n -= len;
    }
    return 0;
}
