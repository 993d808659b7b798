/*
 * The digests and names of keyserver/PROTOCOL.md section 3. All digests are 64 lower-case
 * hexadecimal digits and a NUL. What comes from the network is checked here: CT_MALFORMED with a
 * sentence.
 */
#ifndef KX_DIGEST_H
#define KX_DIGEST_H

#include <jansson.h>
#include <stdbool.h>

#include "format/base/bytes.h"

enum { KX_HEX = 64, KX_ITEMS_MAX = 1024, KX_HEADERS_MAX = 10000 };

int kx_hex_sha256(const void *p, size_t n, char out[static KX_HEX + 1], struct ct_err *err);
bool kx_is_hex(const char *text, size_t digits);
bool kx_is_name(const char *text);    /* half of a model's name */
bool kx_is_path(const char *text);    /* of a shard */
bool kx_is_profile(const char *text); /* of a guard profile */
/* UTF-8 without control characters, 1 to `max` bytes. */
bool kx_is_text(const char *text, size_t max);
/* Splits OWNER/NAME; both halves have room for 65 bytes. */
bool kx_split_model(const char *text, char *owner, char *name);

/* M, of {"profile", "items"}. */
int kx_measurement_digest(const json_t *measurements, char out[static KX_HEX + 1],
                          struct ct_err *err);
/* E. */
int kx_evidence_digest(const char *challenge, const char *sign, const char *decrypt,
                       const char *audit, const char *measurement, char out[static KX_HEX + 1],
                       struct ct_err *err);
/* Of [{"path", "sha256"}, …]; other members are not looked at. */
int kx_headers_digest(const json_t *headers, char out[static KX_HEX + 1], struct ct_err *err);
/* H(0), and H(n) out of H(n-1). */
int kx_audit_start(const char *lease, char out[static KX_HEX + 1], struct ct_err *err);
int kx_audit_next(char head[static KX_HEX + 1], int64_t number, const char *record,
                  struct ct_err *err);

#endif
