#include <criterion/criterion.h>
#include <string.h>

#include "format/base/secret.h"
#include "format/protocol/digest.h"
#include "format/protocol/jose.h"

/* The server's reading of tests/vectors/protocol/, which were made without it. */
#define DIR TEST_VECTORS "/protocol/"

static json_t *load(const char *path)
{
    json_error_t why;
    json_t *j = json_load_file(path, 0, &why);
    cr_assert(j, "%s: %s", path, why.text);
    return j;
}

static const char *text(const json_t *object, const char *name)
{
    const char *t = json_string_value(json_object_get(object, name));
    cr_assert(t, "%s", name);
    return t;
}

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
}

TestSuite(protocol, .init = setup, .timeout = 60);

Test(protocol, digests)
{
    struct ct_err err = CT_ERR_INIT;
    char out[KX_HEX + 1];
    char thumb[KX_THUMBPRINT + 1];
    size_t i = 0;
    const json_t *e = NULL;
    kx_autojson v = load(DIR "digests.json");
    json_array_foreach(json_object_get(v, "thumbprints"), i, e)
    {
        cr_assert_eq(kx_jwk_check(json_object_get(e, "jwk"), &err), 0, "%s", err.msg);
        cr_assert_eq(kx_jwk_thumbprint(json_object_get(e, "jwk"), thumb, &err), 0);
        cr_expect_str_eq(thumb, text(e, "thumbprint"));
    }
    e = json_object_get(v, "measurement");
    cr_assert_eq(kx_measurement_digest(json_object_get(e, "measurements"), out, &err), 0, "%s",
                 err.msg);
    cr_expect_str_eq(out, text(e, "sha256"));
    e = json_object_get(v, "evidence");
    const json_t *thumbs = json_object_get(e, "thumbprints");
    cr_assert_eq(kx_evidence_digest(text(e, "challenge"),
                                    json_string_value(json_array_get(thumbs, 0)),
                                    json_string_value(json_array_get(thumbs, 1)),
                                    json_string_value(json_array_get(thumbs, 2)),
                                    text(e, "measurement"), out, &err),
                 0);
    cr_expect_str_eq(out, text(e, "sha256"));
    json_array_foreach(json_object_get(v, "headers"), i, e)
    {
        cr_assert_eq(kx_headers_digest(json_object_get(e, "headers"), out, &err), 0, "%s", err.msg);
        cr_expect_str_eq(out, text(e, "sha256"));
    }
    e = json_object_get(v, "ticket");
    cr_assert_eq(kx_hex_sha256(text(e, "ticket"), strlen(text(e, "ticket")), out, &err), 0);
    cr_expect_str_eq(out, text(e, "sha256"));
}

Test(protocol, audit_chain)
{
    struct ct_err err = CT_ERR_INIT;
    char head[KX_HEX + 1];
    size_t i = 0;
    const json_t *record = NULL;
    kx_autojson v = load(DIR "digests.json");
    const json_t *a = json_object_get(v, "audit");
    const json_t *heads = json_object_get(a, "heads");
    cr_assert_eq(kx_audit_start(text(a, "lease"), head, &err), 0);
    cr_expect_str_eq(head, json_string_value(json_array_get(heads, 0)));
    json_array_foreach(json_object_get(a, "records"), i, record)
    {
        cr_assert_eq(kx_audit_next(head, (int64_t)i + 1, json_string_value(record), &err), 0);
        cr_expect_str_eq(head, json_string_value(json_array_get(heads, i + 1)));
    }
}

static void expect_each(const json_t *list, bool (*is)(const char *), bool good)
{
    size_t i = 0;
    const json_t *name = NULL;
    json_array_foreach(list, i, name)
    {
        cr_expect_eq(is(json_string_value(name)), good, "%s", json_string_value(name));
    }
}

Test(protocol, names)
{
    kx_autojson v = load(DIR "digests.json");
    const json_t *paths = json_object_get(v, "paths");
    const json_t *names = json_object_get(v, "names");
    expect_each(json_object_get(paths, "good"), kx_is_path, true);
    expect_each(json_object_get(paths, "bad"), kx_is_path, false);
    expect_each(json_object_get(names, "good"), kx_is_name, true);
    expect_each(json_object_get(names, "bad"), kx_is_name, false);
    cr_expect(!kx_is_path("a\xff"));
}

static int open_object(const json_t *object, const char *typ, const json_t *key, json_t **plain,
                       struct ct_err *err)
{
    char kid[KX_THUMBPRINT + 1];
    if (strstr(typ, "+jws")) {
        kx_autojson public = kx_jwk_public(key);
        return kx_jws_verify(object, typ, public, plain, err);
    }
    *plain = NULL;
    return kx_jwe_kid(object, typ, kid, err) || kx_jwe_decrypt(object, key, plain, err) ? -1 : 0;
}

