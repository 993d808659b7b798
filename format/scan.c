#include "format/scan.h"

#include <stdio.h>
#include <string.h>

void ct_scan_memory(struct ct_scan *s, const void *text, size_t n, struct ct_err *err)
{
    *err = (struct ct_err)CT_ERR_INIT;
    *s = (struct ct_scan){.p = n ? text : (const void *)"", .base = n, .err = err};
    s->end = s->p + n;
}

void ct_scan_source(struct ct_scan *s, struct ct_source *source, uint64_t begin, uint64_t end,
                    uint8_t *window, size_t window_size, struct ct_err *err)
{
    *err = (struct ct_err)CT_ERR_INIT;
    *s = (struct ct_scan){.source = source, .source_at = begin, .source_end = end, .err = err};
    s->window = window;
    s->window_size = window_size;
    s->p = s->end = window;
}

uint64_t ct_scan_at(const struct ct_scan *s)
{
    return s->base - (uint64_t)(s->end - s->p);
}

int ct_scan_fail(struct ct_scan *s, const char *what)
{
    return ct_err_set(s->err, CT_MALFORMED, "byte %llu: %s", (unsigned long long)ct_scan_at(s),
                      what);
}

/* 1 when there is a byte at s->p, 0 at the end, -1 on error. */
static int fill(struct ct_scan *s)
{
    if (s->p < s->end) {
        return 1;
    }
    if (!s->source || s->source_at == s->source_end) {
        return 0;
    }
    uint64_t left = s->source_end - s->source_at;
    size_t want = left < s->window_size ? (size_t)left : s->window_size;
    if (ct_source_read(s->source, s->window, want, s->source_at, NULL, s->err)) {
        return -1;
    }
    s->source_at += want;
    s->base += want;
    s->p = s->window;
    s->end = s->window + want;
    return 1;
}

/* The next byte as it is; -1 with an error, also at the end. */
static int take(struct ct_scan *s)
{
    int r = fill(s);
    if (r <= 0) {
        return r < 0 ? -1 : ct_scan_fail(s, "the text ends too early");
    }
    return *s->p++;
}

int ct_scan_peek(struct ct_scan *s)
{
    for (;;) {
        if (fill(s) <= 0) {
            return -1;
        }
        uint8_t c = *s->p;
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r') {
            return c;
        }
        s->p++;
    }
}

int ct_scan_accept(struct ct_scan *s, char c)
{
    int have = ct_scan_peek(s);
    if (have < 0) {
        return s->err->code == CT_OK ? 0 : -1;
    }
    if (have != (uint8_t)c) {
        return 0;
    }
    s->p++;
    return 1;
}

int ct_scan_expect(struct ct_scan *s, char c)
{
    int r = ct_scan_accept(s, c);
    if (r == 1) {
        return 0;
    }
    if (r == 0) {
        char what[] = "'?' was expected";
        what[1] = c;
        return ct_scan_fail(s, what);
    }
    return -1;
}

int ct_scan_more(struct ct_scan *s, char close, bool *first)
{
    int closed = ct_scan_accept(s, close);
    if (closed) {
        return closed < 0 ? -1 : 0;
    }
    if (*first) {
        *first = false;
        return 1;
    }
    if (ct_scan_expect(s, ',')) {
        return -1;
    }
    if (ct_scan_peek(s) == (uint8_t)close) {
        return ct_scan_fail(s, "a comma before the closing bracket");
    }
    return 1;
}

/* ---- strings ---- */

struct piece_out { /* collects decoded bytes that do not stand as such in the window */
    ct_scan_piece_fn fn;
    void *ctx;
};

static int emit(struct ct_scan *s, const struct piece_out *out, const uint8_t *p, size_t n)
{
    if (out->fn && n && out->fn(out->ctx, p, n, s->err)) {
        return -1;
    }
    return 0;
}

static int take_hex4(struct ct_scan *s, uint32_t *out)
{
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) {
        int c = take(s);
        if (c < 0) {
            return -1;
        }
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0) {
            return ct_scan_fail(s, "not a hexadecimal digit");
        }
        v = v << 4 | (uint32_t)d;
    }
    *out = v;
    return 0;
}

static size_t utf8_encode(uint32_t c, uint8_t out[static 4])
{
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (uint8_t)(0xc0 | c >> 6);
        out[1] = (uint8_t)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (uint8_t)(0xe0 | c >> 12);
        out[1] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        out[2] = (uint8_t)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (uint8_t)(0xf0 | c >> 18);
    out[1] = (uint8_t)(0x80 | (c >> 12 & 0x3f));
    out[2] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
    out[3] = (uint8_t)(0x80 | (c & 0x3f));
    return 4;
}

