#include "format/jws.h"
#include "manifest_fixture.h"

#define GOOD_HEADER "{\"alg\":\"EdDSA\",\"kid\":\"" KID "\",\"typ\":\"" TYP "\"}"
#define SHA "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" /* 32 zero bytes */
#define ENTRY_A "{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "\"}"
#define ENTRY_B "{\"path\":\"b\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "\"}"

TestSuite(manifest_attacks, .init = setup, .fini = teardown);

/* What any holder of the key can make: a protected header and a payload of his choice. */
static void sign_parts(const char *header, const char *payload, size_t n, struct ct_buf *out)
{
    uint8_t sig[CT_ED25519_SIG];
    ct_autobuf input = {0};
    ct_base64url_put(&input, (const uint8_t *)header, strlen(header));
    size_t head = input.len;
    ct_buf_putc(&input, '.');
    ct_base64url_put(&input, (const uint8_t *)payload, n);
    cr_assert_eq(ct_ed25519_sign(seed, input.data, input.len, sig, NULL), 0);
    ct_buf_printf(out, "{\"payload\":\"%.*s\",\"protected\":\"%.*s\",\"signature\":\"",
                  (int)(input.len - head - 1), (char *)input.data + head + 1, (int)head,
                  (char *)input.data);
    ct_base64url_put(out, sig, sizeof(sig));
    ct_buf_puts(out, "\"}");
}

static enum ct_code parse_payload(const char *payload, struct ct_err *err)
{
    ct_autobuf jws = {0};
    sign_parts(GOOD_HEADER, payload, strlen(payload), &jws);
    return parse(&jws, NULL, err);
}

/* ---- tampering ---- */

Test(manifest_attacks, every_changed_byte, .timeout = 100)
{
    struct ct_err err;
    ct_autobuf jws = {0};
    build(&jws, 3);
    static const uint8_t flips[] = {0x01, 0x02, 0x20, 0x80};
    for (size_t i = 0; i + 1 < jws.len; i++) { /* the last one is a newline */
        for (size_t k = 0; k < sizeof(flips); k++) {
            jws.data[i] ^= flips[k];
            cr_expect_neq(parse(&jws, NULL, &err), CT_OK, "byte %zu ^ %x", i, flips[k]);
            jws.data[i] ^= flips[k];
        }
    }
    cr_assert_eq(parse(&jws, NULL, &err), CT_OK);
}

Test(manifest_attacks, every_truncation)
{
    struct ct_err err;
    ct_autobuf jws = {0};
    build(&jws, 3);
    size_t whole = jws.len - 1; /* without the newline it is whole */
    for (jws.len = 0; jws.len < whole; jws.len++) {
        cr_expect_eq(parse(&jws, NULL, &err), CT_MALFORMED, "%zu bytes", jws.len);
    }
    cr_assert_eq(parse(&jws, NULL, &err), CT_OK);
}

Test(manifest_attacks, other_keys)
{
    struct ct_err err = CT_ERR_INIT;
    ct_autobuf other = {0};
    ct_autobuf unknown = {0};
    struct ct_manifest_builder *b = ct_manifest_builder_new(1, NULL);
    cr_assert_eq(ct_manifest_builder_sign(b, other_seed, kid, &other, &err), 0);
    cr_expect_eq(parse(&other, NULL, &err), CT_REJECTED);
    cr_assert_eq(ct_manifest_builder_sign(b, seed, (struct ct_span){"s-2", 3}, &unknown, &err), 0);
    cr_expect_eq(parse(&unknown, NULL, &err), CT_NOKEY);
    ct_manifest_builder_free(b);
}

/* ---- what JOSE would allow, or an attacker try: all signed with the right key ---- */

#define PAYLOAD "{\"version\":1,\"generation\":1,\"entries\":[]}"
#define REST ",\"kid\":\"" KID "\",\"typ\":\"" TYP "\"}"

