#include <criterion/criterion.h>
#include <string.h>

#include "format/base/secret.h"
#include "keyclient/audit.h"

/* Records for a server that is played here: one that takes them, one whose answer was lost, one
 * that alters a single thing. */

#define LEASE "00112233445566778899aabbccddeeff"

static json_t *identity;
static struct kc_key key;
static struct kc_audit at;

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
    identity = kx_jwk_new(NULL);
    cr_assert(identity);
    cr_assert_eq(kc_key_make(&key, NULL), 0);
    at = (struct kc_audit){.lease = LEASE};
    cr_assert_eq(kx_audit_start(LEASE, at.head, NULL), 0);
}

static void teardown(void)
{
    json_decref(identity);
    kc_key_free(&key);
}

TestSuite(kc_audit, .init = setup, .fini = teardown);

static json_t *head(int64_t sequence, const char *digest)
{
    return json_pack("{s:i,s:s,s:I,s:s}", "version", 1, "lease", LEASE, "sequence",
                     (json_int_t)sequence, "head", digest);
}

/* What kc_audit_take() says to an envelope with `payload` (taken over), signed by `by`. */
static int take(const char *code, json_t *payload, const json_t *by, enum kc_again *again)
{
    kx_autojson mine = payload;
    kx_autojson public = kx_jwk_public(identity);
    kx_autojson envelope =
        json_pack("{s:b,s:{s:o},s:s,s:s?}", "success", code == NULL, "data", "signed",
                  kx_jws_sign(by, "kvfs-head+jws", mine, NULL), "message", "words", "error", code);
    char *text = json_dumps(envelope, 0);
    struct ct_err err = CT_ERR_INIT;
    int r =
        kc_audit_take(&at, public, code ? 409 : 200, (uint8_t *)text, strlen(text), again, &err);
    ct_wiping_free(text);
    return r;
}

static int take_head(const char *code, int64_t sequence, const char *digest)
{
    enum kc_again again = KC_STAYS;
    return take(code, head(sequence, digest), identity, &again);
}

Test(kc_audit, what_is_sent_is_the_chain_and_signed_by_the_audit_key)
{
    struct kc_request q = {0};
    struct ct_err err = CT_ERR_INIT;
    char want[KX_HEX + 1];
    memcpy(want, at.head, sizeof(want));
    cr_assert_eq(kx_audit_next(want, 1, "one", NULL), 0);
    cr_assert_eq(kx_audit_next(want, 2, "two", NULL), 0);
    cr_assert_eq(kc_audit_request(&at, &key, json_pack("[s,s]", "one", "two"), &q, &err), 0, "%s",
                 err.msg);
    cr_assert_str_eq(q.method, "POST");
    cr_assert_str_eq(q.path, "/api/deploy/v1/audit");
    kx_autojson body = kx_json_parse(q.body.data, q.body.len, &err);
    kx_autojson payload = NULL;
    cr_assert_eq(kx_jws_verify(json_object_get(body, "records"), "kvfs-audit+jws", key.public,
                               &payload, &err),
                 0, "%s", err.msg);
    kx_autojson wanted =
        json_pack("{s:i,s:s,s:i,s:s,s:[s,s],s:s}", "version", 1, "lease", LEASE, "first", 1,
                  "previous", at.head, "records", "one", "two", "head", want);
    cr_assert(json_equal(payload, wanted));
    ct_buf_free(&q.body);
    cr_assert_eq(take_head(NULL, 2, want), 0);
    cr_assert_eq(at.count, 2);
    cr_assert_str_eq(at.head, want);
}

Test(kc_audit, a_gap_says_what_the_server_has)
{
    char want[KX_HEX + 1];
    memcpy(want, at.head, sizeof(want));
    cr_assert_eq(kx_audit_next(want, 1, "one", NULL), 0);
    cr_assert_eq(take_head("audit_gap", 1, want), 0);
    cr_assert_eq(at.count, 1);
    cr_assert_str_eq(at.head, want);
}

Test(kc_audit, what_is_not_the_servers_word_changes_nothing)
{
    enum kc_again again = KC_STAYS;
    const struct kc_audit before = at;
    kx_autojson stranger = kx_jwk_new(NULL);
    cr_assert_eq(take("audit_gap", head(1, at.head), stranger, &again), -1);
    cr_assert_eq(take_head("lease_unknown", 1, at.head), -1);
    cr_assert_eq(take_head(NULL, 1, "not a digest"), -1);
    json_t *other = head(1, at.head);
    json_object_set_new(other, "lease", json_string("00000000000000000000000000000000"));
    cr_assert_eq(take(NULL, other, identity, &again), -1);
    other = head(1, at.head);
    json_object_set_new(other, "version", json_integer(2));
    cr_assert_eq(take(NULL, other, identity, &again), -1);
    cr_assert_eq(kc_audit_take(&at, identity, 0, (const uint8_t *)"down", 4, &again, NULL), -1);
    cr_assert_eq(again, KC_LATER);
    cr_assert_eq(kc_audit_take(&at, identity, 409, (const uint8_t *)"{}", 2, &again, NULL), -1);
    cr_assert_eq(before.count, at.count);
    cr_assert_str_eq(before.head, at.head);
}

/* The audit key goes on signing when all else is wiped. */
Test(kc_audit, a_key_that_is_kept_outlives_the_wiping)
{
    struct kc_key other = {0};
    cr_assert_eq(kc_key_make(&other, NULL), 0);
    ct_secret_keep(key.d);
    ct_secret_wipe_all();
    kx_autojson payload = head(1, at.head);
    kx_autojson pair = kc_key_pair(&key, NULL);
    kx_autojson jws = kx_jws_sign(pair, "kvfs-audit+jws", payload, NULL);
    kx_autojson back = NULL;
    cr_assert_eq(kx_jws_verify(jws, "kvfs-audit+jws", key.public, &back, NULL), 0);
    for (size_t i = 0; i < ct_secret_len(other.d); i++) {
        cr_assert_eq(ct_secret_peek(other.d)[i], 0);
    }
    kc_key_free(&other);
}
