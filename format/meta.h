/*
 * The four reserved metadata fields of CryptoTensors: __crypto_keys__, __encryption__, __policy__
 * and __signature__ (format/README.md section 2).
 */
#ifndef CT_META_H
#define CT_META_H

#include "format/aead/aead.h"
#include "format/header.h"

enum {
    CT_DEK_MAX = 32,
    CT_IV_LEN = 12,
    CT_TAG_LEN = 16,
    CT_SIG_LEN = 64,
    CT_CHUNK_DEFAULT = 2097152,
};

/* Points to a key without holding it. kid and jku may be empty. */
struct ct_keyref {
    enum ct_alg alg; /* CT_ALG_NONE for a signing key (always Ed25519) */
    struct ct_span kid, jku;
};

struct ct_keys_field {   /* __crypto_keys__ */
    int version;         /* 1 or 2 */
    uint64_t chunk_size; /* version 2; 0 in version 1 */
    struct ct_keyref enc, sign;
    char *arena; /* what the refs point into */
};

struct ct_encrypted {                /* one tensor's entry in __encryption__ */
    bool encrypted;                  /* false: the tensor is not listed; nothing else is set */
    uint8_t wrapped_key[CT_DEK_MAX]; /* as long as the algorithm's key */
    uint8_t key_iv[CT_IV_LEN];
    uint8_t key_tag[CT_TAG_LEN];
    uint8_t
        iv[CT_IV_LEN];  /* version 1: iv; version 2: base_iv. Unset for an empty one in version 1 */
    uint32_t tag_count; /* version 1: 1, 0 when empty; version 2: number of chunks, at least 1 */
    const uint8_t *tags; /* tag_count * 16 bytes */
};

struct ct_encryption_field { /* __encryption__ */
    size_t count;            /* = tensor_count; entry i belongs to tensors[i] */
    struct ct_encrypted *entries;
    void *arena;
};

struct ct_policy_field {  /* __policy__ */
    char *local, *remote; /* NUL-terminated copies, UTF-8; may hold NUL: use the lengths */
    size_t local_len, remote_len;
};

bool ct_meta_is_reserved(struct ct_span key);
bool ct_meta_is_encrypted(const struct ct_header *h);

/* CT_MALFORMED; CT_UNSUPPORTED for a version or algorithm that is not known. */
int ct_meta_keys(const struct ct_header *h, struct ct_keys_field *out, struct ct_err *err);
int ct_meta_keys_text(struct ct_span text, struct ct_keys_field *out, struct ct_err *err);
int ct_meta_encryption(const struct ct_header *h, const struct ct_keys_field *keys,
                       struct ct_encryption_field *out, struct ct_err *err);
int ct_meta_policy(const struct ct_header *h, struct ct_policy_field *out, struct ct_err *err);
/* CT_REJECTED when missing or not 64 bytes. */
int ct_meta_signature(const struct ct_header *h, uint8_t sig[static CT_SIG_LEN],
                      struct ct_err *err);

void ct_keys_field_free(struct ct_keys_field *f);
void ct_encryption_field_free(struct ct_encryption_field *f);
void ct_policy_field_free(struct ct_policy_field *f);

#endif
