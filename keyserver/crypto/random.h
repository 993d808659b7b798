/* What the server makes up: ids and tokens. */
#ifndef KS_CRYPTO_RANDOM_H
#define KS_CRYPTO_RANDOM_H

#include <stddef.h>

#include "format/base/err.h"

enum { KS_ID = 32, KS_TOKEN_LEN = 43 };

/* Copies text into an array of `cap` bytes; what does not fit is cut off. */
void ks_copy(char *to, size_t cap, const char *from);

/* Random: 32 hexadecimal digits; 43 characters of base64url (256 bits). */
int ks_new_id(char out[static KS_ID + 1], struct ct_err *err);
int ks_new_token(char out[static KS_TOKEN_LEN + 1], struct ct_err *err);

#endif
