#include "keyserver/crypto/stamp.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <string.h>

enum { TIME = 8, BODY = 2 + TIME + KS_STAMP_NONCE, MAC = 31, WHOLE = BODY + MAC };

_Static_assert(WHOLE / 3 * 4 == KS_STAMP_TEXT && WHOLE % 3 == 0, "a stamp is whole base64 groups");

static int mac(const struct ct_secret *key, const uint8_t *body, uint8_t out[static 32],
               struct ct_err *err)
{
    unsigned n = 32;
    return HMAC(EVP_sha256(), ct_secret_peek(key), (int)ct_secret_len(key), body, BODY, out, &n)
               ? 0
               : ct_err_set(err, CT_IO, "HMAC failed");
}

int ks_stamp_make(const struct ct_secret *key, struct ks_stamp *s,
                  char out[static KS_STAMP_TEXT + 1], struct ct_err *err)
{
    uint8_t whole[BODY + 32];
    ct_autobuf text = {0};
    if (RAND_bytes(s->nonce, sizeof(s->nonce)) != 1) {
        return ct_err_set(err, CT_IO, "no random numbers");
    }
    whole[0] = (uint8_t)s->kind;
    whole[1] = s->version;
    ct_put_le64(whole + 2, (uint64_t)s->expires);
    memcpy(whole + 2 + TIME, s->nonce, sizeof(s->nonce));
    if (mac(key, whole, whole + BODY, err)) {
        return -1;
    }
    ct_base64url_put(&text, whole, WHOLE);
    ct_buf_putc(&text, '\0');
    if (ct_buf_ok(&text, err)) {
        return -1;
    }
    memcpy(out, text.data, KS_STAMP_TEXT + 1);
    return 0;
}

int ks_stamp_read(const struct ct_secret *key, char kind, const char *text, struct ks_stamp *s,
                  struct ct_err *err)
{
    uint8_t whole[WHOLE];
    uint8_t wanted[32];
    size_t n = strlen(text);
    if (n != KS_STAMP_TEXT || strchr(text, '+') || strchr(text, '/') ||
        ct_base64_decode(text, n, whole, sizeof(whole)) != WHOLE || whole[0] != (uint8_t)kind) {
        return ct_err_set(err, CT_REJECTED, "not of this server's making");
    }
    if (mac(key, whole, wanted, err)) {
        return -1;
    }
    if (CRYPTO_memcmp(wanted, whole + BODY, MAC) != 0) {
        return ct_err_set(err, CT_REJECTED, "not of this server's making");
    }
    s->kind = kind;
    s->version = whole[1];
    s->expires = (int64_t)ct_le64(whole + 2);
    memcpy(s->nonce, whole + 2 + TIME, sizeof(s->nonce));
    return 0;
}
