#include "format/unwrap.h"
#include "format/write/write.h"

static int check_same_alg(const struct ct_old *o, const struct ct_write_keys *keys,
                          struct ct_err *err)
{
    if (keys->alg != o->keys.enc.alg) {
        return ct_err_set(err, CT_USAGE,
                          "the file is encrypted with %s, the new master key is for %s: use rekey",
                          ct_alg_name(o->keys.enc.alg), ct_alg_name(keys->alg));
    }
    return 0;
}

/* Replaces the wrapping in `o`. A DEK that does not unwrap now never would again: that refuses. */
static int wrap_anew(struct ct_old *o, const struct ct_deks *deks, const struct ct_write_keys *keys,
                     struct ct_err *err)
{
    const size_t len = ct_alg_key_len(keys->alg);
    struct ct_aead *to = ct_aead_new(keys->alg, ct_secret_peek(keys->master), err);
    int r = to ? 0 : -1;
    for (size_t i = 0; r == 0 && i < o->enc.count; i++) {
        const struct ct_span name = o->header->tensors[i].name;
        if (o->enc.entries[i].encrypted && !deks->good[i]) {
            r = ct_err_set(err, CT_REJECTED, "tensor %.*s: its key does not unwrap",
                           (int)(name.n < 128 ? name.n : 128), name.p);
        } else if (o->enc.entries[i].encrypted) {
            r = ct_wrap_dek(to, ct_dek(deks, keys->alg, i), len, &o->enc.entries[i], err);
        }
    }
    ct_aead_free(to);
    return r;
}

static int rewrap(struct ct_old *o, struct ct_keysource *old, const struct ct_write_keys *keys,
                  struct ct_err *err)
{
    struct ct_deks deks = {0};
    ct_autosecret master = NULL;
    if (ct_write_keys_check(keys, err) || check_same_alg(o, keys, err) ||
        old->master(old, &o->keys.enc, &master, err)) {
        return -1;
    }
    int r = ct_unwrap(&o->enc, keys->alg, master, &deks, err);
    if (r == 0) {
        r = wrap_anew(o, &deks, keys, err);
    }
    ct_deks_free(&deks);
    return r;
}

/* Version and chunk size stay; `keys` is what the new field says. */
static int header_out(struct ct_old *o, struct ct_keysource *old, const struct ct_write_keys *keys,
                      struct ct_buf *out, struct ct_err *err)
{
    struct ct_keys_field field;
    const struct ct_span *policy = ct_header_meta(o->header, "__policy__");
    if (!policy) {
        return ct_err_set(err, CT_MALFORMED, "no __policy__");
    }
    if (rewrap(o, old, keys, err)) {
        return -1;
    }
    ct_write_keys_field(keys, o->keys.version, o->keys.chunk_size, &field);
    const struct ct_header_out header = {o->header, &field, &o->enc, *policy, keys->seed};
    uint8_t before[CT_DIGEST];
    uint8_t after[CT_DIGEST];
    uint64_t len = 0;
    if (ct_header_out_len(&header, &len, err) ||
        ct_immutable_digest(o->header, &o->keys, &o->enc, before, err) ||
        ct_header_out(&header, out, after, err)) {
        return -1;
    }
    /* A manifest that vouched for the old header must vouch for the new one. */
    return ct_cmp_bytes(before, CT_DIGEST, after, CT_DIGEST) == 0
               ? 0
               : ct_err_set(err, CT_MALFORMED, "rewrapping would change the immutable part");
}

int ct_rewrap_header(const uint8_t *header, size_t n, uint64_t body_len, struct ct_keysource *old,
                     const struct ct_write_keys *keys, struct ct_buf *out, struct ct_err *err)
{
    struct ct_old o = {0};
    if (n < CT_PREFIX || ct_le64(header) != n - CT_PREFIX) {
        return ct_err_set(err, CT_MALFORMED, "the header's length is not what it says");
    }
    int r = ct_old_parse(&o, header + CT_PREFIX, n - CT_PREFIX, body_len, old, err);
    if (r == 0) {
        r = header_out(&o, old, keys, out, err);
    }
    ct_old_free(&o);
    return r;
}

int ct_rewrap_file(struct ct_source *in, const struct ct_version *v, struct ct_keysource *old,
                   const struct ct_write_keys *keys, const struct ct_write_options *opt, int dirfd,
                   const char *name, struct ct_err *err)
{
    struct ct_old o = {0};
    struct ct_output output = {.file.fd = -1};
    ct_autobuf text = {0};
    int r = ct_old_read(&o, in, v, old, err) || header_out(&o, old, keys, &text, err) ||
                    ct_output_open(&output, in, v, o.header, text.len, dirfd, name, err) ||
                    ct_body_copy(&output.body, opt, err) || ct_output_commit(&output, &text, err)
                ? -1
                : 0;
    ct_output_abort(&output);
    ct_old_free(&o);
    return r;
}
