#include "keyserver/crypto/random.h"

#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>

#include "format/base/bytes.h"

void ks_copy(char *to, size_t cap, const char *from)
{
    (void)snprintf(to, cap, "%s", from);
}

int ks_new_id(char out[static KS_ID + 1], struct ct_err *err)
{
    uint8_t random[KS_ID / 2];
    if (RAND_bytes(random, sizeof(random)) != 1) {
        return ct_err_set(err, CT_IO, "no random numbers");
    }
    ct_hex(out, random, sizeof(random));
    return 0;
}

int ks_new_token(char out[static KS_TOKEN_LEN + 1], struct ct_err *err)
{
    uint8_t random[32];
    ct_autobuf text = {0};
    if (RAND_priv_bytes(random, sizeof(random)) != 1) {
        return ct_err_set(err, CT_IO, "no random numbers");
    }
    ct_base64url_put(&text, random, sizeof(random));
    ct_buf_putc(&text, '\0');
    if (ct_buf_ok(&text, err)) {
        return -1;
    }
    memcpy(out, text.data, KS_TOKEN_LEN + 1);
    return 0;
}
