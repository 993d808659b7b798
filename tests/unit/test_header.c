/* Headers: every reference vector, tables of what is legal and what is not, and broken
 * files. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>

#include "format/base/secret.h"
#include "format/base/sha256.h"
#include "tests/unit/header_fixture.h"

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
}

TestSuite(header, .init = setup);

static const char *text(const json_t *entry, const char *name)
{
    return json_string_value(json_object_get(entry, name));
}

static uint64_t number(const json_t *entry, const char *name)
{
    return (uint64_t)json_integer_value(json_object_get(entry, name));
}

static struct ct_source *source_of(const char *file, struct ct_version *v)
{
    char path[512];
    struct ct_err err = CT_ERR_INIT;
    (void)snprintf(path, sizeof(path), TEST_VECTORS "/%s", file);
    struct ct_source *s = ct_source_fd(open(path, O_RDONLY | O_CLOEXEC), &err);
    cr_assert(s && s->ops->version(s, v, &err) == 0, "%s: %s", file, err.msg);
    return s;
}

/* What the view's header says, by jansson, against what the manifest of the vectors says. */
static void check_view(const json_t *entry, const struct ct_header *h)
{
    struct ct_err err = CT_ERR_INIT;
    ct_autobuf view = {0};
    json_error_t why;
    cr_assert_eq(ct_view_header(h, &view, &err), 0);
    cr_expect_eq(view.len, number(entry, "data_start"), "%s", text(entry, "file"));
    cr_expect_eq(ct_le64(view.data), view.len - 8);
    cr_expect_eq(view.len % 8, 0);
    cr_expect_eq(view.len + h->body_len, number(entry, "size"));
    json_t *root = json_loadb((char *)view.data + 8, view.len - 8,
                              JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    cr_assert(root, "%s: %s", text(entry, "file"), why.text);
    json_t *tensors = json_object_get(entry, "tensors");
    json_t *offsets = NULL;
    const char *name = NULL;
    json_object_foreach(tensors, name, offsets)
    {
        json_t *is = json_object_get(json_object_get(root, name), "data_offsets");
        cr_expect(json_equal(is, offsets), "%s: %s", text(entry, "file"), name);
    }
    json_t *metadata = json_object_get(root, "__metadata__");
    cr_expect_eq(json_object_size(root), json_object_size(tensors) + (metadata ? 1 : 0));
    cr_expect(!metadata || json_object_size(metadata) > 0);
    cr_expect_null(json_object_get(metadata, "__encryption__"));
    json_decref(root);
}

static void check_good(const json_t *entry)
{
    const char *file = text(entry, "file");
    struct ct_err err = CT_ERR_INIT;
    struct ct_version v;
    struct ct_measure m;
    ct_autobuf raw = {0};
    autoheader *h = NULL;
    uint8_t digest[CT_SHA256_LEN];
    char hex[2 * CT_SHA256_LEN + 1];
    struct ct_source *s = source_of(file, &v);
    cr_assert_eq(ct_header_read(s, &v, &raw, &h, &err), 0, "%s: %s", file, err.msg);
    cr_expect_eq(ct_header_measure(s, &v, &m, &err), 0, "%s: %s", file, err.msg);
    cr_expect_eq(m.kind, CT_KIND_ENCRYPTED);
    cr_expect_eq(m.view_size, number(entry, "size"), "%s", file);
    cr_expect_eq(m.json_len, h->json_len);
    cr_expect_eq(m.tensor_count, h->tensor_count);
    cr_expect_eq(h->tensor_count, json_object_size(json_object_get(entry, "tensors")));
    cr_expect_eq(raw.len, CT_PREFIX + h->json_len);
    cr_assert_eq(ct_sha256(raw.data, raw.len, digest, &err), 0);
    ct_hex(hex, digest, sizeof(digest));
    cr_expect_str_eq(hex, text(entry, "header_sha256"), "%s", file);
    for (size_t i = 0; i < h->tensor_count; i++) {
        cr_expect_eq(ct_header_find(h, h->tensors[i].name), (ptrdiff_t)i);
        cr_expect_gt(h->tensors[i].bits, 0);
    }
    check_view(entry, h);
    ct_source_close(s);
}

Test(header, good_vectors)
{
    json_t *manifest = json_load_file(TEST_VECTORS "/manifest.json", 0, NULL);
    size_t i = 0;
    json_t *entry = NULL;
    int models = 0;
    json_array_foreach(json_object_get(manifest, "good"), i, entry)
    {
        struct ct_version v;
        struct ct_measure m;
        if (json_object_get(entry, "data_start")) {
            check_good(entry);
            models++;
            continue;
        }
        struct ct_source *s = source_of(text(entry, "file"), &v);
        cr_expect_eq(ct_header_measure(s, &v, &m, NULL), 0);
        cr_expect_eq(m.kind, CT_KIND_OTHER, "%s", text(entry, "file"));
        cr_expect_eq(m.view_size, v.size);
        ct_source_close(s);
    }
    cr_expect_eq(models, 34);
    json_decref(manifest);
}

/* By the beginning of their names: those whose header itself is wrong. All others must parse. */
static bool header_is_bad(const char *file)
{
    static const char *const bad[] = {
        "offset-", "shape-", "raw-", "truncated-", "trailing-",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (strncmp(file + strlen("must-fail/"), bad[i], strlen(bad[i])) == 0) {
            return true;
        }
    }
    return false;
}

Test(header, must_fail_vectors)
{
    json_t *manifest = json_load_file(TEST_VECTORS "/manifest.json", 0, NULL);
    size_t i = 0;
    json_t *entry = NULL;
    int refused = 0;
    json_array_foreach(json_object_get(manifest, "must_fail"), i, entry)
    {
        const char *file = text(entry, "file");
        struct ct_err err = CT_ERR_INIT;
        struct ct_version v;
        struct ct_measure m;
        autoheader *h = NULL;
        struct ct_source *s = source_of(file, &v);
        int r = ct_header_read(s, &v, NULL, &h, &err);
        cr_expect_eq(r != 0, header_is_bad(file), "%s: %s", file, err.msg);
        if (r) {
            refused++;
            cr_expect_eq(err.code, CT_MALFORMED, "%s", file);
            cr_expect_str_eq(text(entry, "errno"), "EBADMSG");
        } else {
            ct_autobuf view = {0};
            cr_expect_eq(ct_header_measure(s, &v, &m, &err), 0, "%s: %s", file, err.msg);
            cr_assert_eq(ct_view_header(h, &view, &err), 0);
            cr_expect_eq(m.view_size, m.kind == CT_KIND_ENCRYPTED ? view.len + h->body_len : v.size,
                         "%s", file);
        }
        ct_source_close(s);
    }
    cr_expect_eq(refused, 18);
    json_decref(manifest);
}

#define A "\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}"
#define E(name, at) name ":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[" at "," at "]}"

static const struct {
    const char *json;
    uint64_t body;
    const char *names; /* of the tensors in order, each with a blank after it */
} legal[] = {
    {"{}", 0, ""},
    {"{}  \t\r\n", 0, ""},
    {"{\"__metadata__\":{}}", 0, ""},
    {"{" A "}", 4, "a "},
    {"{" A "}       ", 4, "a "},
    {"{\n  \"a\" : {\n \"data_offsets\" : [ 0 , 4 ],\t\"shape\":[ 4 ]\r, \"dtype\": \"U8\" } }\n",
     4, "a "},
    {"{\"__metadata__\":{\"b\":\"\",\"a\":\"\\u0000\"}," A "}", 4, "a "},
    {"{" A ",\"__metadata__\":{\"b\":\"\"}}", 4, "a "},
    {"{" A ",\"\\u005f_metadata__\":{\"b\":\"\"}}", 4, "a "},
    /* scalars, empty tensors and shared offsets: the file's order where offsets are equal */
    {"{\"s\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, "s "},
    {"{" E("\"z\"", "0") "," A "," E("\"e\"", "4") "," E("\"b\"", "4") "}", 4, "z a e b "},
    {"{" E("\"z\"", "4") "," E("\"b\"", "0") "," E("\"c\"", "0") "," A "}", 4, "b c a z "},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0,18446744073709551615],\"data_offsets\":[0,0]}}", 0,
     "a "},
    /* less than a byte an element */
    {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3,2],\"data_offsets\":[0,3]}}", 3, "a "},
    {"{\"a\":{\"dtype\":\"F6_E2M3\",\"shape\":[4],\"data_offsets\":[0,3]}}", 3, "a "},
    {"{\"a\":{\"dtype\":\"C64\",\"shape\":[2],\"data_offsets\":[0,16]}}", 16, "a "},
    /* a dtype that is not known: the size is what the offsets say */
    {"{\"a\":{\"dtype\":\"F2\",\"shape\":[99,99],\"data_offsets\":[0,4]}}", 4, "a "},
    {"{\"a\":{\"dtype\":\"\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, "a "},
    {"{\"a\":{\"dtype\":\"u8\",\"shape\":[18446744073709551615,2],\"data_offsets\":[0,4]}}", 4,
     "a "},
    {"{\"a\":{\"dtype\":\"U8\\u0000\",\"shape\":[3],\"data_offsets\":[0,4]}}", 4, "a "},
    {"{\"a\":{\"dtype\":\"ABCDEFGHIJKLMNOPQ\",\"shape\":[3],\"data_offsets\":[0,4]}}", 4, "a "},
    /* any name */
    {"{\"\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, " "},
    {"{\"\\ud83d\\ude00\\/\\u00e9\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
     "\xf0\x9f\x98\x80/\xc3\xa9 "},
    {"{\"__metadata__\\u0000\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, NULL},
    {"{\"a.really.long.name.with.__metadata__\":{\"dtype\":\"U8\",\"shape\":[4],"
     "\"data_offsets\":[0,4]}}",
     4, "a.really.long.name.with.__metadata__ "},
};

static void names_of(const struct ct_header *h, struct ct_buf *out)
{
    for (size_t i = 0; i < h->tensor_count; i++) {
        ct_buf_put(out, h->tensors[i].name.p, h->tensors[i].name.n);
        ct_buf_putc(out, ' ');
    }
    ct_buf_putc(out, '\0');
}

Test(header, legal)
{
    for (size_t i = 0; i < sizeof(legal) / sizeof(legal[0]); i++) {
        struct ct_err err = CT_ERR_INIT;
        struct ct_measure m;
        autoheader *h = NULL;
        ct_autobuf names = {0};
        cr_expect_eq(parse_text(legal[i].json, legal[i].body, &h, &err), 0, "%s: %s", legal[i].json,
                     err.msg);
        cr_expect_eq(measure_json(legal[i].json, strlen(legal[i].json), legal[i].body, &m, &err),
                     0);
        cr_expect_eq(m.kind, CT_KIND_PLAIN, "%s", legal[i].json);
        if (h && legal[i].names) {
            names_of(h, &names);
            cr_expect_str_eq((char *)names.data, legal[i].names, "%s", legal[i].json);
        }
    }
}

#define SHAPE(s, o) "{\"a\":{\"dtype\":\"U8\",\"shape\":" s ",\"data_offsets\":" o "}}"

static const struct {
    const char *json;
    uint64_t body;
    const char *why; /* a part of the message */
} illegal[] = {
    {"", 0, "begins with '{'"},
    {" {}", 0, "begins with '{'"},
    {"\xef\xbb\xbf{}", 0, "begins with '{'"},
    {"[]", 0, "begins with '{'"},
    {"null", 0, "begins with '{'"},
    {"{", 0, "expected"},
    {"{}}", 0, "after the end"},
    {"{}x", 0, "after the end"},
    {"{},", 0, "after the end"},
    {"{} {}", 0, "after the end"},
    {"{,}", 0, "expected"},
    {"{" A ",}", 4, "comma"},
    {"{" A " " A "}", 4, "expected"},
    {"{" A "," A "}", 4, "tensor a twice"},
    {"{" A ",\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]}}", 4,
     "tensor a twice"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ twice"},
    {"{\"__metadata__\":{},\"__metadat\\u0061__\":{}}", 0, "__metadata__ twice"},
    {"{\"__metadata__\":{\"a\":\"\",\"b\":\"\",\"\\u0061\":\"\"}}", 0, "metadata a twice"},
    {"{\"__metadata__\":null}", 0, "expected"},
    {"{\"__metadata__\":[]}", 0, "expected"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "expected"},
    {"{\"__metadata__\":{\"a\":null}}", 0, "expected"},
    {"{\"__metadata__\":{\"a\":{}}}", 0, "expected"},
    {"{\"a\":[]}", 0, "expected"},
    {"{\"a\":{}}", 0, "without"},
    {"{\"a\":[\"U8\",[4],[0,4]]}", 4, "expected"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4, "without"},
    {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,4]}}", 4, "without"},
    {"{\"a\":{\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "without"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"x\":0}}", 4, "not have"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"dtype\":\"U8\"}}", 4,
     "twice"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"sh\\u0061pe\":[4],\"data_offsets\":[0,4]}}", 4,
     "twice"},
    {"{\"a\":{\"dtype\":8,\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "expected"},
    {SHAPE("[4]", "[0,5]"), 5, "tensor a: shape, dtype and data_offsets"},
    {SHAPE("[5]", "[0,4]"), 4, "tensor a: shape, dtype and data_offsets"},
    {SHAPE("[]", "[0,0]"), 0, "do not agree"},
    {SHAPE("4", "[0,4]"), 4, "expected"},
    {SHAPE("[[4]]", "[0,4]"), 4, "unsigned integer"},
    {SHAPE("[-4]", "[0,4]"), 4, "unsigned integer"},
    {SHAPE("[-0]", "[0,0]"), 0, "unsigned integer"},
    {SHAPE("[4.0]", "[0,4]"), 4, "not an integer"},
    {SHAPE("[4e0]", "[0,4]"), 4, "not an integer"},
    {SHAPE("[04]", "[0,4]"), 4, "leading zero"},
    {SHAPE("[4,]", "[0,4]"), 4, "comma"},
    {SHAPE("[18446744073709551616]", "[0,0]"), 0, "above 2^64"},
    {SHAPE("[4294967296,4294967296]", "[0,0]"), 0, "overflows"},
    {SHAPE("[4294967296,4294967296,0]", "[0,0]"), 0, "overflows"},
    {"{\"a\":{\"dtype\":\"U64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0,
     "do not agree"},
    {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "do not agree"},
    {SHAPE("[4]", "[4]"), 4, "expected"},
    {SHAPE("[4]", "[]"), 4, "unsigned"},
    {SHAPE("[4]", "[0,4,4]"), 4, "expected"},
    {SHAPE("[4]", "[4,0]"), 4, "end before"},
    {SHAPE("[4]", "[0,4.0]"), 4, "not an integer"},
    {SHAPE("[4]", "[1,5]"), 5, "hole"},
    {SHAPE("[4]", "[0,4]"), 5, "end at byte 4 of a body of 5"},
    {SHAPE("[4]", "[0,4]"), 3, "end at byte 4 of a body of 3"},
    {SHAPE("[4]", "[18446744073709551612,18446744073709551616]"), 4, "above 2^64"},
    {"{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}", 4, "overlap"},
    {"{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "overlap"},
    {"{" A "," E("\"b\"", "2") "}", 4, "overlap"},
    {"{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[5,7]}}", 7, "hole"},
    {"{}", 1, "end at byte 0"},
    {"{\"\\ud800\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "surrogate"},
    {"{\"\xff\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "UTF-8"},
    {"{\"\n\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "control"},
};

Test(header, illegal)
{
    for (size_t i = 0; i < sizeof(illegal) / sizeof(illegal[0]); i++) {
        struct ct_err err = CT_ERR_INIT;
        autoheader *h = NULL;
        cr_expect_eq(parse_text(illegal[i].json, illegal[i].body, &h, &err), -1, "%s",
                     illegal[i].json);
        cr_expect_eq(err.code, CT_MALFORMED);
        cr_expect(strncmp(err.msg, "header: ", 8) == 0 && strstr(err.msg, illegal[i].why), "%s: %s",
                  illegal[i].json, err.msg);
        cr_expect_null(h);
        cr_expect_eq(parse_text(illegal[i].json, illegal[i].body, &h, NULL), -1);
    }
    autoheader *h = NULL;
    static const uint8_t nul[] = "{}\0";
    cr_expect_eq(ct_header_parse(nul, 3, 0, &h, NULL), -1, "NUL is no padding");
    cr_expect_eq(ct_header_parse(NULL, 0, 0, &h, NULL), -1);
}

/* A message about a long name holds no half of a character. */
Test(header, names_in_messages)
{
    for (int pad = 0; pad < 4; pad++) {
        ct_autobuf json = {0};
        struct ct_err err = CT_ERR_INIT;
        autoheader *h = NULL;
        ct_buf_puts(&json, "{\"");
        ct_buf_put(&json, "xxxx", (size_t)pad);
        for (int i = 0; i < 100; i++) {
            ct_buf_puts(&json, "\xf0\x9f\x98\x80");
        }
        ct_buf_puts(&json, "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,2]}}");
        cr_expect_eq(ct_header_parse(json.data, json.len, 2, &h, &err), -1);
        cr_expect(ct_utf8_ok((uint8_t *)err.msg, strlen(err.msg)), "%s", err.msg);
        cr_expect_lt(strlen(err.msg), 200);
    }
}

static void file_of(struct ct_buf *out, uint64_t len, const char *rest)
{
    uint8_t prefix[CT_PREFIX];
    ct_put_le64(prefix, len);
    ct_buf_put(out, prefix, sizeof(prefix));
    ct_buf_puts(out, rest);
}

#define ENC "{\"__metadata__\":{\"__encryption__\":\"{}\",\"b\":\"c\"}}"

static const struct {
    uint64_t len;
    const char *rest;
    int r; /* of measure; read is 0 where legal */
    enum ct_kind kind;
    bool reserved, legal;
} files[] = {
    {2, "{}", 0, CT_KIND_PLAIN, false, true},
    {4, "{}  ", 0, CT_KIND_PLAIN, false, true},
    {sizeof(ENC) - 1, ENC, 0, CT_KIND_ENCRYPTED, false, true},
    {36, "{\"__metadata__\":{\"__policy__\":\"{}\"}}", 0, CT_KIND_PLAIN, true, true},
    {0, "", 0, CT_KIND_OTHER, false, false},
    {0, "{}", 0, CT_KIND_OTHER, false, false},
    {1, "{}", -1, CT_KIND_PLAIN, false, false},
    {3, "{}", -1, CT_KIND_PLAIN, false, false},
    {100000001, "{}", -1, CT_KIND_PLAIN, false, false},
    {UINT32_MAX, "{}", -1, CT_KIND_PLAIN, false, false},
    {1ULL << 32, "{}", 0, CT_KIND_OTHER, false, false},
    {1ULL << 63, "{}", 0, CT_KIND_OTHER, false, false},
    {3, " {}", -1, CT_KIND_PLAIN, false, false},
    {3, "\n\t{", -1, CT_KIND_PLAIN, false, false},
    {3, "   ", 0, CT_KIND_OTHER, false, false},
    {3, " []", 0, CT_KIND_OTHER, false, false},
    {2, "[]", 0, CT_KIND_OTHER, false, false},
    {0x7469203a22617b7bULL, "{\"b\":1}", 0, CT_KIND_OTHER, false, false}, /* a text */
    {sizeof(ENC) - 2, ENC, -1, CT_KIND_ENCRYPTED, false, false},
};

Test(header, what_a_file_is)
{
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        ct_autobuf file = {0};
        struct ct_measure m;
        struct ct_version v;
        struct ct_err err = CT_ERR_INIT;
        autoheader *h = NULL;
        file_of(&file, files[i].len, files[i].rest);
        struct memory_source s = memory_source(file.data, file.len);
        memory_version(&s.source, &v, NULL);
        cr_expect_eq(ct_header_measure(&s.source, &v, &m, &err), files[i].r, "%zu: %s", i, err.msg);
        cr_expect_eq(m.kind, files[i].kind, "%zu", i);
        cr_expect(files[i].r || m.reserved == files[i].reserved, "%zu", i);
        cr_expect_eq(ct_header_read(&s.source, &v, NULL, &h, &err), files[i].legal ? 0 : -1, "%zu",
                     i);
        cr_expect(files[i].legal || err.code == CT_MALFORMED);
        for (size_t n = 0; n < file.len && n < CT_PREFIX + 1; n++) {
            s.n = n; /* a file that is hardly there */
            v.size = n;
            cr_expect_eq(ct_header_measure(&s.source, &v, &m, &err), 0);
            cr_expect_eq(m.kind, CT_KIND_OTHER);
        }
    }
}

/* Every broken read is told as it is, by either function. */
Test(header, broken_disk)
{
    ct_autobuf file = {0};
    file_of(&file, sizeof(ENC) - 1, ENC);
    for (size_t at = 0; at < file.len; at++) {
        struct memory_source s = memory_source(file.data, file.len);
        struct ct_version v;
        struct ct_measure m;
        struct ct_err err = CT_ERR_INIT;
        autoheader *h = NULL;
        memory_version(&s.source, &v, NULL);
        s.fail_at = at;
        cr_expect_eq(ct_header_measure(&s.source, &v, &m, &err), -1);
        cr_expect_eq(err.code, CT_IO);
        cr_expect_eq(ct_header_read(&s.source, &v, NULL, &h, &err), -1);
        cr_expect_eq(err.code, CT_IO);
        s.fail_at = s.n = at; /* it was longer a moment ago */
        cr_expect_eq(ct_header_read(&s.source, &v, NULL, &h, &err), -1);
        cr_expect_eq(err.code, CT_STALE, "%s", err.msg);
    }
}

Test(header, kids)
{
#define KEYS(enc, sign)                                                                            \
    "{\"__metadata__\":{\"__crypto_keys__\":\"{\\\"version\\\":\\\"2\\\",\\\"enc\\\":{"            \
    "\\\"kty\\\":"                                                                                 \
    "\\\"oct\\\",\\\"alg\\\":\\\"aes256gcm\\\"" enc "},\\\"sign\\\":{\\\"kty\\\":\\\"okp\\\","     \
    "\\\"alg\\\":\\\"ed25519\\\"" sign "}}\",\"__encryption__\":\"{}\"}}"
    static const struct {
        const char *json, *enc, *sign;
    } cases[] = {
        {KEYS("", ""), "", ""},
        {KEYS(",\\\"kid\\\":\\\"m\\\"", ",\\\"kid\\\":\\\"s\\\""), "m", "s"},
        {KEYS(",\\\"kid\\\":null", ",\\\"kid\\\":\\\"\\\\u00e9\\\""), "", "\xc3\xa9"},
        {KEYS(",\\\"kid\\\":\\\"m\\\\u0000x\\\"", ""), "", ""},
        {KEYS(",\\\"kid\\\":1", ",\\\"kid\\\":\\\"s\\\""), "", ""},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ct_measure m;
        cr_expect_eq(measure_json(cases[i].json, strlen(cases[i].json), 0, &m, NULL), 0, "%zu", i);
        cr_expect_eq(m.kind, CT_KIND_ENCRYPTED);
        cr_expect_str_eq(m.enc_kid, cases[i].enc, "%zu", i);
        cr_expect_str_eq(m.sign_kid, cases[i].sign, "%zu", i);
    }
}