static int unicode_escape(struct ct_scan *s, const struct piece_out *out)
{
    uint32_t c = 0;
    if (take_hex4(s, &c)) {
        return -1;
    }
    if (c >= 0xdc00 && c <= 0xdfff) {
        return ct_scan_fail(s, "half of a surrogate pair");
    }
    if (c >= 0xd800 && c <= 0xdbff) {
        uint32_t low = 0;
        int a = take(s);
        int b = a < 0 ? -1 : take(s);
        if (b < 0) {
            return -1;
        }
        if (a != '\\' || b != 'u') {
            return ct_scan_fail(s, "half of a surrogate pair");
        }
        if (take_hex4(s, &low)) {
            return -1;
        }
        if (low < 0xdc00 || low > 0xdfff) {
            return ct_scan_fail(s, "half of a surrogate pair");
        }
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }
    uint8_t text[4];
    return emit(s, out, text, utf8_encode(c, text));
}

static int escape(struct ct_scan *s, const struct piece_out *out)
{
    static const uint8_t decoded[256] = {
        ['"'] = '"',  ['\\'] = '\\', ['/'] = '/',  ['b'] = '\b',
        ['f'] = '\f', ['n'] = '\n',  ['r'] = '\r', ['t'] = '\t',
    };
    int c = take(s);
    if (c < 0) {
        return -1;
    }
    if (c == 'u') {
        return unicode_escape(s, out);
    }
    return decoded[c] ? emit(s, out, &decoded[c], 1)
                      : ct_scan_fail(s, "an escape that JSON does not have");
}

/* A sequence of UTF-8 that starts with `lead`, which was taken: it may lie across two windows. */
static int multibyte(struct ct_scan *s, int lead, const struct piece_out *out)
{
    uint8_t text[4] = {(uint8_t)lead};
    size_t n = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    for (size_t i = 1; i < n; i++) {
        int c = take(s);
        if (c < 0) {
            return -1;
        }
        text[i] = (uint8_t)c;
    }
    if (!ct_utf8_ok(text, n)) {
        return ct_scan_fail(s, "not UTF-8");
    }
    return emit(s, out, text, n);
}

size_t ct_scan_plain(const uint8_t *p, size_t n)
{
    const uint64_t ones = 0x0101010101010101;
    size_t i = 0;
    while (n - i >= 8) {
        uint64_t v = 0;
        memcpy(&v, p + i, sizeof(v));
        uint64_t quote = v ^ ones * '"';
        uint64_t backslash = v ^ ones * '\\';
        /* The top bit of a byte: set in it, or borrowed by a subtraction from what is too small. */
        if ((v | (v - ones * 0x20) | (quote - ones) | (backslash - ones)) & ones * 0x80) {
            break;
        }
        i += 8;
    }
    while (i < n && p[i] >= 0x20 && p[i] < 0x80 && p[i] != '"' && p[i] != '\\') {
        i++;
    }
    return i;
}

int ct_scan_string(struct ct_scan *s, ct_scan_piece_fn piece, void *ctx)
{
    const struct piece_out out = {piece, ctx};
    if (ct_scan_expect(s, '"')) {
        return -1;
    }
    for (;;) {
        if (fill(s) < 0) {
            return -1;
        }
        const uint8_t *run = s->p;
        s->p += ct_scan_plain(run, (size_t)(s->end - run));
        if (emit(s, &out, run, (size_t)(s->p - run))) {
            return -1;
        }
        if (s->p == s->end && s->source_at < s->source_end) {
            continue;
        }
        int c = take(s);
        if (c < 0) {
            return -1;
        }
        if (c == '"') {
            return 0;
        }
        if (c < 0x20) {
            return ct_scan_fail(s, "a control character in a string");
        }
        if (c == '\\' ? escape(s, &out) : multibyte(s, c, &out)) {
            return -1;
        }
    }
}

static int to_buf(void *ctx, const uint8_t *p, size_t n, struct ct_err *err)
{
    ct_buf_put(ctx, p, n);
    return ct_buf_ok(ctx, err);
}

int ct_scan_string_to(struct ct_scan *s, struct ct_buf *out)
{
    return ct_scan_string(s, to_buf, out);
}

struct short_out {
    char *out;
    size_t cap, len;
};

