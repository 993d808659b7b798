/*
 * Stamps: strings that the server gives out and knows again without having kept them (challenges,
 * the outer half of access tokens). 24 random and counted bytes with an HMAC-SHA-256 under a key
 * that all replicas share; base64url.
 */
#ifndef KS_STAMP_H
#define KS_STAMP_H

#include "format/base/bytes.h"
#include "format/base/secret.h"

enum { KS_STAMP_NONCE = 16, KS_STAMP_TEXT = 76 };

struct ks_stamp {
    char kind;       /* so that one kind is never taken for another */
    uint8_t version; /* of the protocol; 0 where it does not matter */
    int64_t expires; /* seconds since the epoch */
    uint8_t nonce[KS_STAMP_NONCE];
};

/* Draws the nonce. */
int ks_stamp_make(const struct ct_secret *key, struct ks_stamp *s,
                  char out[static KS_STAMP_TEXT + 1], struct ct_err *err);
/* CT_REJECTED unless this server (or a replica) made it, for this kind. The time is the caller's to
 * compare. */
int ks_stamp_read(const struct ct_secret *key, char kind, const char *text, struct ks_stamp *s,
                  struct ct_err *err);

#endif
