#include "format/aead/stream.h"

#include <stdlib.h>

#include "format/aead/backend.h"

struct ct_aead_stream {
    struct ct_aead *aead;
    uint64_t left;
};

uint64_t ct_aead_message_max(enum ct_alg alg)
{
    switch (alg) {
    case CT_ALG_AES128GCM:
    case CT_ALG_AES256GCM:
        return (UINT64_C(1) << 36) - 32;
    case CT_ALG_CHACHA20POLY1305:
        return (UINT64_C(1) << 38) - 64;
    case CT_ALG_NONE:
        break;
    }
    return 0;
}

struct ct_aead_stream *ct_aead_stream_new(enum ct_alg alg, const uint8_t *key,
                                          const uint8_t iv[static 12], struct ct_err *err)
{
    struct ct_aead_stream *s = calloc(1, sizeof(*s));
    if (!s) {
        ct_err_set(err, CT_NOMEM, "no memory for a message");
        return NULL;
    }
    s->aead = ct_aead_new(alg, key, err);
    s->left = ct_aead_message_max(alg);
    if (s->aead) {
        struct ct_impl *i = s->aead->by[CT_OP_ENCRYPT];
        if (i->backend->start(i, iv) == 0) {
            return s;
        }
        ct_err_set(err, CT_IO, "encryption failed");
    }
    ct_aead_stream_free(s);
    return NULL;
}

int ct_aead_stream_update(struct ct_aead_stream *s, const uint8_t *in, size_t n, uint8_t *out,
                          struct ct_err *err)
{
    struct ct_impl *i = s->aead->by[CT_OP_ENCRYPT];
    if (n > s->left) {
        return ct_err_set(err, CT_USAGE, "the message is too long for its cipher");
    }
    s->left -= n;
    return i->backend->update(i, in, n, out) ? ct_err_set(err, CT_IO, "encryption failed") : 0;
}

int ct_aead_stream_tag(struct ct_aead_stream *s, uint8_t tag[static 16], struct ct_err *err)
{
    struct ct_impl *i = s->aead->by[CT_OP_ENCRYPT];
    s->left = 0;
    return i->backend->finish(i, tag) ? ct_err_set(err, CT_IO, "encryption failed") : 0;
}

void ct_aead_stream_free(struct ct_aead_stream *s)
{
    if (s) {
        ct_aead_free(s->aead); /* wipes */
        free(s);
    }
}
