/*
 * The serialised forms of a header: what is signed, what a manifest vouches for, what is shown.
 * All are compact JSON; strings are escaped as CryptoTensors' writer does (format/README.md 3).
 */
#ifndef CT_CANON_H
#define CT_CANON_H

#include "format/header.h"
#include "format/meta.h"

/* Appends the canonical header: what __signature__ signs. */
int ct_canon_signed(const struct ct_header *h, struct ct_buf *out, struct ct_err *err);

/* Appends the immutable part: the canonical header without __signature__ and __crypto_keys__, and
 * with only iv/tag/base_iv/tags left in __encryption__ (sorted by name, compact, standard base64
 * with padding whatever the file uses). Rewrapping does not change it. */
int ct_canon_immutable(const struct ct_header *h, const struct ct_keys_field *keys,
                       const struct ct_encryption_field *enc, struct ct_buf *out,
                       struct ct_err *err);

/* Appends the view's first bytes: length prefix, plain header (reserved fields dropped, metadata
 * sorted by bytes, no __metadata__ if nothing is left), padded with blanks to a multiple of 8. */
int ct_view_header(const struct ct_header *h, struct ct_buf *out, struct ct_err *err);

/* Appends the string as JSON, quotes included. */
void ct_canon_string(struct ct_buf *out, struct ct_span s);
/* Appends `"name":{"dtype":…,"shape":[…],"data_offsets":[b,e]}`. */
void ct_canon_tensor(struct ct_buf *out, const struct ct_tensor *t);

#endif