Test(manifest_attacks, protected_headers)
{
    static const struct {
        const char *header;
        enum ct_code code;
    } table[] = {
        {GOOD_HEADER, CT_OK},
        {" { \"typ\" : \"" TYP "\",\n\"kid\":\"" KID "\",\"alg\":\"EdD\\u0053A\"} ", CT_OK},
        {"{\"alg\":\"none\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"None\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"HS256\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"RS256\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"ES256\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"Ed25519\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"eddsa\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"EdDSA \"" REST, CT_UNSUPPORTED},
        {"{\"alg\":\"\"" REST, CT_UNSUPPORTED},
        {"{\"alg\":null" REST, CT_MALFORMED},
        {"{\"alg\":[\"EdDSA\"]" REST, CT_MALFORMED},
        {"{\"kid\":\"" KID "\",\"typ\":\"" TYP "\"}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"alg\":\"EdDSA\"" REST, CT_MALFORMED},
        {"{\"alg\":\"none\",\"alg\":\"EdDSA\"" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"crit\":[]" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"crit\":[\"exp\"],\"exp\":1" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"b64\":false,\"crit\":[\"b64\"]" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"b64\":true" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"zip\":\"DEF\"" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"jku\":\"https://evil\"" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"x5u\":\"https://evil\"" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"x5c\":[]" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"x5t\":\"\"" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"jwk\":{\"kty\":\"OKP\"}" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"cty\":\"json\"" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"\":1" REST, CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"" KID "\"}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"" KID "\",\"typ\":\"JWT\"}", CT_REJECTED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"" KID "\",\"typ\":\"KVFS-manifest+json\"}", CT_REJECTED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"" KID "\",\"typ\":\"application/" TYP "\"}", CT_REJECTED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"" KID "\",\"typ\":null}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" TYP "\"}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"\",\"typ\":\"" TYP "\"}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"kid\":7,\"typ\":\"" TYP "\"}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"s-test\\u0000\",\"typ\":\"" TYP "\"}", CT_MALFORMED},
        {"{\"alg\":\"EdDSA\",\"kid\":\"../s\",\"typ\":\"" TYP "\"}", CT_NOKEY},
        {"[]", CT_MALFORMED},
        {"\"EdDSA\"", CT_MALFORMED},
        {"{}", CT_MALFORMED},
        {"", CT_MALFORMED},
        {GOOD_HEADER "x", CT_MALFORMED},
        {"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", CT_MALFORMED},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct ct_err err;
        ct_autobuf jws = {0};
        sign_parts(table[i].header, PAYLOAD, strlen(PAYLOAD), &jws);
        enum ct_code code = parse(&jws, NULL, &err);
        cr_expect_eq(code, table[i].code, "%s: %s: %s", table[i].header, ct_code_name(code),
                     err.msg);
    }
}

Test(manifest_attacks, protected_header_too_long)
{
    struct ct_err err;
    ct_autobuf jws = {0};
    ct_autobuf header = {0};
    ct_buf_puts(&header, GOOD_HEADER);
    for (int i = 0; i < 3000; i++) {
        ct_buf_putc(&header, ' ');
    }
    ct_buf_putc(&header, '\0');
    sign_parts((char *)header.data, PAYLOAD, strlen(PAYLOAD), &jws);
    cr_expect_eq(parse(&jws, NULL, &err), CT_MALFORMED);
}

/* The outer object, its parts cut out of a good one: P, Y and S stand for them. */
Test(manifest_attacks, outer_objects)
{
    static const struct {
        const char *text;
        enum ct_code code;
    } table[] = {
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}", CT_OK},
        {"\t{ \"signature\" :\n\"S\" , \"protected\":\"P\",\r\"payload\":\"Y\" }\n\n", CT_OK},
        {"P.Y.S", CT_MALFORMED},
        {"{\"payload\":\"Y\",\"signatures\":[{\"protected\":\"P\",\"signature\":\"S\"}]}",
         CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\",\"header\":{}}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\",\"header\":{\"kid\":\"x\"}}",
         CT_MALFORMED},
        {"{\"header\":\"P\",\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}",
         CT_MALFORMED},
        {"{\"x\":\"\",\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"payload\":\"Y\",\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}",
         CT_MALFORMED},
        {"{\"payload\":\"\",\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}",
         CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"payload\":\"Y\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":null}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S=\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S==\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"SAAA\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y=\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y \",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"YA\",\"signature\":\"S\"}", CT_REJECTED},
        {"{\"protected\":\"P\",\"payload\":\"\",\"signature\":\"S\"}", CT_REJECTED},
        {"{\"protected\":\"P\",\"payload\":\"P\",\"signature\":\"S\"}", CT_REJECTED},
        {"{\"protected\":\"\",\"payload\":\"Y\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"protect\\u0065d\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\",}", CT_MALFORMED},
        {"{\"protected\":\"P\" \"payload\":\"Y\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}}", CT_MALFORMED},
        {"{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}{}", CT_MALFORMED},
        {"\xef\xbb\xbf{\"protected\":\"P\",\"payload\":\"Y\",\"signature\":\"S\"}", CT_MALFORMED},
        {"{'protected':'P','payload':'Y','signature':'S'}", CT_MALFORMED},
        {"{}", CT_MALFORMED},
        {"[]", CT_MALFORMED},
        {"", CT_MALFORMED},
        {"null", CT_MALFORMED},
    };
    struct ct_jws parts;
    struct ct_err err;
    ct_autobuf good = {0};
    sign_parts(GOOD_HEADER, PAYLOAD, strlen(PAYLOAD), &good);
    cr_assert_eq(ct_jws_parse(good.data, good.len, TYP, &parts, &err), 0);
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        ct_autobuf jws = {0};
        for (const char *p = table[i].text; *p; p++) {
            const struct ct_span *part = *p == 'P'   ? &parts.protected
                                         : *p == 'Y' ? &parts.payload
                                         : *p == 'S' ? &parts.signature
                                                     : NULL;
            ct_buf_put(&jws, part ? part->p : p, part ? part->n : 1);
        }
        enum ct_code code = parse(&jws, NULL, &err);
        cr_expect_eq(code, table[i].code, "%s: %s: %s", table[i].text, ct_code_name(code), err.msg);
    }
}

