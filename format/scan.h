/*
 * A pull scanner for JSON as model headers hold it: no tree, no recursion, no allocation of its
 * own, linear time, over memory or over a source read in blocks. Strict RFC 8259: UTF-8 checked, no
 * duplicate detection here (the callers know which names matter), no numbers but what they ask for.
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

#endif
