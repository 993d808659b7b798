#include <stdio.h>
#include <string.h>

#include "format/base/log.h"
#include "format/base/sha256.h"
#include "format/canon.h"
#include "format/model_parts.h"
#include "format/policy/policy.h"

/* What is needed only until the model is verified. */
struct opening {
    const struct ct_open *how;
    struct ct_model *m;
    struct ct_buf raw; /* bytes 0..8+N-1 as used */
    struct ct_header *header;
    struct ct_encryption_field enc;
    const struct ct_entry *entry; /* the manifest's, or NULL */
};

static void opening_free(struct opening *o)
{
    ct_buf_free(&o->raw);
    ct_encryption_field_free(&o->enc);
    ct_header_free(o->header);
}

/* ---- the header: the file's own, or the one that was released for it ---- */

static int use_header(struct opening *o, struct ct_err *err)
{
    const struct ct_open *how = o->how;
    struct ct_model *m = o->m;
    uint8_t prefix[CT_PREFIX];
    if (m->version.size < CT_PREFIX || how->header_len < CT_PREFIX) {
        return ct_err_set(err, CT_MALFORMED, "no header");
    }
    if (ct_source_read(m->source, prefix, sizeof(prefix), 0, &m->version, err)) {
        return -1;
    }
    /* The body begins where the file says. */
    uint64_t n = ct_le64(prefix);
    if (n > CT_HEADER_MAX || n > m->version.size - CT_PREFIX ||
        ct_le64(how->header) != how->header_len - CT_PREFIX) {
        return ct_err_set(err, CT_MALFORMED, "a header longer than its file");
    }
    m->body_at = CT_PREFIX + n;
    ct_buf_put(&o->raw, how->header, how->header_len);
    return ct_buf_ok(&o->raw, err) ||
                   ct_header_parse(how->header + CT_PREFIX, how->header_len - CT_PREFIX,
                                   m->version.size - m->body_at, &o->header, err)
               ? -1
               : 0;
}

static int read_header(struct opening *o, struct ct_err *err)
{
    struct ct_model *m = o->m;
    int r = o->how->header ? use_header(o, err)
                           : ct_header_read(m->source, &m->version, &o->raw, &o->header, err);
    if (r || !o->header) {
        return -1;
    }
    if (!o->how->header) {
        m->body_at = CT_PREFIX + o->header->json_len;
    }
    m->body_len = o->header->body_len;
    m->tensor_count = o->header->tensor_count;
    if (!ct_meta_is_encrypted(o->header)) {
        return ct_err_set(err, CT_REJECTED, "not encrypted: nothing vouches for its content");
    }
    return 0;
}

static int check_signature(struct opening *o, struct ct_err *err)
{
    struct ct_keysource *keys = o->how->keys;
    uint8_t pub[CT_ED25519_PUB];
    uint8_t sig[CT_SIG_LEN];
    ct_autobuf text = {0};
    return keys->verify(keys, &o->m->keys.sign, pub, err) ||
                   ct_meta_signature(o->header, sig, err) ||
                   ct_canon_signed(o->header, &text, err) ||
                   ct_ed25519_verify(pub, text.data, text.len, sig, err)
               ? -1
               : 0;
}

/* ---- what vouches for the file beyond its own signature ---- */

static int check_manifest(struct opening *o, struct ct_err *err)
{
    const struct ct_manifest *manifest = o->how->manifest;
    uint8_t digest[CT_DIGEST];
    ct_autobuf text = {0};
    if (!manifest) {
        return 0;
    }
    const struct ct_entry *e = ct_manifest_find(manifest, o->how->path);
    if (!e || e->kind != CT_ENTRY_SHARD) {
        return ct_err_set(err, CT_REJECTED, "the manifest lists no model of this name");
    }
    if (ct_canon_immutable(o->header, &o->m->keys, &o->enc, &text, err) ||
        ct_sha256(text.data, text.len, digest, err)) {
        return -1;
    }
    if (memcmp(digest, e->sha256, sizeof(digest)) != 0 || e->size != o->m->body_len) {
        return ct_err_set(err, CT_REJECTED,
                          "this is not the file that the manifest lists under this name");
    }
    o->m->manifest = ct_manifest_ref((struct ct_manifest *)manifest);
    o->entry = e;
    return 0;
}

