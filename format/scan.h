/*
 * A pull scanner for JSON as model headers hold it: no tree, no recursion, no allocation of its
 * own, linear time, over memory or over a source read in blocks. Strict RFC 8259: UTF-8 is checked,
 * escapes are decoded (a surrogate alone is refused). It knows tokens only: which members are
 * allowed, how deep they nest and whether one stands twice is for its callers, none of whom
 * recurse.
 *
 * Every function returns 0, or -1 with CT_MALFORMED (or the source's error) in the scanner's err;
 * after a failure no further call may be made.
 */
#ifndef CT_SCAN_H
#define CT_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/base/bytes.h"
#include "format/base/err.h"
#include "format/base/file.h"

/* Borrowed bytes, not NUL-terminated. */
struct ct_span {
    const char *p;
    size_t n;
};

static inline bool ct_span_is(struct ct_span s, const char *text, size_t n)
{
    return s.n == n && (n == 0 || __builtin_memcmp(s.p, text, n) == 0);
}
#define ct_span_eq(span, literal) ct_span_is((span), (literal), sizeof(literal) - 1)

/* For "%.*s" of a name in an error: at most 128 bytes of UTF-8, no character cut in two. */
static inline int ct_span_shown(struct ct_span s)
{
    return (int)ct_utf8_cut(s.p, s.n, 128);
}

struct ct_scan {
    const uint8_t *p, *end;   /* what is left of the window */
    uint64_t base;            /* offset of `end` in the text */
    struct ct_source *source; /* NULL: memory */
    uint64_t source_at, source_end;
    uint8_t *window;
    size_t window_size;
    struct ct_err *err; /* never NULL */
};

void ct_scan_memory(struct ct_scan *s, const void *text, size_t n, struct ct_err *err);
/* Over bytes [begin, end) of a source, through a window of the caller's. */
void ct_scan_source(struct ct_scan *s, struct ct_source *source, uint64_t begin, uint64_t end,
                    uint8_t *window, size_t window_size, struct ct_err *err);

/* The offset of the next byte in the text. */
uint64_t ct_scan_at(const struct ct_scan *s);
/* CT_MALFORMED with the offset before the sentence. */
int ct_scan_fail(struct ct_scan *s, const char *what);

/* The next byte that is not white space, without taking it; -1 at the end or on error (then
 * s->err->code tells). */
int ct_scan_peek(struct ct_scan *s);
/* Takes exactly this byte, after white space. */
int ct_scan_expect(struct ct_scan *s, char c);
/* Takes it if it is there: 1, 0, or -1. */
int ct_scan_accept(struct ct_scan *s, char c);
/*
 * Members and elements: after the opening bracket, call before each one. 1: there is one; 0: the
 * closing bracket was taken. `*first` is true before the first call.
 */
int ct_scan_more(struct ct_scan *s, char close, bool *first);

/* How many of n bytes stand for themselves in a string without a second look: ASCII but for
 * controls, quote and backslash. */
size_t ct_scan_plain(const uint8_t *p, size_t n);

/* A string: `piece` receives its decoded bytes, in order; non-zero from it fails the scan with the
 * error it has set. NULL: skipped (and checked). */
typedef int (*ct_scan_piece_fn)(void *ctx, const uint8_t *p, size_t n, struct ct_err *err);
int ct_scan_string(struct ct_scan *s, ct_scan_piece_fn piece, void *ctx);
/* A string of at most cap - 1 bytes, NUL-terminated into `out`; a longer one is cut and *len says
 * how long it is. */
int ct_scan_short(struct ct_scan *s, char *out, size_t cap, size_t *len);
/* An unsigned integer without sign, fraction, exponent or leading zeros, below 2^64. */
int ct_scan_u64(struct ct_scan *s, uint64_t *out);
/*
 * The name of a member and the colon after it. *which: its place in `names`, which ends with NULL
 * and has at most 32; -1 for another name. *seen has a bit for each that was there, and one that is
 * there again fails.
 */
int ct_scan_member(struct ct_scan *s, const char *const *names, unsigned *seen, int *which);
/* Any value, checked and forgotten; its numbers are such as ct_scan_u64() takes. */
enum { CT_SCAN_DEPTH = 4 }; /* what nests deeper is refused */
int ct_scan_skip(struct ct_scan *s);
/* Nothing but white space up to the end. */
int ct_scan_end(struct ct_scan *s);

/* A string appended to `out`. */
int ct_scan_string_to(struct ct_scan *s, struct ct_buf *out);

#endif
