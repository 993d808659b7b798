/*
 * What this process is made of, for the evidence: the executable and every library of which code is
 * mapped. Each is read from the path in /proc/self/maps and must still be the file that is mapped
 * (by inode), so that a library replaced meanwhile is an error (CT_STALE) and not a wrong digest.
 *
 * To be called before the sandbox closes. A claim of the process about itself (`self-reported`):
 * whoever holds a deploy key can make it by hand.
 */
#ifndef KC_MEASURE_H
#define KC_MEASURE_H

#include <jansson.h>

#include "format/base/err.h"

/* What somebody else measured: kinds "tree" and "policy", digest in hexadecimal. */
struct kc_measured {
    char kind[16], name[256], sha256[65];
};

/* {"profile": profile, "items": [... and `more`]}, owned by the caller; NULL with err. */
json_t *kc_measure(const char *profile, const struct kc_measured *more, size_t n,
                   struct ct_err *err);

#endif
