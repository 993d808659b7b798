/* A source that shows an encrypted file as the plain one: what rekey reads from. */
#ifndef CT_VIEW_SOURCE_H
#define CT_VIEW_SOURCE_H

#include "format/model.h"

/* `in` and `v` (the encrypted file and its version) are borrowed until it is closed; `plain`
 * receives the version to read it by. Every byte it gives was authenticated, as far as the file's
 * header says that it can be; CT_TAG or CT_REJECTED otherwise. `slots` extents are held. */
struct ct_source *ct_view_source(struct ct_source *in, const struct ct_version *v,
                                 struct ct_keysource *keys, size_t slots, struct ct_version *plain,
                                 struct ct_err *err);

#endif
