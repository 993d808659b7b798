/*
 * The digests and names of PROTOCOL.md section 3. All digests are 64 lower-case hexadecimal digits
 * and a NUL. What comes from the network is checked here: CT_MALFORMED with a sentence.
 */
#ifndef KS_DIGEST_H
#define KS_DIGEST_H

#include <jansson.h>
#include <stdbool.h>

#include "format/base/bytes.h"

enum { KS_HEX = 64, KS_ID = 32, KS_ITEMS_MAX = 1024, KS_HEADERS_MAX = 10000, KS_TOKEN_LEN = 43 };

/* Copies text into an array of `cap` bytes; what does not fit is cut off. */
void ks_copy(char *to, size_t cap, const char *from);
int ks_hex_sha256(const void *p, size_t n, char out[static KS_HEX + 1], struct ct_err *err);
bool ks_is_hex(const char *text, size_t digits);
bool ks_is_name(const char *text);    /* half of a model's name */
bool ks_is_path(const char *text);    /* of a shard */
bool ks_is_profile(const char *text); /* of a guard profile */
/* UTF-8 without control characters, 1 to `max` bytes. */
bool ks_is_text(const char *text, size_t max);
/* Splits OWNER/NAME; both halves have room for 65 bytes. */
bool ks_split_model(const char *text, char *owner, char *name);

/* M, of {"profile", "items"}. */
int ks_measurement_digest(const json_t *measurements, char out[static KS_HEX + 1],
                          struct ct_err *err);
/* E. */
int ks_evidence_digest(const char *challenge, const char *sign, const char *decrypt,
                       const char *audit, const char *measurement, char out[static KS_HEX + 1],
                       struct ct_err *err);
/* Of [{"path", "sha256"}, …]; other members are not looked at. */
int ks_headers_digest(const json_t *headers, char out[static KS_HEX + 1], struct ct_err *err);
/* H(0), and H(n) out of H(n-1). */
int ks_audit_start(const char *lease, char out[static KS_HEX + 1], struct ct_err *err);
int ks_audit_next(char head[static KS_HEX + 1], int64_t number, const char *record,
                  struct ct_err *err);

/* Random: 32 hexadecimal digits; 43 characters of base64url (256 bits). */
int ks_new_id(char out[static KS_ID + 1], struct ct_err *err);
int ks_new_token(char out[static KS_TOKEN_LEN + 1], struct ct_err *err);

#endif