Test(protocol, objects)
{
    size_t i = 0;
    const json_t *e = NULL;
    kx_autojson v = load(DIR "jose.json");
    const json_t *keys = json_object_get(v, "keys");
    json_array_foreach(json_object_get(v, "objects"), i, e)
    {
        struct ct_err err = CT_ERR_INIT;
        const char *typ = text(e, "typ");
        const json_t *key = json_object_get(keys, text(e, "key"));
        json_t *plain = NULL;
        cr_expect_eq(open_object(json_object_get(e, "object"), typ, key, &plain, &err), 0, "%s: %s",
                     typ, err.msg);
        cr_expect(json_equal(plain, json_object_get(e, "plain")), "%s", typ);
        json_decref(plain);

        /* And what the server makes, it reads. */
        kx_autojson public = kx_jwk_public(key);
        kx_autojson made = strstr(typ, "+jws")
                               ? kx_jws_sign(key, typ, json_object_get(e, "plain"), &err)
                               : kx_jwe_encrypt(public, typ, json_object_get(e, "plain"), &err);
        cr_expect_eq(open_object(made, typ, key, &plain, &err), 0, "%s: %s", typ, err.msg);
        cr_expect(json_equal(plain, json_object_get(e, "plain")), "%s", typ);
        json_decref(plain);
    }
}

Test(protocol, refused)
{
    static const char *const kinds[] = {"jws", "jwe"};
    kx_autojson v = load(DIR "refused.json");
    kx_autojson jose = load(DIR "jose.json");
    for (int k = 0; k < 2; k++) {
        size_t i = 0;
        const json_t *e = NULL;
        const json_t *kind = json_object_get(v, kinds[k]);
        const json_t *key = json_object_get(json_object_get(jose, "keys"), text(kind, "key"));
        json_array_foreach(json_object_get(kind, "objects"), i, e)
        {
            struct ct_err err = CT_ERR_INIT;
            json_t *plain = NULL;
            int r = open_object(json_object_get(e, "object"), text(kind, "typ"), key, &plain, &err);
            cr_expect_eq(r, -1, "%s", text(e, "name"));
            cr_expect_null(plain);
            enum ct_code wanted = strcmp(text(e, "why"), "malformed") == 0     ? CT_MALFORMED
                                  : strcmp(text(e, "why"), "unsupported") == 0 ? CT_UNSUPPORTED
                                                                               : CT_REJECTED;
            cr_expect_eq(err.code, wanted, "%s: %s: %s", text(e, "name"), ct_code_name(err.code),
                         err.msg);
        }
    }
}

Test(protocol, measurements_refused)
{
    static const char *const bad[] = {
        "{}",
        "{\"profile\":\"none\",\"items\":[]}",
        "{\"profile\":\"None\",\"items\":[{\"kind\":\"tree\",\"name\":\"a\",\"sha256\":\"@\"}]}",
        "{\"profile\":\"none\",\"items\":[{\"kind\":\"tree\",\"name\":\"a\",\"sha256\":\"AB\"}]}",
        "{\"profile\":\"none\",\"items\":[{\"kind\":\"file\",\"name\":\"a\",\"sha256\":\"@\"}]}",
        "{\"profile\":\"none\",\"items\":[{\"kind\":\"tree\",\"name\":\"a\\nb\",\"sha256\":\"@\"}]"
        "}",
        "{\"profile\":\"none\",\"items\":[{\"kind\":\"tree\",\"name\":\"\",\"sha256\":\"@\"}]}",
        "{\"profile\":\"none\",\"items\":[{\"kind\":\"tree\",\"name\":\"a\",\"sha256\":\"@\"},"
        "{\"kind\":\"tree\",\"name\":\"a\",\"sha256\":\"@\"}]}",
        "{\"profile\":\"none\",\"more\":1,\"items\":[{\"kind\":\"tree\",\"name\":\"a\","
        "\"sha256\":\"@\"}]}",
    };
    static const char digest[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        struct ct_err err = CT_ERR_INIT;
        char out[KX_HEX + 1];
        ct_autobuf json = {0};
        for (const char *p = bad[i]; *p; p++) {
            if (*p == '@') {
                ct_buf_puts(&json, digest);
            } else {
                ct_buf_putc(&json, *p);
            }
        }
        kx_autojson m = kx_json_parse(json.data, json.len, &err);
        cr_assert(m, "%zu", i);
        cr_expect_eq(kx_measurement_digest(m, out, &err), -1, "%zu", i);
        cr_expect_eq(err.code, CT_MALFORMED);
    }
}
