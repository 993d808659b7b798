/*
 * What stands behind aead.h and pieces.h. A backend provides operations of algorithms; for each,
 * choose.c takes the fastest backend that gives right answers on this machine, so that one
 * `struct ct_aead` may work with several.
 */
#ifndef CT_AEAD_BACKEND_H
#define CT_AEAD_BACKEND_H

#include "format/aead/aead.h"

/* What is chosen one by one. AES-GCM has the first three, ChaCha20-Poly1305 all but GMAC. */
enum ct_op { CT_OP_OPEN, CT_OP_ENCRYPT, CT_OP_GMAC, CT_OP_CHACHA20, CT_OP_POLY1305, CT_OPS };

enum { CT_POLY_SUM = 17 }; /* 130 bits, little endian */

struct ct_backend;

/* What every backend's context begins with. */
struct ct_impl {
    const struct ct_backend *backend;
    enum ct_alg alg;
};

/*
 * Functions return 0, or -1 on trouble; they are not asked for what provides() denies. Contexts
 * hold key material: in memory that is wiped. IVs have 12 bytes, or iv_len: for AES-GCM also 16.
 */
struct ct_backend {
    const char *name;
    /* Asked at run time: may look at the processor, and is where a library is initialised. */
    bool (*provides)(enum ct_alg alg, enum ct_op op);
    struct ct_impl *(*create)(enum ct_alg alg); /* without a key; NULL on trouble */
    void (*destroy)(struct ct_impl *i);         /* wipes */
    int (*set_key)(struct ct_impl *i, const uint8_t *key);

    /* CT_OP_OPEN: start, any number of parts of any length, finish, which gives 1 when the tag
     * fails. What is in `out` then is the caller's to wipe. */
    int (*open_start)(struct ct_impl *i, const uint8_t *iv, size_t iv_len);
    int (*open_add)(struct ct_impl *i, const uint8_t *in, size_t n, uint8_t *out);
    int (*open_finish)(struct ct_impl *i, const uint8_t tag[static 16]);

    /* CT_OP_ENCRYPT: start, any number of parts of any length, finish. */
    int (*start)(struct ct_impl *i, const uint8_t iv[static 12]);
    int (*update)(struct ct_impl *i, const uint8_t *in, size_t n, uint8_t *out);
    int (*finish)(struct ct_impl *i, uint8_t tag[static 16]);

    /* AES-GCM: the tag over associated data, in any number of parts, and no plaintext. */
    int (*gmac_start)(struct ct_impl *i, const uint8_t *iv, size_t iv_len);
    int (*gmac_add)(struct ct_impl *i, const uint8_t *in, size_t n);
    int (*gmac_finish)(struct ct_impl *i, uint8_t tag[static 16]);

    /* ChaCha20-Poly1305: its key stream from `block` on, added to n bytes. */
    int (*chacha20)(struct ct_impl *i, const uint8_t iv[static 12], uint32_t block,
                    const uint8_t *in, size_t n, uint8_t *out);
    /* Poly1305's sum under the IV's one-time key, over n > 0 bytes and the zeros that fill the last
     * block: before s is added, fully reduced. */
    int (*poly1305)(struct ct_impl *i, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                    uint8_t sum[static CT_POLY_SUM]);
};

extern const struct ct_backend ct_backend_openssl; /* provides everything */
extern const struct ct_backend ct_backend_ipsec;   /* only where KVFS_HAVE_IPSEC is 1 */

/* A message as a whole; as open_finish(). */
static inline int ct_open(struct ct_impl *i, const uint8_t *iv, size_t iv_len, const uint8_t *in,
                          size_t n, const uint8_t tag[static 16], uint8_t *out)
{
    const struct ct_backend *b = i->backend;
    return b->open_start(i, iv, iv_len) || b->open_add(i, in, n, out) ? -1 : b->open_finish(i, tag);
}

static inline int ct_gmac(struct ct_impl *i, const uint8_t *iv, size_t iv_len, const uint8_t *in,
                          size_t n, uint8_t tag[static 16])
{
    const struct ct_backend *b = i->backend;
    return b->gmac_start(i, iv, iv_len) || b->gmac_add(i, in, n) || b->gmac_finish(i, tag) ? -1 : 0;
}

/* openssl.c: as poly1305() of its own contexts, with the one-time key given. */
int ct_openssl_poly1305(struct ct_impl *i, const uint8_t key[static 32], const uint8_t *in,
                        size_t n, uint8_t sum[static CT_POLY_SUM]);

struct ct_aead {
    enum ct_alg alg;
    struct ct_impl *by[CT_OPS]; /* NULL: not of this algorithm; several may be the same */
};

static inline bool ct_alg_has(enum ct_alg alg, enum ct_op op)
{
    return op <= CT_OP_ENCRYPT || (alg == CT_ALG_CHACHA20POLY1305) == (op != CT_OP_GMAC);
}

/* choose.c: the backend of each operation, according to ct_aead_use(). */
int ct_choose(enum ct_alg alg, const struct ct_backend *by[static CT_OPS], struct ct_err *err);

/* known.c: whether the operation gives what it has to. Takes any key away from the context. */
bool ct_known_answer(struct ct_impl *i, enum ct_op op);

#endif
