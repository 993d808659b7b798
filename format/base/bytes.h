/*
 * Bytes: growable buffers, overflow-checked sums, little- and big-endian fields, base64, hex,
 * UTF-8. Lengths are in bytes.
 */
#ifndef CT_BASE_BYTES_H
#define CT_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "format/base/err.h"

/* A growable buffer. Zero-initialised; `data` is owned by it. After a failed allocation `failed`
 * is set and every further append is a no-op: check once, at the end, with ct_buf_ok(). */
struct ct_buf {
    uint8_t *data;
    size_t len;
    size_t cap;
    bool failed;
};

void ct_buf_put(struct ct_buf *b, const void *p, size_t n);
void ct_buf_puts(struct ct_buf *b, const char *s);
void ct_buf_putc(struct ct_buf *b, char c);
void ct_buf_printf(struct ct_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ct_buf_u64(struct ct_buf *b, uint64_t v); /* in decimal */
/* Makes room for n more bytes and returns where they go (len is not changed); NULL on failure. */
uint8_t *ct_buf_reserve(struct ct_buf *b, size_t n);
int ct_buf_ok(const struct ct_buf *b, struct ct_err *err);
void ct_buf_free(struct ct_buf *b); /* wipes, frees, zeroes */
#define ct_autobuf __attribute__((cleanup(ct_buf_free))) struct ct_buf

static inline bool ct_add_u64(uint64_t a, uint64_t b, uint64_t *sum)
{
    return !__builtin_add_overflow(a, b, sum);
}

static inline bool ct_mul_u64(uint64_t a, uint64_t b, uint64_t *product)
{
    return !__builtin_mul_overflow(a, b, product);
}

uint64_t ct_le64(const uint8_t p[static 8]);
void ct_put_le64(uint8_t p[static 8], uint64_t v);
uint32_t ct_be32(const uint8_t p[static 4]);
void ct_put_be32(uint8_t p[static 4], uint32_t v);

/* Base64, strict: standard or URL-safe alphabet (not mixed), padding right or absent, no blanks,
 * no bits left over (RFC 4648 section 3.5). Returns the decoded length, or -1. Decoding into `out`
 * never writes more than `cap`. */
ssize_t ct_base64_decode(const char *text, size_t len, uint8_t *out, size_t cap);
/* Appends standard base64 with padding. */
void ct_base64_put(struct ct_buf *b, const uint8_t *p, size_t n);
/* Appends URL-safe base64 without padding (RFC 7515). */
void ct_base64url_put(struct ct_buf *b, const uint8_t *p, size_t n);

void ct_hex(char *out, const uint8_t *p, size_t n);                   /* 2n + 1 bytes, lower case */
int ct_unhex(const char *text, size_t len, uint8_t *out, size_t cap); /* bytes, or -1; lower case */

/* Well-formed UTF-8 as RFC 3629 has it: no surrogates, no overlong forms, at most U+10FFFF. */
bool ct_utf8_ok(const uint8_t *p, size_t n);
/* What to keep of a text of n bytes, to have at most `most` and no half of a character at the end.
 * Looks at no byte behind these. */
size_t ct_utf8_cut(const char *text, size_t n, size_t most);
/* Copies a text, so cut that it fits into `cap` bytes. */
void ct_utf8_copy(char *out, size_t cap, const char *text);

/* Compares as unsigned bytes, a shorter prefix first. */
int ct_cmp_bytes(const void *a, size_t alen, const void *b, size_t blen);

static inline void ct_freep(void *p)
{
    free(*(void **)p);
}
#define ct_autofree __attribute__((cleanup(ct_freep)))

#endif
