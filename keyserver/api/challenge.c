#include <string.h>

#include "keyserver/api/api.h"
#include "keyserver/crypto/stamp.h"

int ks_post_challenge(struct ks_request *r, struct ct_err *err)
{
    char text[KS_STAMP_TEXT + 1];
    struct ks_server *s = r->server;
    const json_t *versions = json_object_get(r->body, "versions");
    struct ks_stamp stamp = {.kind = 'c', .expires = ks_now() + s->opt.challenge_seconds};
    int rc = ks_body_members(r, "versions");
    rc = rc ? rc : ks_common_version(r, versions, &stamp.version);
    if (rc) {
        return rc;
    }
    json_t *key = ks_server_key_current(s, err);
    if (!key || ks_stamp_make(s->stamp_key, &stamp, text, err)) {
        json_decref(key);
        return -1;
    }
    rc = ks_answer_signed(r, "kvfs-challenge+jws",
                          json_pack("{s:i,s:s,s:o,s:I}", "version", stamp.version, "challenge",
                                    text, "server_key", key, "expires_in",
                                    (json_int_t)s->opt.challenge_seconds),
                          err);
    if (rc == 0 && json_object_set_new(r->data, "identity", kx_jwk_public(s->identity))) {
        rc = ct_err_set(err, CT_NOMEM, "no memory for an answer");
    }
    return rc;
}
