/* Headers that a generator makes, some of them then broken, judged by jansson and plain rules. What
 * is legal must come out the same, be measured exactly, and have a view that is a fixed point. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>

#include "format/base/secret.h"
#include "tests/unit/header_fixture.h"
#include "tests/unit/soak.h"

static uint64_t seed = 0x9e3779b97f4a7c15;

static void setup(void)
{
    const char *other = getenv("KVFS_SEED");
    seed ^= other ? strtoull(other, NULL, 10) : 0;
    cr_assert_eq(ct_secret_init(NULL), 0);
}

TestSuite(oracle, .init = setup);

static uint32_t rnd(uint32_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 32) % below;
}

/* ---- the generator ---- */

static void blanks(struct ct_buf *b, bool pretty)
{
    for (uint32_t k = pretty ? rnd(4) : 0; k > 0; k--) {
        ct_buf_putc(b, " \n\t\r"[rnd(4)]);
    }
}

/* A character in one of the ways JSON has for it. */
static void character(struct ct_buf *b, bool pretty)
{
    static const struct {
        const char *raw, *escaped;
    } some[] = {
        {"a", "\\u0061"},
        {"/", "\\/"},
        {"\x7f", "\\u007F"},
        {"\xc3\xa9", "\\u00e9"},
        {"\xe2\x82\xac", "\\u20AC"},
        {"\xf0\x9f\x98\x80", "\\ud83d\\uDE00"},
        {"\\n", "\\u000a"},
        {"\\b", "\\u0008"},
        {"\\u001f", "\\u001F"},
        {"\\\"", "\\u0022"},
        {"\\\\", "\\u005c"},
        {".", "."},
    };
    uint32_t i = rnd(sizeof(some) / sizeof(some[0]));
    ct_buf_puts(b, pretty && rnd(2) ? some[i].escaped : some[i].raw);
}

/* Begins with a number, so that no two are equal. */
static void string(struct ct_buf *b, unsigned number, bool pretty)
{
    ct_buf_printf(b, "\"%u", number);
    for (uint32_t k = rnd(8); k > 0; k--) {
        character(b, pretty);
    }
    ct_buf_putc(b, '"');
    blanks(b, pretty);
}

struct entry {
    uint64_t begin, end;
    unsigned number;
};

static void member(struct ct_buf *b, const struct entry *e, uint32_t which, bool pretty)
{
    uint64_t n = e->end - e->begin;
    blanks(b, pretty);
    if (which == 0) {
        static const char *const types[] = {"\"U8\"", "\"BOOL\"", "\"I8\"", "\"U\\u0038\""};
        ct_buf_printf(b, "\"dtype\":%s", types[rnd(pretty ? 4 : 3)]);
    } else if (which == 1) {
        ct_buf_puts(b, "\"shape\":[");
        blanks(b, pretty);
        for (uint32_t k = rnd(3); k > 0; k--) {
            ct_buf_puts(b, "1,");
            blanks(b, pretty);
        }
        ct_buf_u64(b, n);
        blanks(b, pretty);
        ct_buf_putc(b, ']');
    } else {
        ct_buf_printf(b, "\"data_offsets\":[%llu,", (unsigned long long)e->begin);
        blanks(b, pretty);
        ct_buf_printf(b, "%llu]", (unsigned long long)e->end);
    }
    blanks(b, pretty);
}

static void tensor(struct ct_buf *b, const struct entry *e, bool pretty)
{
    uint32_t turn = pretty ? rnd(3) : 0;
    string(b, e->number, pretty);
    ct_buf_puts(b, ":{");
    for (uint32_t k = 0; k < 3; k++) {
        if (k) {
            ct_buf_putc(b, ',');
        }
        member(b, e, (k + turn) % 3, pretty);
    }
    ct_buf_putc(b, '}');
    blanks(b, pretty);
}

static void metadata(struct ct_buf *b, bool pretty)
{
    ct_buf_puts(b, "\"__metadata__\":{");
    uint32_t n = rnd(4);
    for (uint32_t i = 0; i < n; i++) {
        string(b, 100 + rnd(4) * 10 + i, pretty);
        ct_buf_putc(b, ':');
        string(b, i, pretty);
        ct_buf_putc(b, ',');
    }
    ct_buf_puts(b, "\"__encryption__\":\"{}\"");
    if (rnd(2)) {
        ct_buf_puts(b, ",\"__policy__\":\"\\u007b}\"");
    }
    ct_buf_puts(b, "}");
}

