#include <string.h>

#include "format/write/write.h"

int ct_header_facts(const uint8_t *header, size_t n, struct ct_keysource *keys,
                    struct ct_header_facts *out, struct ct_err *err)
{
    struct ct_old o = {0};
    *out = (struct ct_header_facts){0};
    if (n < CT_PREFIX || ct_le64(header) != n - CT_PREFIX) {
        return ct_err_set(err, CT_MALFORMED, "the header's length is not what it says");
    }
    int r = ct_old_parse(&o, header + CT_PREFIX, n - CT_PREFIX, CT_BODY_UNKNOWN, keys, err) ||
                    ct_meta_policy(o.header, &out->policy, err) ||
                    ct_immutable_digest(o.header, &o.keys, &o.enc, out->immutable, err) ||
                    ct_sha256(header, n, out->sha256, err)
                ? -1
                : 0;
    if (r == 0) {
        out->body_len = o.header->body_len;
        out->keys = o.keys; /* owns its own memory */
        o.keys = (struct ct_keys_field){0};
    }
    ct_old_free(&o);
    return r;
}

void ct_header_facts_free(struct ct_header_facts *f)
{
    ct_policy_field_free(&f->policy);
    ct_keys_field_free(&f->keys);
}
