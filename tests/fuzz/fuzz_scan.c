/*
 * The pull scanner against jansson: what both take must be the same value, and what one refuses the
 * other must refuse. The first byte says how large a window the scanner reads a source through;
 * what it finds there must not differ from what it finds in memory.
 */
#include <jansson.h>

#include "format/scan.h"
#include "tests/fuzz/fuzz.h"

struct text_source {
    struct ct_source source;
    const uint8_t *p;
    size_t n;
};

void fuzz_start(void)
{
    /* nothing */
}

static ssize_t text_pread(struct ct_source *s, void *buf, size_t n, uint64_t offset,
                          struct ct_err *err)
{
    const struct text_source *t = (const struct text_source *)s;
    (void)err;
    size_t left = offset < t->n ? t->n - (size_t)offset : 0;
    size_t got = n < left ? n : left;
    memcpy(buf, t->p + (left ? offset : 0), got);
    return (ssize_t)got;
}

static const struct ct_source_ops ops = {.pread = text_pread};

/* Whether all numbers are such as the scanner takes, and nothing nests deeper than it skips. */
static bool within(const json_t *v, int depth)
{
    const char *key = NULL;
    json_t *one = NULL;
    size_t i = 0;
    if (json_is_real(v) || (json_is_integer(v) && json_integer_value(v) < 0)) {
        return false;
    }
    if ((json_is_object(v) || json_is_array(v)) && depth == 0) {
        return false;
    }
    json_object_foreach((json_t *)v, key, one)
    {
        if (!within(one, depth - 1)) {
            return false;
        }
    }
    json_array_foreach(v, i, one)
    {
        if (!within(one, depth - 1)) {
            return false;
        }
    }
    return true;
}

/* ---- the same value, piece by piece ---- */

static void walk(struct ct_scan *s, const json_t *v);

static void walk_string(struct ct_scan *s, const json_t *v)
{
    ct_autobuf text = {0};
    MUST(ct_scan_string_to(s, &text) == 0);
    MUST(text.len == json_string_length(v) &&
         (text.len == 0 || memcmp(text.data, json_string_value(v), text.len) == 0));
}

static void walk_object(struct ct_scan *s, const json_t *v)
{
    bool first = true;
    size_t n = 0;
    int more = 0;
    MUST(ct_scan_expect(s, '{') == 0);
    while ((more = ct_scan_more(s, '}', &first)) == 1) {
        ct_autobuf name = {0};
        MUST(ct_scan_string_to(s, &name) == 0 && ct_scan_expect(s, ':') == 0);
        const json_t *one = json_object_getn(v, name.len ? (char *)name.data : "", name.len);
        MUST(one);
        walk(s, one);
        n++;
    }
    MUST(more == 0 && n == json_object_size(v));
}

static void walk_array(struct ct_scan *s, const json_t *v)
{
    bool first = true;
    size_t n = 0;
    int more = 0;
    MUST(ct_scan_expect(s, '[') == 0);
    while ((more = ct_scan_more(s, ']', &first)) == 1) {
        MUST(n < json_array_size(v));
        walk(s, json_array_get(v, n++));
    }
    MUST(more == 0 && n == json_array_size(v));
}

static void walk(struct ct_scan *s, const json_t *v)
{
    uint64_t number = 0;
    if (json_is_object(v)) {
        walk_object(s, v);
    } else if (json_is_array(v)) {
        walk_array(s, v);
    } else if (json_is_string(v)) {
        walk_string(s, v);
    } else if (json_is_integer(v)) {
        MUST(ct_scan_u64(s, &number) == 0 && number == (uint64_t)json_integer_value(v));
    } else {
        MUST(ct_scan_skip(s) == 0);
    }
}

/* ---- the same verdict ---- */

static int skip_all(struct ct_scan *s)
{
    return ct_scan_skip(s) || ct_scan_end(s) ? -1 : 0;
}

/* Where jansson is no judge: it refuses integers from 2^63 on, reals out of range, and NUL in a
 * key; it takes -0, NUL bytes between tokens, and (here) no member twice. */
static bool beyond_oracle(const uint8_t *p, size_t n, const json_t *root, const json_error_t *why)
{
    return memchr(p, '\0', n) || memmem(p, n, "-0", 2) ||
           (!root && (strstr(why->text, "too big") || strstr(why->text, "too small") ||
                      strstr(why->text, "overflow") || strstr(why->text, "NUL") ||
                      strstr(why->text, "duplicate") || strstr(why->text, "depth")));
}

static void check_members(struct ct_scan *s)
{
    static const char *const names[] = {"a", "dtype", "", NULL};
    unsigned seen = 0;
    bool first = true;
    if (ct_scan_expect(s, '{')) {
        return;
    }
    while (ct_scan_more(s, '}', &first) == 1) {
        int which = -1;
        unsigned before = seen;
        if (ct_scan_member(s, names, &seen, &which)) {
            return;
        }
        MUST(which >= -1 && which < 3);
        MUST(seen == (which < 0 ? before : before | 1U << which) && (which < 0 || seen != before));
        if (ct_scan_skip(s)) {
            return;
        }
    }
}

static void check_short(struct ct_scan *s, size_t cap)
{
    char out[64];
    size_t len = 0;
    memset(out, 'x', sizeof(out));
    if (ct_scan_short(s, out, cap, &len) == 0) {
        MUST(out[len < cap - 1 ? len : cap - 1] == '\0');
    }
    MUST(out[cap] == 'x');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t window[256];
    struct ct_scan s;
    struct ct_err err;
    struct ct_err other;
    json_error_t why = {0};
    if (size == 0) {
        return 0;
    }
    size_t window_size = 1U + data[0];
    const uint8_t *p = data + 1;
    size_t n = size - 1;
    struct text_source t = {{&ops}, p, n};

    ct_scan_memory(&s, p, n, &err);
    int r = skip_all(&s);
    MUST((r == 0) == (err.code == CT_OK));
    ct_scan_source(&s, &t.source, 0, n, window, window_size, &other);
    MUST(skip_all(&s) == r && other.code == err.code);
    MUST(r == 0 || strcmp(err.msg, other.msg) == 0);

    json_t *root = json_loadb((const char *)p, n,
                              JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &why);
    if (!beyond_oracle(p, n, root, &why)) {
        MUST((r == 0) == (root && within(root, CT_SCAN_DEPTH)));
    }
    if (root && r == 0) {
        ct_scan_source(&s, &t.source, 0, n, window, window_size, &other);
        walk(&s, root);
        MUST(ct_scan_end(&s) == 0 && ct_scan_at(&s) == n);
    }
    json_decref(root);
    ct_scan_source(&s, &t.source, 0, n, window, window_size, &other);
    check_members(&s);
    ct_scan_memory(&s, p, n, &err);
    check_short(&s, 1 + data[0] % 32);
    return 0;
}