/* Returns the length of the body. */
static uint64_t generate(struct ct_buf *b)
{
    struct entry e[12];
    uint32_t n = rnd(12);
    bool pretty = rnd(2);
    uint64_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t len = rnd(3) ? rnd(1000) : 0;
        e[i] = (struct entry){at, at + len, i};
        at += len;
    }
    for (uint32_t i = pretty ? n : 0; i > 1; i--) {
        uint32_t k = rnd(i);
        struct entry swap = e[k];
        e[k] = e[i - 1];
        e[i - 1] = swap;
    }
    uint32_t meta_at = pretty ? rnd(n + 1) : 0;
    ct_buf_putc(b, '{');
    for (uint32_t i = 0; i <= n; i++) {
        if (i == meta_at) {
            metadata(b, pretty);
            ct_buf_puts(b, i < n ? "," : "");
        }
        if (i < n) {
            blanks(b, pretty);
            tensor(b, &e[i], pretty);
            ct_buf_puts(b, i + 1 < n || meta_at == n ? "," : "");
        }
    }
    ct_buf_putc(b, '}');
    blanks(b, pretty);
    return at;
}

/* A small change, which may or may not matter. */
static void damage(struct ct_buf *b)
{
    static const char bytes[] = "\"\\{}[],:0123456789-. eu\x1f\x7f\x80\xc3\xed\xff";
    uint32_t at = rnd((uint32_t)b->len);
    switch (rnd(3)) {
    case 0:
        b->data[at] = (uint8_t)bytes[rnd(sizeof(bytes))];
        break;
    case 1: /* twice */
        ct_buf_putc(b, ' ');
        memmove(b->data + at + 1, b->data + at, b->len - 1 - at);
        break;
    default: /* away */
        memmove(b->data + at, b->data + at + 1, b->len - 1 - at);
        b->len--;
    }
}

/* ---- the oracle ---- */

static bool is_natural(const json_t *v)
{
    return json_is_integer(v) && json_integer_value(v) >= 0;
}

static bool tensor_ok(const json_t *t, uint64_t *begin, uint64_t *end)
{
    const json_t *dtype = json_object_get(t, "dtype");
    const json_t *shape = json_object_get(t, "shape");
    const json_t *offsets = json_object_get(t, "data_offsets");
    uint64_t size = 1;
    if (json_object_size(t) != 3 || !json_is_string(dtype) || !json_is_array(shape) ||
        json_array_size(offsets) != 2 || !is_natural(json_array_get(offsets, 0)) ||
        !is_natural(json_array_get(offsets, 1))) {
        return false;
    }
    const char *name = json_string_value(dtype);
    size_t name_len = json_string_length(dtype);
    bool known = (name_len == 2 && (memcmp(name, "U8", 2) == 0 || memcmp(name, "I8", 2) == 0)) ||
                 (name_len == 4 && memcmp(name, "BOOL", 4) == 0);
    bool overflow = false;
    for (size_t i = 0; i < json_array_size(shape); i++) {
        if (!is_natural(json_array_get(shape, i))) {
            return false;
        }
        uint64_t v = (uint64_t)json_integer_value(json_array_get(shape, i));
        overflow = overflow || (v && size > UINT64_MAX / v);
        size = overflow ? 0 : size * v;
    }
    *begin = (uint64_t)json_integer_value(json_array_get(offsets, 0));
    *end = (uint64_t)json_integer_value(json_array_get(offsets, 1));
    return *begin <= *end && (!known || (!overflow && size == *end - *begin));
}

/* Whether the tensors fill the body: the slow way, one after the other. */
static bool fills(json_t *root, uint64_t body)
{
    uint64_t sum = 0;
    const char *name = NULL;
    json_t *t = NULL;
    json_object_foreach(root, name, t)
    {
        uint64_t begin = 0;
        uint64_t end = 0;
        const char *other_name = NULL;
        json_t *other = NULL;
        bool follows = false;
        if (strcmp(name, "__metadata__") == 0) {
            continue;
        }
        if (!tensor_ok(t, &begin, &end)) {
            return false;
        }
        sum += end - begin;
        json_object_foreach(root, other_name, other)
        {
            uint64_t b = 0;
            uint64_t e = 0;
            if (strcmp(other_name, "__metadata__") != 0 && tensor_ok(other, &b, &e)) {
                follows = follows || (e == begin && e > b);
                if (b < end && begin < e && other != t) {
                    return false;
                }
            }
        }
        if (begin != 0 && !follows) {
            return false;
        }
    }
    return sum == body;
}

static bool metadata_ok(json_t *m)
{
    const char *key = NULL;
    json_t *value = NULL;
    if (!json_is_object(m)) {
        return !m;
    }
    json_object_foreach(m, key, value)
    {
        if (!json_is_string(value)) {
            return false;
        }
    }
    return true;
}

