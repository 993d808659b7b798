/*
 * Which keys and IVs a file gets.
 *
 * No (key, IV) pair is used twice:
 * - A DEK is 128 or 256 random bits, drawn for one tensor of one file and used for nothing else.
 *   Under version 1 it encrypts one message. Under version 2 chunk i has the IV base + i: the
 *   counter is the last 32 bits, and the base is drawn so that it does not wrap, so all IVs under
 *   one DEK differ. Repeating a pair would take two equal DEKs: about n²/2^129 for n tensors of
 *   all files together with the shorter key.
 * - A master key encrypts one DEK per tensor, with 96 random bits as IV: NIST SP 800-38D
 *   (section 8.3) allows 2^32 such messages for one key, which is 2^32 tensors of all its files.
 * Nothing is derived from content, time or a counter in a file, and a run that failed leaves
 * nothing behind that a later one would continue with: encrypting again draws again.
 */
#include <sodium.h>
#include <string.h>

#include "format/aead/stream.h"
#include "format/write/write.h"

enum { PER_TENSOR_JSON = 64 }; /* a lower bound of what a tensor costs in a header */

static int check_text(struct ct_span s, const char *what, struct ct_err *err)
{
    return ct_utf8_ok((const uint8_t *)s.p, s.n)
               ? 0
               : ct_err_set(err, CT_USAGE, "the %s is not UTF-8", what);
}

int ct_write_keys_check(const struct ct_write_keys *keys, struct ct_err *err)
{
    size_t want = ct_alg_key_len(keys->alg);
    if (want == 0 || ct_secret_len(keys->master) != want) {
        return ct_err_set(err, CT_USAGE, "the master key's length does not fit its algorithm");
    }
    if (ct_secret_len(keys->seed) != CT_ED25519_SEED) {
        return ct_err_set(err, CT_USAGE, "the signing key is no Ed25519 key");
    }
    return check_text(keys->master_kid, "master key's kid", err) ||
                   check_text(keys->master_jku, "master key's jku", err) ||
                   check_text(keys->sign_kid, "signing key's kid", err) ||
                   check_text(keys->sign_jku, "signing key's jku", err)
               ? -1
               : 0;
}

void ct_write_keys_field(const struct ct_write_keys *keys, int version, uint64_t chunk_size,
                         struct ct_keys_field *out)
{
    *out = (struct ct_keys_field){
        .version = version,
        .chunk_size = version == 2 ? chunk_size : 0,
        .enc = {.alg = keys->alg, .kid = keys->master_kid, .jku = keys->master_jku},
        .sign = {.alg = CT_ALG_NONE, .kid = keys->sign_kid, .jku = keys->sign_jku},
    };
}

int ct_wrap_dek(struct ct_aead *master, const uint8_t *dek, size_t len, struct ct_encrypted *e,
                struct ct_err *err)
{
    randombytes_buf(e->key_iv, sizeof(e->key_iv));
    return ct_aead_encrypt(master, e->key_iv, dek, len, e->wrapped_key, e->key_tag, err);
}

static int check_options(const struct ct_write_options *opt, struct ct_err *err)
{
    if (opt->version != 1 && opt->version != 2) {
        return ct_err_set(err, CT_USAGE, "there is no version %d of the format", opt->version);
    }
    if (opt->version == 2 && (opt->chunk_size == 0 || opt->chunk_size > UINT64_C(1) << 32)) {
        return ct_err_set(err, CT_USAGE, "the chunk size must be 1 to 4294967296 bytes");
    }
    return 0;
}

/* Messages that tensor `t` is cut into. */
static uint64_t message_count(const struct ct_tensor *t, const struct ct_write_options *opt)
{
    uint64_t len = t->end - t->begin;
    if (opt->version == 1) {
        return len > 0;
    }
    uint64_t n = len / opt->chunk_size + (len % opt->chunk_size != 0);
    return n ? n : 1; /* an empty tensor has one chunk, which is empty */
}

static int choose(struct ct_plan *p, const struct ct_write_options *opt, uint64_t *tag_bytes,
                  struct ct_err *err)
{
    size_t chosen = 0;
    uint64_t tags = 0;
    for (size_t i = 0; i < p->header->tensor_count; i++) {
        const struct ct_tensor *t = &p->header->tensors[i];
        struct ct_encrypted *e = &p->enc.entries[i];
        e->encrypted = !opt->choose || opt->choose(opt->choose_ctx, t->name);
        if (!e->encrypted) {
            p->parts[i].unit = CT_DIGEST_PIECE;
            continue;
        }
        uint64_t n = message_count(t, opt);
        if (opt->version == 1 && t->end - t->begin > ct_aead_message_max(p->keys.enc.alg)) {
            return ct_err_set(err, CT_USAGE,
                              "tensor %.*s is too long for one message: use version 2",
                              (int)(t->name.n < 128 ? t->name.n : 128), t->name.p);
        }
        if (n > CT_HEADER_MAX || (tags += n * CT_TAG_LEN + PER_TENSOR_JSON) > CT_HEADER_MAX) {
            return ct_err_set(err, CT_USAGE, "the header would exceed %d bytes: use larger chunks",
                              CT_HEADER_MAX);
        }
        e->tag_count = (uint32_t)n;
        p->parts[i].unit = opt->version == 2       ? opt->chunk_size
                           : t->end - t->begin > 0 ? t->end - t->begin
                                                   : 1;
        chosen++;
    }
    if (p->header->tensor_count && !chosen) {
        return ct_err_set(err, CT_USAGE, "none of the tensors was chosen to be encrypted");
    }
    *tag_bytes = tags - chosen * PER_TENSOR_JSON;
    return 0;
}

