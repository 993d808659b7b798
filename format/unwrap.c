#include "format/unwrap.h"

int ct_unwrap(const struct ct_encryption_field *enc, enum ct_alg alg,
              const struct ct_secret *master, struct ct_deks *out, struct ct_err *err)
{
    size_t n = ct_alg_key_len(alg);
    *out = (struct ct_deks){0};
    if (ct_secret_len(master) != n) {
        return ct_err_set(err, CT_REJECTED, "the master key has the wrong length");
    }
    out->bytes = ct_secret_new(enc->count * n, err);
    out->good = calloc(enc->count ? enc->count : 1, sizeof(bool));
    struct ct_aead *a = ct_aead_new(alg, ct_secret_peek(master), err);
    if (!out->bytes || !out->good || !a) {
        ct_aead_free(a);
        return ct_err_set(err, CT_NOMEM, "no memory for %zu DEKs", enc->count);
    }
    for (size_t i = 0; i < enc->count; i++) {
        const struct ct_encrypted *e = &enc->entries[i];
        if (e->encrypted) {
            out->encrypted++;
            out->good[i] = ct_aead_open(a, e->key_iv, e->wrapped_key, n, e->key_tag,
                                        ct_secret_bytes(out->bytes) + i * n, NULL) == 0;
            out->unwrapped += out->good[i];
        }
    }
    ct_aead_free(a);
    if (out->encrypted && !out->unwrapped) {
        return ct_err_set(err, CT_REJECTED, "no DEK unwraps: this is not the file's master key");
    }
    return 0;
}

void ct_deks_free(struct ct_deks *d)
{
    ct_secret_free(d->bytes);
    free(d->good);
    *d = (struct ct_deks){0};
}
