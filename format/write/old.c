#include "format/write/write.h"

static int check_signature(const struct ct_old *o, struct ct_keysource *keys, struct ct_err *err)
{
    uint8_t pub[CT_ED25519_PUB];
    uint8_t sig[CT_SIG_LEN];
    ct_autobuf canonical = {0};
    if (ct_meta_signature(o->header, sig, err) || ct_canon_signed(o->header, &canonical, err) ||
        keys->verify(keys, &o->keys.sign, pub, err)) {
        return -1;
    }
    return ct_ed25519_verify(pub, canonical.data, canonical.len, sig, err);
}

static int check(struct ct_old *o, struct ct_keysource *keys, struct ct_err *err)
{
    if (!ct_meta_is_encrypted(o->header)) {
        return ct_err_set(err, CT_USAGE, "it is not encrypted");
    }
    if (ct_meta_keys(o->header, &o->keys, err) || check_signature(o, keys, err) ||
        ct_meta_encryption(o->header, &o->keys, &o->enc, err)) {
        return -1;
    }
    return 0;
}

int ct_old_parse(struct ct_old *o, const uint8_t *json, size_t n, uint64_t body_len,
                 struct ct_keysource *keys, struct ct_err *err)
{
    *o = (struct ct_old){0};
    return ct_header_parse(json, n, body_len, &o->header, err) || check(o, keys, err) ? -1 : 0;
}

int ct_old_read(struct ct_old *o, struct ct_source *in, const struct ct_version *v,
                struct ct_keysource *keys, struct ct_err *err)
{
    *o = (struct ct_old){0};
    return ct_header_read(in, v, NULL, &o->header, err) || check(o, keys, err) ? -1 : 0;
}

void ct_old_free(struct ct_old *o)
{
    ct_encryption_field_free(&o->enc);
    ct_keys_field_free(&o->keys);
    ct_header_free(o->header);
    *o = (struct ct_old){0};
}