/* Below it, a counter of `count` messages does not wrap. */
static uint32_t counter_base(uint32_t count)
{
    uint64_t most = (UINT64_C(1) << 32) - count; /* the largest base that leaves room */
    return most >= UINT32_MAX ? randombytes_random() : randombytes_uniform((uint32_t)most + 1);
}

static int draw(struct ct_plan *p, const struct ct_write_keys *keys, uint8_t *tags,
                struct ct_err *err)
{
    size_t len = ct_alg_key_len(keys->alg);
    struct ct_aead *master = ct_aead_new(keys->alg, ct_secret_peek(keys->master), err);
    int r = master ? 0 : -1;
    randombytes_buf(ct_secret_bytes(p->deks), ct_secret_len(p->deks));
    for (size_t i = 0; r == 0 && i < p->header->tensor_count; i++) {
        struct ct_encrypted *e = &p->enc.entries[i];
        if (!e->encrypted) {
            continue;
        }
        randombytes_buf(e->iv, sizeof(e->iv));
        if (p->keys.version == 2) {
            ct_put_be32(e->iv + 8, counter_base(e->tag_count));
        }
        p->parts[i].tags = tags;
        e->tags = tags;
        tags += (size_t)e->tag_count * CT_TAG_LEN;
        r = ct_wrap_dek(master, ct_plan_dek(p, i), len, e, err);
    }
    ct_aead_free(master);
    return r;
}

/* Empty tensors are no part of the body: their one tag is made here. */
static int seal_empty(struct ct_plan *p, struct ct_err *err)
{
    struct ct_aead *a = NULL;
    int r = 0;
    for (size_t i = 0; r == 0 && i < p->header->tensor_count; i++) {
        const struct ct_tensor *t = &p->header->tensors[i];
        if (t->end > t->begin || p->enc.entries[i].tag_count == 0) {
            continue;
        }
        uint8_t none = 0;
        if (!a) {
            r = (a = ct_aead_new(p->keys.enc.alg, ct_plan_dek(p, i), err)) ? 0 : -1;
        } else {
            r = ct_aead_rekey(a, ct_plan_dek(p, i), err);
        }
        if (r == 0) {
            r = ct_aead_encrypt(a, p->enc.entries[i].iv, &none, 0, &none, p->parts[i].tags, err);
        }
    }
    ct_aead_free(a);
    return r;
}

static int plan_digests(struct ct_plan *p, struct ct_arena *arena, struct ct_err *err)
{
    if (ct_plain_ranges(p->header, &p->enc, arena, &p->plain, &p->plain_count, err)) {
        return -1;
    }
    size_t k = 0;
    for (size_t i = 0; i < p->header->tensor_count && k < p->plain_count; i++) {
        const struct ct_tensor *t = &p->header->tensors[i];
        if (!p->enc.entries[i].encrypted && t->end > t->begin) {
            p->parts[i].digests = (uint8_t(*)[CT_DIGEST])p->plain[k++].sha256;
        }
    }
    return 0;
}

int ct_plan_make(struct ct_plan *p, const struct ct_header *header,
                 const struct ct_write_keys *keys, const struct ct_write_options *opt,
                 struct ct_arena *digests, struct ct_err *err)
{
    uint64_t tag_bytes = 0;
    size_t n = header->tensor_count;
    *p = (struct ct_plan){.header = header};
    if (ct_write_keys_check(keys, err) || check_options(opt, err)) {
        return -1;
    }
    ct_write_keys_field(keys, opt->version, opt->chunk_size, &p->keys);
    p->enc.count = n;
    p->enc.entries = ct_arena_alloc(&p->arena, n, sizeof(*p->enc.entries), err);
    p->parts = ct_arena_alloc(&p->arena, n, sizeof(*p->parts), err);
    p->deks = ct_secret_new(n * ct_alg_key_len(keys->alg), err);
    if (!p->enc.entries || !p->parts || !p->deks || choose(p, opt, &tag_bytes, err)) {
        return -1;
    }
    uint8_t *tags = ct_arena_alloc(&p->arena, tag_bytes, 1, err);
    if (!tags || draw(p, keys, tags, err) || seal_empty(p, err)) {
        return -1;
    }
    return digests ? plan_digests(p, digests, err) : 0;
}

void ct_plan_free(struct ct_plan *p)
{
    ct_secret_free(p->deks);
    ct_arena_free(&p->arena);
    *p = (struct ct_plan){0};
}

const uint8_t *ct_plan_dek(const struct ct_plan *p, size_t tensor)
{
    return ct_secret_peek(p->deks) + tensor * ct_alg_key_len(p->keys.enc.alg);
}

void ct_plan_iv(const struct ct_plan *p, size_t i, uint64_t index, uint8_t iv[static CT_IV_LEN])
{
    memcpy(iv, p->enc.entries[i].iv, CT_IV_LEN);
    if (p->keys.version == 2) {
        ct_put_be32(iv + 8, ct_be32(iv + 8) + (uint32_t)index);
    }
}