static const struct ct_digests *digests_of(const struct ct_entry *e, const struct ct_tensor *t)
{
    size_t lo = 0;
    size_t hi = e ? e->plain_count : 0;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (e->plain[mid].begin == t->begin) {
            return e->plain[mid].end == t->end ? &e->plain[mid] : NULL;
        }
        if (e->plain[mid].begin < t->begin) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return NULL;
}

static int check_plain(struct opening *o, const struct ct_tensor *t, struct tensor *out,
                       struct ct_err *err)
{
    out->digests = digests_of(o->entry, t);
    if (t->begin == t->end || out->digests) {
        return 0;
    }
    if (o->how->manifest || o->how->refuse_unencrypted) {
        return ct_err_set(
            err, CT_REJECTED, "tensor %.*s is not encrypted, %s", ct_span_shown(t->name), t->name.p,
            o->how->manifest ? "and the manifest does not have it" : "which plain=none refuses");
    }
    o->m->info.unauthenticated_bytes += t->end - t->begin;
    return 0;
}

/* ---- the model's own table, so that the header need not be kept ---- */

static int copy_tensor(struct opening *o, size_t i, struct ct_err *err)
{
    struct ct_arena *arena = &o->m->arena;
    const struct ct_tensor *t = &o->header->tensors[i];
    const struct ct_encrypted *e = &o->enc.entries[i];
    struct tensor *to = &o->m->tensors[i];
    *to = (struct tensor){.begin = t->begin, .end = t->end, .encrypted = e->encrypted};
    to->name = ct_arena_copy(arena, t->name.p, t->name.n, err);
    to->name_len = (uint32_t)t->name.n;
    if (!to->name) {
        return -1;
    }
    if (!e->encrypted) {
        return check_plain(o, t, to, err);
    }
    uint8_t *tags = ct_arena_alloc(arena, e->tag_count, CT_TAG_LEN, err);
    if (!tags) {
        return -1;
    }
    if (e->tag_count) {
        memcpy(tags, e->tags, (size_t)e->tag_count * CT_TAG_LEN);
        memcpy(to->iv, e->iv, sizeof(to->iv));
    }
    to->tags = tags;
    return 0;
}

static int copy_tensors(struct opening *o, struct ct_err *err)
{
    struct ct_model *m = o->m;
    m->tensors = ct_arena_alloc(&m->arena, m->tensor_count, sizeof(*m->tensors), err);
    if (!m->tensors) {
        return -1;
    }
    for (size_t i = 0; i < m->tensor_count; i++) {
        if (copy_tensor(o, i, err)) {
            return -1;
        }
    }
    return 0;
}

/* ---- keys ---- */

/* An empty tensor of version 2 has a tag, and no byte that could be refused later: a wrong one is
 * logged, and counts as a DEK that does not open. */
static int check_empty(struct opening *o, struct ct_err *err)
{
    struct ct_model *m = o->m;
    struct ct_aead *a = NULL;
    int r = 0;
    for (size_t i = 0; r == 0 && i < m->tensor_count; i++) {
        const struct tensor *t = &m->tensors[i];
        uint8_t none = 0;
        if (t->begin != t->end || !m->deks.good[i] || o->enc.entries[i].tag_count == 0) {
            continue;
        }
        const uint8_t *dek = ct_dek(&m->deks, m->keys.enc.alg, i);
        struct ct_err why;
        if (a ? ct_aead_rekey(a, dek, err) : !(a = ct_aead_new(m->keys.enc.alg, dek, err))) {
            r = -1;
        } else if (ct_aead_open(a, t->iv, &none, 0, t->tags, &none, &why)) {
            ct_log(CT_LOG_WARN, "empty tensor %.128s: %s", t->name, why.msg);
            m->deks.good[i] = false;
            m->deks.unwrapped--;
        }
    }
    ct_aead_free(a);
    return r;
}

