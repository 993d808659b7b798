/* The pull scanner: every text is read from memory and from a source through windows of every size
 * that matters, and judged by tables, by brute force, and by jansson. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "format/base/secret.h"
#include "format/scan.h"
#include "tests/unit/header_fixture.h"

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
}

TestSuite(scan, .init = setup);

enum { WINDOWS = 12 }; /* 0: memory; otherwise the window's size */

struct opened {
    struct ct_scan s;
    struct ct_err err;
    struct memory_source source;
    uint8_t window[WINDOWS];
};

static void open_text(struct opened *o, const void *text, size_t n, size_t window)
{
    if (window == 0) {
        ct_scan_memory(&o->s, text, n, &o->err);
        return;
    }
    o->source = memory_source(text, n);
    ct_scan_source(&o->s, &o->source.source, 0, n, o->window, window, &o->err);
}

/* One string that is the whole text. */
static int whole_string(const void *text, size_t n, size_t window, struct ct_buf *out)
{
    struct opened o;
    open_text(&o, text, n, window);
    int r = ct_scan_string_to(&o.s, out) || ct_scan_end(&o.s);
    cr_expect_eq(r ? o.err.code : CT_MALFORMED, CT_MALFORMED);
    cr_expect(r == 0 || o.err.msg[0]);
    return r;
}

#define TEXT(t) (t), sizeof(t) - 1

static const struct {
    const char *json;
    size_t json_len;
    const char *is; /* NULL: refused */
    size_t is_len;
} strings[] = {
    {TEXT("\"\""), TEXT("")},
    {TEXT(" \t\r\n\"a\" \t\r\n"), TEXT("a")},
    {TEXT("\"a b/c\x7f\""), TEXT("a b/c\x7f")},
    {TEXT("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""), TEXT("\"\\/\b\f\n\r\t")},
    {TEXT("\"\\u0000\""), TEXT("\0")},
    {TEXT("\"x\\u0000y\""), TEXT("x\0y")},
    {TEXT("\"\\u00e9\\u00E9\""), TEXT("\xc3\xa9\xc3\xa9")},
    {TEXT("\"\\u20ac\\uFFFF\""), TEXT("\xe2\x82\xac\xef\xbf\xbf")},
    {TEXT("\"\\ud83d\\ude00\""), TEXT("\xf0\x9f\x98\x80")},
    {TEXT("\"\\uD800\\uDC00\\udbff\\udfff\""), TEXT("\xf0\x90\x80\x80\xf4\x8f\xbf\xbf")},
    {TEXT("\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\""),
     TEXT("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80")},
    {TEXT("\"12345678\\n12345678\\n1234567\""), TEXT("12345678\n12345678\n1234567")},
    {TEXT(""), NULL, 0},
    {TEXT("\""), NULL, 0},
    {TEXT("\"a"), NULL, 0},
    {TEXT("a\""), NULL, 0},
    {TEXT("'a'"), NULL, 0},
    {TEXT("\"a\" x"), NULL, 0},
    {TEXT("\"a\"\0"), NULL, 0},
    {TEXT("\"\\"), NULL, 0},
    {TEXT("\"\\\""), NULL, 0},
    {TEXT("\"\\x\""), NULL, 0},
    {TEXT("\"\\\0\""), NULL, 0},
    {TEXT("\"\\U0041\""), NULL, 0},
    {TEXT("\"\\u004\""), NULL, 0},
    {TEXT("\"\\u004g\""), NULL, 0},
    {TEXT("\"\\u+041\""), NULL, 0},
    {TEXT("\"\\u"), NULL, 0},
    {TEXT("\"\\ud83d\""), NULL, 0},
    {TEXT("\"\\ud83d"), NULL, 0},
    {TEXT("\"\\ud83d\\"), NULL, 0},
    {TEXT("\"\\ud83dx\""), NULL, 0},
    {TEXT("\"\\ud83d\\n\""), NULL, 0},
    {TEXT("\"\\ud83d\\u0041\""), NULL, 0},
    {TEXT("\"\\ud83d\\ud83d\""), NULL, 0},
    {TEXT("\"\\ude00\""), NULL, 0},
    {TEXT("\"\\ude00\\ud83d\""), NULL, 0},
    {TEXT("\"\n\""), NULL, 0},
    {TEXT("\"\x1f\""), NULL, 0},
    {TEXT("\"1234567\x1f\""), NULL, 0},
    {TEXT("\"\0\""), NULL, 0},
    {TEXT("\"\x80\""), NULL, 0},
    {TEXT("\"\xc0\x80\""), NULL, 0},
    {TEXT("\"\xc3\""), NULL, 0},
    {TEXT("\"\xc3"), NULL, 0},
    {TEXT("\"\xe0\x9f\xbf\""), NULL, 0},
    {TEXT("\"\xed\xa0\x80\""), NULL, 0},
    {TEXT("\"\xf0\x8f\xbf\xbf\""), NULL, 0},
    {TEXT("\"\xf4\x90\x80\x80\""), NULL, 0},
    {TEXT("\"\xf5\x80\x80\x80\""), NULL, 0},
    {TEXT("\"\xff\""), NULL, 0},
};

