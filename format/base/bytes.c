#include "format/base/bytes.h"

#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "format/base/secret.h"

uint8_t *ct_buf_reserve(struct ct_buf *b, size_t n)
{
    size_t need = 0;
    if (b->failed || __builtin_add_overflow(b->len, n, &need)) {
        b->failed = true;
        return NULL;
    }
    if (need > b->cap || !b->data) {
        size_t cap = b->cap ? b->cap : 256;
        while (cap < need) {
            if (__builtin_mul_overflow(cap, (size_t)2, &cap)) {
                cap = need;
            }
        }
        uint8_t *p = ct_wiping_realloc(b->data, cap);
        if (!p) {
            b->failed = true;
            return NULL;
        }
        b->data = p;
        b->cap = cap;
    }
    return b->data + b->len;
}

void ct_buf_put(struct ct_buf *b, const void *p, size_t n)
{
    uint8_t *to = ct_buf_reserve(b, n);
    if (to && n) {
        memcpy(to, p, n);
        b->len += n;
    }
}

void ct_buf_puts(struct ct_buf *b, const char *s)
{
    ct_buf_put(b, s, strlen(s));
}

void ct_buf_putc(struct ct_buf *b, char c)
{
    ct_buf_put(b, &c, 1);
}

void ct_buf_printf(struct ct_buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0) {
        b->failed = true;
    } else {
        uint8_t *to = ct_buf_reserve(b, (size_t)n + 1);
        if (to) {
            (void)vsnprintf((char *)to, (size_t)n + 1, fmt, again);
            b->len += (size_t)n;
        }
    }
    va_end(again);
}

void ct_buf_u64(struct ct_buf *b, uint64_t v)
{
    char digits[20];
    size_t at = sizeof(digits);
    do {
        digits[--at] = (char)('0' + v % 10);
        v /= 10;
    } while (v);
    ct_buf_put(b, digits + at, sizeof(digits) - at);
}

int ct_buf_ok(const struct ct_buf *b, struct ct_err *err)
{
    return b->failed ? ct_err_set(err, CT_NOMEM, "no memory for a buffer") : 0;
}

void ct_buf_free(struct ct_buf *b)
{
    ct_wiping_free(b->data);
    *b = (struct ct_buf){0};
}

uint64_t ct_le64(const uint8_t p[static 8])
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) {
        v = v << 8 | p[i];
    }
    return v;
}

void ct_put_le64(uint8_t p[static 8], uint64_t v)
{
    for (int i = 0; i < 8; i++, v >>= 8) {
        p[i] = (uint8_t)v;
    }
}

uint32_t ct_be32(const uint8_t p[static 4])
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

void ct_put_be32(uint8_t p[static 4], uint32_t v)
{
    for (int i = 3; i >= 0; i--, v >>= 8) {
        p[i] = (uint8_t)v;
    }
}

ssize_t ct_base64_decode(const char *text, size_t len, uint8_t *out, size_t cap)
{
    bool url = memchr(text, '-', len) || memchr(text, '_', len);
    bool padded = len && text[len - 1] == '=';
    int variant =
        url ? (padded ? sodium_base64_VARIANT_URLSAFE : sodium_base64_VARIANT_URLSAFE_NO_PADDING)
            : (padded ? sodium_base64_VARIANT_ORIGINAL : sodium_base64_VARIANT_ORIGINAL_NO_PADDING);
    size_t n = 0;
    const char *end = NULL;
    if (sodium_base642bin(out, cap, text, len, NULL, &n, &end, variant) || end != text + len) {
        return -1;
    }
    return (ssize_t)n;
}

static void base64_put(struct ct_buf *b, const uint8_t *p, size_t n, int variant)
{
    size_t need = sodium_base64_encoded_len(n, variant);
    uint8_t *to = ct_buf_reserve(b, need);
    if (to) {
        sodium_bin2base64((char *)to, need, p, n, variant);
        b->len += need - 1; /* without the terminating NUL */
    }
}

void ct_base64_put(struct ct_buf *b, const uint8_t *p, size_t n)
{
    base64_put(b, p, n, sodium_base64_VARIANT_ORIGINAL);
}

void ct_base64url_put(struct ct_buf *b, const uint8_t *p, size_t n)
{
    base64_put(b, p, n, sodium_base64_VARIANT_URLSAFE_NO_PADDING);
}

void ct_hex(char *out, const uint8_t *p, size_t n)
{
    sodium_bin2hex(out, 2 * n + 1, p, n);
}

int ct_unhex(const char *text, size_t len, uint8_t *out, size_t cap)
{
    if (len % 2 || len / 2 > cap) {
        return -1;
    }
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        int v = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (v < 0) {
            return -1;
        }
        out[i / 2] = (uint8_t)(i % 2 ? out[i / 2] | v : v << 4);
    }
    return (int)(len / 2);
}

bool ct_utf8_ok(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint8_t c = p[i++];
        if (c < 0x80) {
            continue;
        }
        size_t more = c >= 0xc2 && c <= 0xdf   ? 1
                      : (c & 0xf0) == 0xe0     ? 2
                      : c >= 0xf0 && c <= 0xf4 ? 3
                                               : 0;
        if (more == 0 || n - i < more) {
            return false;
        }
        uint8_t lo = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
        uint8_t hi = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
        if (p[i] < lo || p[i] > hi) {
            return false;
        }
        for (size_t k = 1; k < more; k++) {
            if ((p[i + k] & 0xc0) != 0x80) {
                return false;
            }
        }
        i += more;
    }
    return true;
}

size_t ct_utf8_cut(const char *text, size_t n, size_t most)
{
    if (n <= most) {
        return n;
    }
    for (size_t back = 1; back <= 3 && back <= most; back++) {
        uint8_t c = (uint8_t)text[most - back];
        if ((c & 0xc0) != 0x80) {
            size_t len = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
            return len > back ? most - back : most;
        }
    }
    return most;
}

void ct_utf8_copy(char *out, size_t cap, const char *text)
{
    size_t n = ct_utf8_cut(text, strlen(text), cap - 1);
    memcpy(out, text, n);
    out[n] = '\0';
}

int ct_cmp_bytes(const void *a, size_t alen, const void *b, size_t blen)
{
    size_t n = alen < blen ? alen : blen;
    int r = n ? memcmp(a, b, n) : 0;
    return r ? r : (alen > blen) - (alen < blen);
}
