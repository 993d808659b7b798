/*
 * The one seam for ciphers. Backends fill `struct ct_aead_ops`; the rest of kvfs calls the
 * functions below (and pieces.h) and does not know which backend answers. README.md has the
 * reasons.
 */
#ifndef CT_AEAD_H
#define CT_AEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/base/err.h"

enum ct_alg { CT_ALG_NONE, CT_ALG_AES128GCM, CT_ALG_AES256GCM, CT_ALG_CHACHA20POLY1305 };

size_t ct_alg_key_len(enum ct_alg alg);                 /* 16 or 32; 0 for CT_ALG_NONE */
const char *ct_alg_name(enum ct_alg alg);               /* "aes256gcm" */
enum ct_alg ct_alg_parse(const char *text, size_t len); /* case and '-' ignored; NONE if unknown */

/* A key made ready for use. Holds the key schedule: lives in wiped memory; one thread at a time. */
struct ct_aead;

struct ct_aead *ct_aead_new(enum ct_alg alg, const uint8_t *key, struct ct_err *err);
/* Loads another key of the same algorithm into it: cheaper than a new one. */
int ct_aead_rekey(struct ct_aead *a, const uint8_t *key, struct ct_err *err);
void ct_aead_free(struct ct_aead *a); /* wipes; NULL is allowed */

/* One message; `in` and `out` may be the same. 12-byte IV, no associated data, 16-byte tag. On a
 * failed tag `out` is zeroed and the code is CT_TAG. */
int ct_aead_open(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                 const uint8_t tag[static 16], uint8_t *out, struct ct_err *err);
int ct_aead_encrypt(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                    uint8_t *out, uint8_t tag[static 16], struct ct_err *err);

/* The name of the backend that serves an algorithm on this machine. */
const char *ct_aead_backend(enum ct_alg alg);

/*
 * What a backend provides. Of those that support an algorithm the first in aead.c's table is taken;
 * openssl.c supports all and is the last. Functions return 0, or -1 on trouble; they are not told
 * of lengths or algorithms that they cannot have.
 */
struct ct_aead_ops {
    const char *name;
    /* Asked at run time: may look at the processor. */
    bool (*supports)(enum ct_alg alg);
    struct ct_aead *(*create)(enum ct_alg alg); /* without a key; NULL on trouble */
    void (*destroy)(struct ct_aead *a);         /* wipes */
    int (*set_key)(struct ct_aead *a, const uint8_t *key);

    /* 12-byte IVs; open() also 16-byte ones for AES-GCM, and gives 1 when the tag fails. */
    int (*open)(struct ct_aead *a, const uint8_t *iv, size_t iv_len, const uint8_t *in, size_t n,
                const uint8_t tag[static 16], uint8_t *out);
    int (*encrypt)(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                   uint8_t *out, uint8_t tag[static 16]);

    /* AES-GCM: the tag over n bytes of associated data and no plaintext. IVs as for open(). */
    int (*gmac)(struct ct_aead *a, const uint8_t *iv, size_t iv_len, const uint8_t *in, size_t n,
                uint8_t tag[static 16]);

    /* ChaCha20-Poly1305: its key stream from `block` on, added to n bytes. */
    int (*chacha20)(struct ct_aead *a, const uint8_t iv[static 12], uint32_t block,
                    const uint8_t *in, size_t n, uint8_t *out);
    /* Poly1305 under a key of its own, over n bytes and the zeros that fill the last block; and
     * into `more`, unless NULL, the same over one more block of zeros. */
    int (*poly1305)(struct ct_aead *a, const uint8_t key[static 32], const uint8_t *in, size_t n,
                    uint8_t mac[static 16], uint8_t *more);
};

extern const struct ct_aead_ops ct_aead_openssl;

/* What every backend's context begins with. */
struct ct_aead {
    const struct ct_aead_ops *ops;
    enum ct_alg alg;
};

#endif