Test(scan, strings)
{
    for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++) {
        for (size_t w = 0; w < WINDOWS; w++) {
            ct_autobuf out = {0};
            int r = whole_string(strings[i].json, strings[i].json_len, w, &out);
            cr_expect_eq(r == 0, strings[i].is != NULL, "%zu: %s, window %zu", i, strings[i].json,
                         w);
            if (r == 0 && strings[i].is) {
                cr_expect_eq(out.len, strings[i].is_len, "%zu", i);
                cr_expect(out.len == 0 || memcmp(out.data, strings[i].is, out.len) == 0, "%zu", i);
            }
        }
    }
}

/* Each code point, as it stands and as an escape. */
Test(scan, every_code_point)
{
    for (uint32_t c = 0; c < 0x110000; c++) {
        char text[32];
        ct_autobuf out = {0};
        bool surrogate = c >= 0xd800 && c <= 0xdfff;
        int n = c < 0x10000 ? snprintf(text, sizeof(text), "\"\\u%04x\"", c)
                            : snprintf(text, sizeof(text), "\"\\u%04X\\u%04X\"", 0xd7c0 + (c >> 10),
                                       0xdc00 + (c & 0x3ff));
        cr_assert_eq(whole_string(text, (size_t)n, 0, &out) != 0, surrogate, "U+%04x", c);
        if (surrogate) {
            continue;
        }
        cr_assert(ct_utf8_ok(out.data, out.len));
        size_t want = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
        cr_assert_eq(out.len, want);
        uint32_t back = want == 1 ? out.data[0] : out.data[0] & (0x7fU >> want);
        for (size_t i = 1; i < out.len; i++) {
            back = back << 6 | (out.data[i] & 0x3f);
        }
        cr_assert_eq(back, c);
        if (c >= 0x20 && c != '"' && c != '\\') {
            ct_autobuf again = {0};
            text[0] = '"';
            memcpy(text + 1, out.data, out.len);
            text[1 + out.len] = '"';
            cr_assert_eq(whole_string(text, out.len + 2, 0, &again), 0, "U+%04x", c);
            cr_assert(again.len == out.len && memcmp(again.data, out.data, out.len) == 0);
        }
    }
}

/* Every byte at every place among plain ones. */
Test(scan, plain_run)
{
    for (unsigned c = 0; c < 256; c++) {
        bool plain = c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
        for (size_t n = 0; n < 40; n++) {
            for (size_t at = 0; at < n; at++) {
                uint8_t text[40];
                memset(text, at % 2 ? 0x7f : ' ', sizeof(text));
                text[at] = (uint8_t)c;
                cr_assert_eq(ct_scan_plain(text, n), plain ? n : at, "%02x at %zu of %zu", c, at,
                             n);
            }
        }
    }
}

static uint64_t seed = 88172645463325252;

static uint32_t rnd(uint32_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 32) % below;
}