Test(manifest_attacks, larger_than_allowed)
{
    struct ct_err err;
    ct_autobuf jws = {0};
    build(&jws, 1);
    cr_assert(ct_buf_reserve(&jws, CT_MANIFEST_MAX));
    size_t n = jws.len;
    memset(jws.data + n, ' ', CT_MANIFEST_MAX);
    jws.len = CT_MANIFEST_MAX;
    cr_expect_eq(parse(&jws, NULL, &err), CT_OK, "%s", err.msg);
    jws.len++;
    cr_expect_eq(parse(&jws, NULL, &err), CT_MALFORMED);
}

/* ---- payloads, all signed ---- */

#define WITH(entries) "{\"version\":1,\"generation\":1,\"entries\":[" entries "]}"
#define FILE_OF(path) "{\"path\":\"" path "\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "\"}"
#define SHARD(rest)                                                                                \
    WITH("{\"path\":\"m\",\"kind\":\"shard\",\"body\":100,\"header\":\"" SHA "\"" rest "}")

Test(manifest_attacks, payloads)
{
    static const struct {
        const char *payload;
        enum ct_code code;
    } table[] = {
        {WITH(""), CT_OK},
        {WITH(ENTRY_A), CT_OK},
        {WITH(ENTRY_A "," ENTRY_B), CT_OK},
        {" { \"entries\" : [ ] ,\n\"generation\":9007199254740991,\t\"version\":1 } ", CT_OK},
        {"{\"version\":2,\"generation\":1,\"entries\":[]}", CT_UNSUPPORTED},
        {"{\"version\":0,\"generation\":1,\"entries\":[]}", CT_UNSUPPORTED},
        {"{\"version\":2,\"generation\":1,\"entries\":[],\"new\":{\"in\":[2]}}", CT_UNSUPPORTED},
        {"{\"version\":\"1\",\"generation\":1,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1.0,\"generation\":1,\"entries\":[]}", CT_MALFORMED},
        {"{\"generation\":1,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":-1,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":-0,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":01,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1e0,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":9007199254740992,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":99999999999999999999999,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":null,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1,\"entries\":{}}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1,\"entries\":null}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1,\"entries\":[],\"more\":1}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1,\"generation\":1,\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"generation\":1,\"entries\":[],\"entries\":[]}", CT_MALFORMED},
        {"{\"version\":1,\"version\":2,\"generation\":1,\"entries\":[]}", CT_MALFORMED},
        {WITH("") "x", CT_MALFORMED},
        {WITH("") "{}", CT_MALFORMED},
        {"[]", CT_MALFORMED},
        {"", CT_MALFORMED},
        {"{", CT_MALFORMED},
        {"1", CT_MALFORMED},
        {WITH("1"), CT_MALFORMED},
        {WITH("{}"), CT_MALFORMED},
        {WITH("[]"), CT_MALFORMED},
        {WITH(ENTRY_A ","), CT_MALFORMED},
        {WITH(ENTRY_A " " ENTRY_B), CT_MALFORMED},
        {WITH(ENTRY_B "," ENTRY_A), CT_MALFORMED},
        {WITH(ENTRY_A "," ENTRY_A), CT_MALFORMED},
        {WITH(ENTRY_A "," FILE_OF("a/b")), CT_MALFORMED},
        {WITH(ENTRY_A "," FILE_OF("a.b") "," FILE_OF("a/b")), CT_MALFORMED},
        {WITH(FILE_OF("\\u0061") "," ENTRY_B), CT_OK},
        {WITH(ENTRY_A "," FILE_OF("\\u0061")), CT_MALFORMED},
        {WITH(FILE_OF("a\\\\b")), CT_OK},
        {WITH(FILE_OF("a\\u0000b")), CT_MALFORMED},
        {WITH(FILE_OF("")), CT_MALFORMED},
        {WITH(FILE_OF(".")), CT_MALFORMED},
        {WITH(FILE_OF("..")), CT_MALFORMED},
        {WITH(FILE_OF("../a")), CT_MALFORMED},
        {WITH(FILE_OF("a/../b")), CT_MALFORMED},
        {WITH(FILE_OF("\\u002e\\u002e/b")), CT_MALFORMED},
        {WITH(FILE_OF("a//b")), CT_MALFORMED},
        {WITH(FILE_OF("/a")), CT_MALFORMED},
        {WITH(FILE_OF("\\/a")), CT_MALFORMED},
        {WITH(FILE_OF("a/")), CT_MALFORMED},
        {WITH(FILE_OF("kvfs.manifest")), CT_MALFORMED},
        {WITH(FILE_OF("\xff")), CT_MALFORMED},
        {WITH(FILE_OF("\\ud800")), CT_MALFORMED},
        {WITH(FILE_OF("\xed\xa0\x80")), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"sha256\":\"" SHA "\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"size\":1,\"sha256\":\"" SHA "\"}"), CT_MALFORMED},
        {WITH("{\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "\"}"), CT_MALFORMED},
        {WITH("{\"path\":1,\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"dir\",\"size\":1,\"sha256\":\"" SHA "\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "=\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "A\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA SHA "\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA "\",\"x\":1}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA
              "\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA
              "\",\"target\":\"b\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA
              "\",\"pieces\":\"" SHA "\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1,\"sha256\":\"" SHA
              "\",\"pieces\":\"\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1048577,\"sha256\":\"" SHA "\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":1048577,\"sha256\":\"" SHA
              "\",\"pieces\":\"" SHA "\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"file\",\"size\":9007199254740991,\"sha256\":\"" SHA
              "\",\"pieces\":\"" SHA "\"}"),
         CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"link\",\"target\":\"../b\"}"), CT_OK},
        {WITH("{\"target\":\"b\",\"kind\":\"link\",\"path\":\"a\"}"), CT_OK},
        {WITH("{\"path\":\"a\",\"kind\":\"link\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"link\",\"target\":\"\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"link\",\"target\":\"/b\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"link\",\"target\":\"b\\u0000\"}"), CT_MALFORMED},
        {WITH("{\"path\":\"a\",\"kind\":\"link\",\"target\":\"b\",\"size\":1}"), CT_MALFORMED},
        {SHARD(""), CT_OK},
        {SHARD(",\"plain\":[{\"begin\":0,\"end\":100,\"pieces\":\"" SHA "\"}]"), CT_OK},
        {SHARD(",\"size\":1"), CT_MALFORMED},
        {SHARD(",\"plain\":[]"), CT_MALFORMED},
        {SHARD(",\"plain\":{}"), CT_MALFORMED},
        {SHARD(",\"plain\":[{}]"), CT_MALFORMED},
        {SHARD(",\"plain\":[{\"begin\":0,\"end\":101,\"pieces\":\"" SHA "\"}]"), CT_MALFORMED},
        {SHARD(",\"plain\":[{\"begin\":5,\"end\":5,\"pieces\":\"\"}]"), CT_MALFORMED},
        {SHARD(",\"plain\":[{\"begin\":5,\"end\":6,\"pieces\":\"\"}]"), CT_MALFORMED},
        {SHARD(",\"plain\":[{\"begin\":6,\"end\":5,\"pieces\":\"" SHA "\"}]"), CT_MALFORMED},
        {SHARD(",\"plain\":[{\"begin\":0,\"end\":5,\"pieces\":\"" SHA "\",\"x\":1}]"),
         CT_MALFORMED},
        {SHARD(",\"plain\":[{\"begin\":0,\"end\":5,\"pieces\":\"" SHA "\"},"
               "{\"begin\":5,\"end\":9,\"pieces\":\"" SHA "\"}]"),
         CT_OK},
        {SHARD(",\"plain\":[{\"begin\":0,\"end\":5,\"pieces\":\"" SHA "\"},"
               "{\"begin\":4,\"end\":9,\"pieces\":\"" SHA "\"}]"),
         CT_MALFORMED},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct ct_err err;
        enum ct_code code = parse_payload(table[i].payload, &err);
        cr_expect_eq(code, table[i].code, "%s: %s: %s", table[i].payload, ct_code_name(code),
                     err.msg);
    }
}