static void compare(const struct ct_header *h, json_t *root)
{
    json_t *meta = json_object_get(root, "__metadata__");
    cr_assert_eq(h->tensor_count, json_object_size(root) - (meta ? 1 : 0));
    cr_assert_eq(h->meta_count, json_object_size(meta));
    cr_assert_eq(h->has_metadata, meta != NULL);
    for (size_t i = 0; i < h->tensor_count; i++) {
        const struct ct_tensor *t = &h->tensors[i];
        json_t *is = json_object_getn(root, t->name.p, t->name.n);
        json_t *shape = json_object_get(is, "shape");
        uint64_t begin = 0;
        uint64_t end = 0;
        cr_assert(is && tensor_ok(is, &begin, &end));
        cr_assert(begin == t->begin && end == t->end);
        cr_assert_eq(t->rank, json_array_size(shape));
        for (uint32_t k = 0; k < t->rank; k++) {
            cr_assert_eq(t->shape[k], (uint64_t)json_integer_value(json_array_get(shape, k)));
        }
        json_t *dtype = json_object_get(is, "dtype");
        cr_assert(ct_span_is(t->dtype, json_string_value(dtype), json_string_length(dtype)));
        cr_assert_eq(ct_header_find(h, t->name), (ptrdiff_t)i);
    }
    for (size_t i = 0; i < h->meta_count; i++) {
        json_t *value = json_object_getn(meta, h->meta[i].key.p, h->meta[i].key.n);
        cr_assert(value && ct_span_is(h->meta[i].value, json_string_value(value),
                                      json_string_length(value)));
        cr_assert(i == 0 || ct_cmp_bytes(h->meta[i - 1].key.p, h->meta[i - 1].key.n,
                                         h->meta[i].key.p, h->meta[i].key.n) < 0);
    }
}

static void check_view(const struct ct_header *h, const struct ct_buf *json)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_measure m;
    ct_autobuf view = {0};
    ct_autobuf again = {0};
    autoheader *back = NULL;
    cr_assert_eq(ct_view_header(h, &view, &err), 0);
    cr_assert_eq(measure_json(json->data, json->len, h->body_len, &m, &err), 0, "%.*s: %s",
                 (int)json->len, (char *)json->data, err.msg);
    cr_assert_eq(m.kind, ct_meta_is_encrypted(h) ? CT_KIND_ENCRYPTED : CT_KIND_PLAIN);
    if (m.kind == CT_KIND_ENCRYPTED) {
        cr_assert_eq(m.view_size, view.len + h->body_len, "%.*s", (int)json->len,
                     (char *)json->data);
    }
    cr_assert_eq(ct_header_parse(view.data + 8, view.len - 8, h->body_len, &back, &err), 0);
    cr_assert_eq(back->tensor_count, h->tensor_count);
    cr_assert_eq(ct_view_header(back, &again, &err), 0);
    cr_assert(again.len == view.len && memcmp(again.data, view.data, view.len) == 0);
}

/* Where jansson is no judge: it refuses numbers from 2^63 on and NUL in a key, takes -0, and passes
 * over NUL bytes between tokens. */
static bool beyond_oracle(const struct ct_buf *json, const json_error_t *why)
{
    return strstr(why->text, "integer") || strstr(why->text, "NUL") ||
           memmem(json->data, json->len, "-0", 2) || memchr(json->data, '\0', json->len);
}

static int judge(const struct ct_buf *json, uint64_t body)
{
    struct ct_err err = CT_ERR_INIT;
    json_error_t why = {0};
    autoheader *h = NULL;
    json_t *root =
        json_loadb((char *)json->data, json->len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    int r = ct_header_parse(json->data, json->len, body, &h, &err);
    if (!beyond_oracle(json, &why)) {
        bool legal = json->len && json->data[0] == '{' && json_is_object(root) &&
                     metadata_ok(json_object_get(root, "__metadata__")) && fills(root, body);
        cr_assert_eq(r == 0, legal, "%.*s: %s", (int)json->len, (char *)json->data, err.msg);
        if (legal) {
            compare(h, root);
        }
    }
    if (h) {
        check_view(h, json);
    }
    json_decref(root);
    return r;
}

Test(oracle, generated)
{
    for (int i = 0; i < 4000 || soaking(); i++) {
        ct_autobuf json = {0};
        uint64_t body = generate(&json);
        cr_assert_eq(judge(&json, body), 0, "%.*s", (int)json.len, (char *)json.data);
    }
}

Test(oracle, damaged)
{
    uint64_t legal = 0;
    uint64_t all = 0;
    for (; all < 30000 || soaking(); all++) {
        ct_autobuf json = {0};
        uint64_t body = generate(&json);
        for (uint32_t k = 1 + rnd(2); k > 0; k--) {
            damage(&json);
        }
        legal += judge(&json, body) == 0;
    }
    cr_assert_gt(legal, all / 30);
    cr_assert_lt(legal, all - all / 30);
}
