#include <stdio.h>
#include <string.h>

#include "format/base/log.h"
#include "format/base/sha256.h"
#include "format/canon.h"
#include "format/model_parts.h"
#include "format/policy/policy.h"

/* ---- the header: the file's own, or the one that was released for it ---- */

static int read_header(struct ct_model *m, const struct ct_open *how, struct ct_buf *raw,
                       struct ct_err *err)
{
    if (!how->header) {
        if (ct_header_read(m->source, &m->version, raw, &m->header, err)) {
            return -1;
        }
        m->body_at = CT_PREFIX + m->header->json_len;
        return 0;
    }
    uint8_t prefix[CT_PREFIX];
    if (m->version.size < CT_PREFIX || how->header_len < CT_PREFIX) {
        return ct_err_set(err, CT_MALFORMED, "no header");
    }
    if (ct_source_read(m->source, prefix, sizeof(prefix), 0, &m->version, err)) {
        return -1;
    }
    uint64_t n = ct_le64(prefix);
    if (n > CT_HEADER_MAX || n > m->version.size - CT_PREFIX ||
        ct_le64(how->header) != how->header_len - CT_PREFIX) {
        return ct_err_set(err, CT_MALFORMED, "a header longer than its file");
    }
    m->body_at = CT_PREFIX + n;
    ct_buf_put(raw, how->header, how->header_len);
    return ct_buf_ok(raw, err) ||
                   ct_header_parse(how->header + CT_PREFIX, how->header_len - CT_PREFIX,
                                   m->version.size - m->body_at, &m->header, err)
               ? -1
               : 0;
}

static int check_signature(struct ct_model *m, struct ct_keysource *keys, struct ct_err *err)
{
    uint8_t pub[CT_ED25519_PUB];
    uint8_t sig[CT_SIG_LEN];
    ct_autobuf text = {0};
    return keys->verify(keys, &m->keys.sign, pub, err) || ct_meta_signature(m->header, sig, err) ||
                   ct_canon_signed(m->header, &text, err) ||
                   ct_ed25519_verify(pub, text.data, text.len, sig, err)
               ? -1
               : 0;
}

/* ---- what vouches for the file beyond its own signature ---- */

static int check_plain(const struct ct_model *m, const struct ct_open *how, struct ct_err *err)
{
    for (size_t i = 0; i < m->header->tensor_count; i++) {
        const struct ct_tensor *t = &m->header->tensors[i];
        if (m->enc.entries[i].encrypted || t->begin == t->end) {
            continue;
        }
        int n = (int)(t->name.n < 128 ? t->name.n : 128);
        if (how->manifest && !ct_plain_digests(m, t)) {
            return ct_err_set(err, CT_REJECTED,
                              "tensor %.*s is not encrypted, and the manifest does not have it", n,
                              t->name.p);
        }
        if (!how->manifest && how->refuse_unencrypted) {
            return ct_err_set(err, CT_REJECTED,
                              "tensor %.*s is not encrypted, which plain=none refuses", n,
                              t->name.p);
        }
    }
    return 0;
}

static int check_manifest(struct ct_model *m, const struct ct_open *how, struct ct_err *err)
{
    if (!how->manifest) {
        return check_plain(m, how, err);
    }
    uint8_t digest[CT_DIGEST];
    ct_autobuf text = {0};
    const struct ct_entry *e = ct_manifest_find(how->manifest, how->path);
    if (!e || e->kind != CT_ENTRY_SHARD) {
        return ct_err_set(err, CT_REJECTED, "the manifest lists no model of this name");
    }
    if (ct_canon_immutable(m->header, &m->keys, &m->enc, &text, err) ||
        ct_sha256(text.data, text.len, digest, err)) {
        return -1;
    }
    if (memcmp(digest, e->sha256, sizeof(digest)) != 0 || e->size != m->header->body_len) {
        return ct_err_set(err, CT_REJECTED,
                          "this is not the file that the manifest lists under this name");
    }
    m->manifest = ct_manifest_ref((struct ct_manifest *)how->manifest);
    m->entry = e;
    return check_plain(m, how, err);
}

/* ---- keys ---- */