static size_t random_string(char *text, size_t most)
{
    static const char *const parts[] = {
        "\\u00e9",
        "\\ud83d",
        "\\ude00",
        "\\n",
        "\\",
        "\"",
        "\xc3\xa9",
        "\xe2\x82",
        "\xac",
        "\xf0\x9f",
        "\x98\x80",
        "\\u",
        "0041",
        "\\/",
        "a",
        "12345678",
        "\xed",
        "\xa0",
        "\x7f",
        "\x1f",
        "\\u0000",
        "\\x",
        "\xf4\x8f\xbf\xbf",
        " ",
    };
    size_t n = 0;
    text[n++] = '"';
    for (uint32_t k = rnd(6); k > 0; k--) {
        const char *part = parts[rnd(sizeof(parts) / sizeof(parts[0]))];
        size_t len = strlen(part);
        if (n + len + 1 < most) {
            memcpy(text + n, part, len); // NOLINT(bugprone-not-null-terminated-result): no string
            n += len;
        }
    }
    text[n++] = '"';
    return n;
}

Test(scan, strings_against_jansson)
{
    int taken = 0;
    for (int i = 0; i < 200000; i++) {
        char text[128];
        ct_autobuf out = {0};
        size_t n = random_string(text, sizeof(text));
        json_t *oracle =
            json_loadb(text, n, JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, NULL);
        int r = whole_string(text, n, (size_t)i % WINDOWS, &out);
        cr_assert_eq(r == 0, oracle != NULL, "%.*s", (int)n, text);
        if (oracle) {
            taken++;
            cr_assert_eq(json_string_length(oracle), out.len, "%.*s", (int)n, text);
            cr_assert(out.len == 0 || memcmp(json_string_value(oracle), out.data, out.len) == 0);
        }
        json_decref(oracle);
    }
    cr_assert_gt(taken, 20000);
}

Test(scan, short_strings)
{
    char out[6];
    size_t len = 0;
    for (size_t w = 0; w < WINDOWS; w++) {
        struct opened o;
        open_text(&o, TEXT("\"abc\" \"abcde\" \"abcdef\" \"abc\\u20acde\" \"\""), w);
        cr_expect(ct_scan_short(&o.s, out, sizeof(out), &len) == 0 && len == 3);
        cr_expect_str_eq(out, "abc");
        cr_expect(ct_scan_short(&o.s, out, sizeof(out), &len) == 0 && len == 5);
        cr_expect_str_eq(out, "abcde");
        cr_expect(ct_scan_short(&o.s, out, sizeof(out), &len) == 0 && len == 6);
        cr_expect_str_eq(out, "abcde");
        cr_expect(ct_scan_short(&o.s, out, sizeof(out), &len) == 0 && len == 8);
        cr_expect(ct_scan_short(&o.s, out, sizeof(out), &len) == 0 && len == 0);
        cr_expect_str_eq(out, "");
    }
}

static const struct {
    const char *text;
    bool ok;
    uint64_t is;
} numbers[] = {
    {"0", true, 0},
    {" 7", true, 7},
    {"10", true, 10},
    {"18446744073709551615", true, UINT64_MAX},
    {"18446744073709551616", false, 0},
    {"99999999999999999999999999999", false, 0},
    {"00", false, 0},
    {"01", false, 0},
    {"-0", false, 0},
    {"-1", false, 0},
    {"+1", false, 0},
    {"1.0", false, 0},
    {"0.", false, 0},
    {"1e0", false, 0},
    {"1E0", false, 0},
    {"0x1", false, 0},
    {"1 2", false, 0},
    {"1a", false, 0},
    {"", false, 0},
    {"null", false, 0},
    {"\"1\"", false, 0},
    {".5", false, 0},
};

Test(scan, numbers)
{
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        for (size_t w = 0; w < WINDOWS; w++) {
            struct opened o;
            uint64_t v = 0;
            open_text(&o, numbers[i].text, strlen(numbers[i].text), w);
            bool ok = ct_scan_u64(&o.s, &v) == 0 && ct_scan_end(&o.s) == 0;
            cr_expect_eq(ok, numbers[i].ok, "%s, window %zu", numbers[i].text, w);
            cr_expect(!ok || v == numbers[i].is, "%s", numbers[i].text);
        }
    }
}