/* ---- all of it, in the order in which a file is to be refused ---- */

static void copy_kid(char out[256], struct ct_span kid)
{
    size_t n = kid.n < 256 ? kid.n : 0;
    if (n) {
        memcpy(out, kid.p, n);
    }
    out[n] = '\0';
}

static int fill_info(struct opening *o, struct ct_err *err)
{
    uint8_t digest[CT_DIGEST];
    const struct ct_model *m = o->m;
    struct ct_model_info *i = &o->m->info;
    if (ct_sha256(o->raw.data, o->raw.len, digest, err)) {
        return -1;
    }
    ct_hex(i->header_sha256, digest, sizeof(digest));
    i->version = m->keys.version;
    i->alg = m->keys.enc.alg;
    i->chunk_size = m->keys.chunk_size;
    i->tensors = m->tensor_count;
    i->encrypted = m->deks.encrypted;
    i->unwrapped = m->deks.unwrapped;
    i->manifest = m->manifest != NULL;
    copy_kid(i->enc_kid, m->keys.enc.kid);
    copy_kid(i->sign_kid, m->keys.sign.kid);
    i->memory = sizeof(*m) + m->arena.total + m->view.cap + m->tensor_count * sizeof(bool) +
                m->policy.local_len + m->policy.remote_len + ct_secret_len(m->deks.bytes) +
                (m->pieces ? ct_secret_len(m->pieces) : 0);
    return 0;
}

/* The view's first bytes stay as long as the model: without room to grow. */
static int make_view(struct opening *o, struct ct_err *err)
{
    struct ct_buf *view = &o->m->view;
    if (ct_view_header(o->header, view, err)) {
        return -1;
    }
    uint8_t *p = realloc(view->data, view->len);
    if (p) {
        view->data = p;
        view->cap = view->len;
    }
    return 0;
}

static int build(struct opening *o, struct ct_err *err)
{
    const struct ct_open *how = o->how;
    struct ct_model *m = o->m;
    ct_autosecret master = NULL;
    return read_header(o, err) || ct_meta_keys(o->header, &m->keys, err) ||
                   check_signature(o, err) || ct_meta_policy(o->header, &m->policy, err) ||
                   (how->policy_input && ct_model_allow(m, how->policy_input, err)) ||
                   how->keys->master(how->keys, &m->keys.enc, &master, err) ||
                   ct_meta_encryption(o->header, &m->keys, &o->enc, err) ||
                   check_manifest(o, err) || copy_tensors(o, err) ||
                   ct_unwrap(&o->enc, m->keys.enc.alg, master, &m->deks, err) ||
                   check_empty(o, err) || make_view(o, err) || ct_extents_make(m, err) ||
                   fill_info(o, err) || ct_source_check_data(m->source, &m->version, err)
               ? -1
               : 0;
}

int ct_model_open(const struct ct_open *how, struct ct_model **out, struct ct_err *err)
{
    struct ct_model *m = calloc(1, sizeof(*m));
    *out = NULL;
    if (!m) {
        ct_source_close(how->source);
        return ct_err_set(err, CT_NOMEM, "no memory for a model");
    }
    atomic_init(&m->refs, 1);
    pthread_mutex_init(&m->lock, NULL);
    m->source = how->source;
    m->version = how->version;
    struct opening o = {.how = how, .m = m};
    int r = build(&o, err);
    opening_free(&o);
    if (r) {
        ct_model_unref(m);
        return -1;
    }
    *out = m;
    return 0;
}

int ct_model_allow(const struct ct_model *m, const json_t *input, struct ct_err *err)
{
    return ct_policy_allow(m->policy.local, m->policy.local_len, input, err);
}