/* An empty tensor of version 2 has a tag, and no byte that could be refused later. */
static void check_empty(struct ct_model *m)
{
    for (size_t i = 0; i < m->header->tensor_count; i++) {
        const struct ct_tensor *t = &m->header->tensors[i];
        const struct ct_encrypted *e = &m->enc.entries[i];
        if (t->begin != t->end || !m->deks.good[i] || e->tag_count == 0) {
            continue;
        }
        uint8_t none = 0;
        struct ct_aead *a =
            ct_aead_new(m->keys.enc.alg, ct_dek(&m->deks, m->keys.enc.alg, i), NULL);
        if (!a || ct_aead_open(a, e->iv, &none, 0, e->tags, &none, NULL)) {
            ct_log(CT_LOG_WARN, "empty tensor %.*s: tag does not match",
                   (int)(t->name.n < 128 ? t->name.n : 128), t->name.p);
            m->deks.good[i] = false;
            m->deks.unwrapped--;
        }
        ct_aead_free(a);
    }
}

static int unwrap(struct ct_model *m, const struct ct_secret *master, struct ct_err *err)
{
    if (ct_unwrap(&m->enc, m->keys.enc.alg, master, &m->deks, err)) {
        return -1;
    }
    check_empty(m);
    return 0;
}

/* ---- all of it, in the order in which a file is to be refused ---- */

static void copy_kid(char out[256], struct ct_span kid)
{
    size_t n = kid.n < 255 ? kid.n : 0;
    if (n) {
        memcpy(out, kid.p, n);
    }
    out[n] = '\0';
}

static int fill_info(struct ct_model *m, const struct ct_buf *raw, struct ct_err *err)
{
    uint8_t digest[CT_DIGEST];
    struct ct_model_info *i = &m->info;
    if (ct_sha256(raw->data, raw->len, digest, err)) {
        return -1;
    }
    ct_hex(i->header_sha256, digest, sizeof(digest));
    i->version = m->keys.version;
    i->alg = m->keys.enc.alg;
    i->chunk_size = m->keys.chunk_size;
    i->tensors = m->header->tensor_count;
    i->encrypted = m->deks.encrypted;
    i->unwrapped = m->deks.unwrapped;
    i->manifest = m->manifest != NULL;
    copy_kid(i->enc_kid, m->keys.enc.kid);
    copy_kid(i->sign_kid, m->keys.sign.kid);
    for (size_t k = 0; k < m->header->tensor_count; k++) {
        const struct ct_tensor *t = &m->header->tensors[k];
        if (!m->enc.entries[k].encrypted && !m->manifest) {
            i->unauthenticated_bytes += t->end - t->begin;
        }
        i->memory += (size_t)m->enc.entries[k].tag_count * CT_TAG_LEN;
    }
    i->memory += sizeof(*m) + m->view.cap + ct_header_memory(m->header) +
                 i->tensors * (sizeof(struct ct_encrypted) + ct_alg_key_len(i->alg) + sizeof(bool));
    return 0;
}

static int build(struct ct_model *m, const struct ct_open *how, struct ct_err *err)
{
    ct_autobuf raw = {0};
    ct_autosecret master = NULL;
    if (read_header(m, how, &raw, err)) {
        return -1;
    }
    if (!ct_meta_is_encrypted(m->header)) {
        return ct_err_set(err, CT_REJECTED, "not encrypted: nothing vouches for its content");
    }
    if (ct_meta_keys(m->header, &m->keys, err) || check_signature(m, how->keys, err) ||
        ct_meta_policy(m->header, &m->policy, err) ||
        (how->policy_input && ct_model_allow(m, how->policy_input, err)) ||
        how->keys->master(how->keys, &m->keys.enc, &master, err) ||
        ct_meta_encryption(m->header, &m->keys, &m->enc, err) || check_manifest(m, how, err) ||
        unwrap(m, master, err) || ct_view_header(m->header, &m->view, err) ||
        ct_extents_make(m, err) || fill_info(m, &raw, err)) {
        return -1;
    }
    ct_header_forget_meta(m->header);
    return ct_source_check(m->source, &m->version, err);
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
    if (build(m, how, err)) {
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