static const struct {
    const char *text;
    bool ok;
} values[] = {
    {"{}", true},
    {"[]", true},
    {" [ ] ", true},
    {"\"x\"", true},
    {"true", true},
    {"false", true},
    {"null", true},
    {"12", true},
    {"[1,2,[3],{\"a\":null}]", true},
    {"{\"a\":{\"b\":[true,{}]},\"c\":\"]\"}", true},
    {"[[[[]]]]", true},
    {"[[[[1]]], [[[2]]]]", true},
    {"[[[[[]]]]]", false},
    {"{\"a\":{\"a\":{\"a\":{\"a\":{}}}}}", false},
    {"[[[[1]]]", false},
    {"[1,]", false},
    {"[,1]", false},
    {"[1 2]", false},
    {"[1}", false},
    {"{\"a\"}", false},
    {"{\"a\":}", false},
    {"{\"a\":1,}", false},
    {"{a:1}", false},
    {"{1:1}", false},
    {"{\"a\":1 \"b\":2}", false},
    {"]", false},
    {"", false},
    {"tru", false},
    {"truE", false},
    {"nul", false},
    {"True", false},
    {"NaN", false},
    {"// x", false},
    {"1.5", false},
    {"-1", false},
    {"{", false},
    {"[", false},
};

Test(scan, any_value)
{
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        for (size_t w = 0; w < WINDOWS; w++) {
            struct opened o;
            open_text(&o, values[i].text, strlen(values[i].text), w);
            bool ok = ct_scan_skip(&o.s) == 0 && ct_scan_end(&o.s) == 0;
            cr_expect_eq(ok, values[i].ok, "%s, window %zu: %s", values[i].text, w, o.err.msg);
        }
    }
}

Test(scan, members)
{
    static const char *const names[] = {"one", "two", NULL};
    for (size_t w = 0; w < WINDOWS; w++) {
        struct opened o;
        unsigned seen = 0;
        int which = 9;
        open_text(&o, TEXT("\"two\":\"\\u006fne\" :\"three\":\"three\":\"one\\u0000\":\"one\":"),
                  w);
        cr_expect(ct_scan_member(&o.s, names, &seen, &which) == 0 && which == 1 && seen == 2);
        cr_expect(ct_scan_member(&o.s, names, &seen, &which) == 0 && which == 0 && seen == 3);
        cr_expect(ct_scan_member(&o.s, names, &seen, &which) == 0 && which == -1);
        cr_expect(ct_scan_member(&o.s, names, &seen, &which) == 0 && which == -1);
        cr_expect(ct_scan_member(&o.s, names, &seen, &which) == 0 && which == -1);
        cr_expect(ct_scan_member(&o.s, names, &seen, &which) == -1);
        cr_expect_eq(o.err.code, CT_MALFORMED);
    }
}

/* An error of the source comes out as it is, wherever it happens; the offset is the text's. */
Test(scan, errors)
{
    static const char text[] = "{\"a\" : [12, \"\\ud83d\\ude00\xe2\x82\xac\", {\"b\":true}]}";
    for (size_t w = 1; w < WINDOWS; w++) {
        for (size_t at = 0; at < sizeof(text) - 1; at++) {
            struct opened o;
            open_text(&o, TEXT(text), w);
            o.source.fail_at = at;
            cr_expect(ct_scan_skip(&o.s) == -1);
            cr_expect_eq(o.err.code, CT_IO, "window %zu, byte %zu: %s", w, at, o.err.msg);
        }
        struct opened o;
        open_text(&o, TEXT("[1, 2, x]"), w);
        cr_expect(ct_scan_skip(&o.s) == -1);
        cr_expect(strncmp(o.err.msg, "byte 7: ", 8) == 0, "window %zu: %s", w, o.err.msg);
        open_text(&o, TEXT("[1"), w);
        o.source.n = 1; /* the source ends before it should */
        cr_expect(ct_scan_skip(&o.s) == -1 && o.err.code != CT_OK);
    }
}
