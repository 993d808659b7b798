/* What the files of meta share. */
#ifndef CT_META_PARTS_H
#define CT_META_PARTS_H

#include "format/meta.h"

/* The text of a field; NULL and CT_MALFORMED where it is missing. */
const struct ct_span *ct_meta_field(const struct ct_header *h, const char *name,
                                    struct ct_err *err);
/* Copies a scanner's error out and says which field it was in; returns -1. */
int ct_meta_failed(const char *name, const struct ct_err *mine, struct ct_err *err);

#endif