static int to_short(void *ctx, const uint8_t *p, size_t n, struct ct_err *err)
{
    (void)err;
    struct short_out *o = ctx;
    if (o->len < o->cap) {
        size_t room = o->cap - o->len;
        memcpy(o->out + o->len, p, n < room ? n : room);
    }
    o->len += n;
    return 0;
}

int ct_scan_short(struct ct_scan *s, char *out, size_t cap, size_t *len)
{
    struct short_out o = {out, cap - 1, 0};
    if (ct_scan_string(s, to_short, &o)) {
        return -1;
    }
    out[o.len < cap - 1 ? o.len : cap - 1] = '\0';
    *len = o.len;
    return 0;
}

/* ---- numbers, end ---- */

int ct_scan_u64(struct ct_scan *s, uint64_t *out)
{
    int c = ct_scan_peek(s);
    if (c < '0' || c > '9') {
        return s->err->code != CT_OK ? -1 : ct_scan_fail(s, "an unsigned integer was expected");
    }
    uint64_t v = 0;
    size_t digits = 0;
    bool zero = c == '0';
    for (;; digits++) {
        int r = fill(s);
        if (r < 0) {
            return -1;
        }
        if (r == 0 || *s->p < '0' || *s->p > '9') {
            break;
        }
        if (!ct_mul_u64(v, 10, &v) || !ct_add_u64(v, (uint64_t)(*s->p - '0'), &v)) {
            return ct_scan_fail(s, "a number above 2^64 - 1");
        }
        s->p++;
    }
    if (zero && digits > 1) {
        return ct_scan_fail(s, "a number with a leading zero");
    }
    if (s->p < s->end && (*s->p == '.' || *s->p == 'e' || *s->p == 'E')) {
        return ct_scan_fail(s, "a number that is not an integer");
    }
    *out = v;
    return 0;
}

int ct_scan_member(struct ct_scan *s, const char *const *names, unsigned *seen, int *which)
{
    char name[32];
    size_t n = 0;
    if (ct_scan_short(s, name, sizeof(name), &n) || ct_scan_expect(s, ':')) {
        return -1;
    }
    *which = -1;
    for (int i = 0; names[i]; i++) {
        if (strlen(names[i]) == n && strcmp(names[i], name) == 0) {
            if (*seen & 1U << i) {
                return ct_scan_fail(s, "a member twice");
            }
            *seen |= 1U << i;
            *which = i;
        }
    }
    return 0;
}

static int skip_scalar(struct ct_scan *s)
{
    static const char *const words[] = {"true", "false", "null"};
    uint64_t ignored = 0;
    int first = ct_scan_peek(s);
    if (first == '"') {
        return ct_scan_string(s, NULL, NULL);
    }
    for (size_t i = 0; i < 3; i++) {
        if (first != words[i][0]) {
            continue;
        }
        for (const char *p = words[i]; *p; p++) {
            int c = take(s);
            if (c != *p) {
                return c < 0 ? -1 : ct_scan_fail(s, "not a value");
            }
        }
        return 0;
    }
    return ct_scan_u64(s, &ignored);
}

/* Closes what ends here, and takes the name of the next member. */
static int skip_between(struct ct_scan *s, const char *close, bool *first, int *depth)
{
    int more = 0;
    while (*depth > 0 && (more = ct_scan_more(s, close[*depth - 1], &first[*depth - 1])) == 0) {
        --*depth;
    }
    if (more < 0) {
        return -1;
    }
    if (*depth > 0 && close[*depth - 1] == '}') {
        return ct_scan_string(s, NULL, NULL) || ct_scan_expect(s, ':') ? -1 : 0;
    }
    return 0;
}

int ct_scan_skip(struct ct_scan *s)
{
    char close[CT_SCAN_DEPTH];
    bool first[CT_SCAN_DEPTH];
    int depth = 0;
    do {
        int c = ct_scan_peek(s);
        if (c == '{' || c == '[') {
            if (depth == CT_SCAN_DEPTH) {
                return ct_scan_fail(s, "nested too deep");
            }
            s->p++;
            close[depth] = c == '{' ? '}' : ']';
            first[depth++] = true;
        } else if (skip_scalar(s)) {
            return -1;
        }
        if (skip_between(s, close, first, &depth)) {
            return -1;
        }
    } while (depth > 0);
    return 0;
}

int ct_scan_end(struct ct_scan *s)
{
    if (ct_scan_peek(s) >= 0) {
        return ct_scan_fail(s, "bytes after the end");
    }
    return s->err->code == CT_OK ? 0 : -1;
}
