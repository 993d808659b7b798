#include "format/policy/lex.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "format/policy/policy.h"
#include "format/scan.h"

int ct_policy_fail(struct ct_err *err, unsigned line, const char *fmt, ...)
{
    char what[256];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    return ct_err_set(err, CT_POLICY, "policy line %u: %s", line, what);
}

int ct_lex_start(struct ct_lexer *l, const char *text, size_t len, struct ct_err *err)
{
    *l = (struct ct_lexer){.p = text, .end = text + len, .line = 1, .err = err};
    if (len > CT_POLICY_MAX) {
        return ct_err_set(err, CT_POLICY, "the policy is larger than %d bytes", CT_POLICY_MAX);
    }
    if (!ct_utf8_ok((const uint8_t *)text, len)) {
        return ct_err_set(err, CT_POLICY, "the policy is not UTF-8");
    }
    /* A token is never longer than its text, plus a NUL each. */
    ct_buf_reserve(&l->text, 2 * len + 64);
    return ct_buf_ok(&l->text, err);
}

void ct_lex_free(struct ct_lexer *l)
{
    ct_buf_free(&l->text);
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c);
}

/* Ends the token whose text begins at `from` in l->text. */
static void done(struct ct_lexer *l, size_t from, struct ct_token *out)
{
    out->len = l->text.len - from;
    ct_buf_putc(&l->text, '\0');
    out->text = (const char *)l->text.data + from;
}

static void take_run(struct ct_lexer *l, size_t n, struct ct_token *out)
{
    size_t from = l->text.len;
    ct_buf_put(&l->text, l->p, n);
    l->p += n;
    done(l, from, out);
}

static int take_quoted(struct ct_lexer *l, struct ct_token *out)
{
    const char *close = l->p + 1;
    while (close < l->end && *close != '"' && *close != '\n') {
        close += *close == '\\' && close + 1 < l->end ? 2 : 1;
    }
    if (close >= l->end || *close != '"') {
        return ct_policy_fail(l->err, l->line, "a string without its closing quote");
    }
    struct ct_err why = CT_ERR_INIT;
    struct ct_scan s;
    size_t from = l->text.len;
    ct_scan_memory(&s, l->p, (size_t)(close + 1 - l->p), &why);
    if (ct_scan_string_to(&s, &l->text)) {
        return ct_policy_fail(l->err, l->line, "a string that is not JSON's: %.80s", why.msg);
    }
    l->p = close + 1;
    done(l, from, out);
    return 0;
}

static int take_raw(struct ct_lexer *l, struct ct_token *out)
{
    const char *close = memchr(l->p + 1, '`', (size_t)(l->end - l->p - 1));
    if (!close) {
        return ct_policy_fail(l->err, l->line, "a raw string without its closing quote");
    }
    size_t from = l->text.len;
    ct_buf_put(&l->text, l->p + 1, (size_t)(close - l->p - 1));
    for (; l->p <= close; l->p++) {
        l->line += *l->p == '\n';
    }
    done(l, from, out);
    return 0;
}

static int take_number(struct ct_lexer *l, struct ct_token *out)
{
    const char *p = l->p;
    size_t digits = 0;
    bool zero = *p == '0';
    for (; p < l->end && is_digit(*p); p++) {
        digits++;
    }
    if (zero && digits > 1) {
        return ct_policy_fail(l->err, l->line, "a number with a leading zero");
    }
    if (p < l->end && *p == '.') {
        size_t before = digits;
        for (p++; p < l->end && is_digit(*p); p++) {
            digits++;
        }
        if (digits == before) {
            return ct_policy_fail(l->err, l->line, "a number that ends with a point");
        }
    }
    if (p < l->end && (is_name(*p) || *p == '.')) {
        return ct_policy_fail(l->err, l->line,
                              "a number with an exponent or a suffix is not in the subset");
    }
    /* More would not fit a double exactly, where the reference has any precision. */
    if (digits > 15) {
        return ct_policy_fail(l->err, l->line,
                              "a number of more than 15 digits is not in the subset");
    }
    take_run(l, (size_t)(p - l->p), out);
    return 0;
}

static void skip_blanks(struct ct_lexer *l)
{
    while (l->p < l->end && (*l->p == ' ' || *l->p == '\t' || *l->p == '\r')) {
        l->p++;
    }
    if (l->p < l->end && *l->p == '#') {
        while (l->p < l->end && *l->p != '\n') {
            l->p++;
        }
    }
}

int ct_lex_next(struct ct_lexer *l, struct ct_token *out)
{
    static const char *const two[] = {":=", "==", "!=", "<=", ">="};
    static const char one[] = "{}[](),;:=<>.-+*/%|&";
    const char *from = l->p;
    skip_blanks(l);
    *out = (struct ct_token){.line = l->line, .glued = l->p == from, .text = ""};
    if (l->p == l->end) {
        out->type = TOK_END;
        return 0;
    }
    char c = *l->p;
    if (c == '\n') {
        out->type = TOK_NEWLINE;
        l->line++;
        l->p++;
        return 0;
    }
    if (c == '"' || c == '`') {
        out->type = TOK_STRING;
        return c == '"' ? take_quoted(l, out) : take_raw(l, out);
    }
    if (is_digit(c)) {
        out->type = TOK_NUMBER;
        return take_number(l, out);
    }
    if (is_name(c)) {
        size_t n = 0;
        while (l->p + n < l->end && is_name(l->p[n])) {
            n++;
        }
        out->type = TOK_NAME;
        take_run(l, n, out);
        return 0;
    }
    out->type = TOK_PUNCT;
    for (size_t i = 0; i < sizeof(two) / sizeof(two[0]); i++) {
        if (l->end - l->p >= 2 && memcmp(l->p, two[i], 2) == 0) {
            take_run(l, 2, out);
            return 0;
        }
    }
    if (!memchr(one, c, sizeof(one) - 1)) {
        return ct_policy_fail(l->err, l->line, "the character 0x%02x is not in the subset",
                              (unsigned char)c);
    }
    take_run(l, 1, out);
    return 0;
}
