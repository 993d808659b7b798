/*
 * The only home of key bytes: memory that is locked where the limits allow, left out of core
 * dumps, surrounded by guard pages (libsodium's allocator) and wiped when freed.
 *
 * A secret costs at least a page and two guard pages: keep many small keys in one secret.
 */
#ifndef CT_BASE_SECRET_H
#define CT_BASE_SECRET_H

#include <stddef.h>
#include <stdint.h>

#include "format/base/err.h"

struct ct_secret; /* opaque, so that it is not copied or printed by accident */

/* Call once, single-threaded, before anything else: initialises libsodium, sets wiping allocators
 * for OpenSSL and jansson (both free memory with key bytes in it). 0, or -1. */
int ct_secret_init(struct ct_err *err);

/* `len` zero bytes; owned by the caller. NULL when memory runs out. */
struct ct_secret *ct_secret_new(size_t len, struct ct_err *err);
struct ct_secret *ct_secret_from(const void *bytes, size_t len, struct ct_err *err);

uint8_t *ct_secret_bytes(struct ct_secret *s);
const uint8_t *ct_secret_peek(const struct ct_secret *s);
size_t ct_secret_len(const struct ct_secret *s);

/* Wipes and frees; NULL is allowed. */
void ct_secret_free(struct ct_secret *s);

/* Zeroises every secret of the process in place, but those that are kept; they stay allocated. For
 * sealing. */
void ct_secret_wipe_all(void);
/* From now on only ct_secret_free() wipes it: for a key that opens nothing, and has to sign what is
 * said of the sealing. */
void ct_secret_keep(struct ct_secret *s);

/* Bytes now in secrets. What of it is locked is VmLck in /proc/self/status. */
size_t ct_secret_total(void);

/* For scratch memory outside a secret that held key bytes for a moment. */
void ct_wipe(void *p, size_t len);

/* malloc family that wipes on free, for libraries with allocator hooks. */
void *ct_wiping_malloc(size_t n);
void *ct_wiping_realloc(void *p, size_t n);
void ct_wiping_free(void *p);

static inline void ct_secret_freep(struct ct_secret **s)
{
    ct_secret_free(*s);
}
#define ct_autosecret __attribute__((cleanup(ct_secret_freep))) struct ct_secret *

#endif
