#include "format/jws.h"

#include <jansson.h>
#include <string.h>

enum { PROTECTED_MAX = 2048 }; /* base64url characters */

/* ---- the outer object: read by hand, since it can be 64 MiB that nobody vouches for ---- */

struct cursor {
    const char *p, *end;
};

static void skip_blanks(struct cursor *c)
{
    while (c->p < c->end && (*c->p == ' ' || *c->p == '\t' || *c->p == '\n' || *c->p == '\r')) {
        c->p++;
    }
}

static bool take(struct cursor *c, char wanted)
{
    skip_blanks(c);
    if (c->p == c->end || *c->p != wanted) {
        return false;
    }
    c->p++;
    return true;
}

static bool is_base64url(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_';
}

/* A string of base64url characters: enough for the names and values there may be. */
static bool take_word(struct cursor *c, struct ct_span *out)
{
    if (!take(c, '"')) {
        return false;
    }
    out->p = c->p;
    while (c->p < c->end && is_base64url(*c->p)) {
        c->p++;
    }
    out->n = (size_t)(c->p - out->p);
    return c->p < c->end && *c->p++ == '"';
}

static int take_member(struct cursor *c, struct ct_jws *out, struct ct_err *err)
{
    struct ct_span name;
    struct ct_span value;
    if (!take_word(c, &name)) {
        return ct_err_set(err, CT_MALFORMED, "JWS: a member name was expected");
    }
    struct ct_span *to = ct_span_eq(name, "protected")   ? &out->protected
                         : ct_span_eq(name, "payload")   ? &out->payload
                         : ct_span_eq(name, "signature") ? &out->signature
                                                         : NULL;
    if (!to) {
        return ct_err_set(err, CT_MALFORMED, "JWS: member \"%.*s\" is not allowed",
                          (int)(name.n < 32 ? name.n : 32), name.p);
    }
    if (to->p) {
        return ct_err_set(err, CT_MALFORMED, "JWS: member \"%.*s\" twice", (int)name.n, name.p);
    }
    if (!take(c, ':') || !take_word(c, &value)) {
        return ct_err_set(err, CT_MALFORMED, "JWS: member \"%.*s\" is not base64url", (int)name.n,
                          name.p);
    }
    *to = value;
    return 0;
}

static int take_object(struct cursor *c, struct ct_jws *out, struct ct_err *err)
{
    if (!take(c, '{')) {
        return ct_err_set(err, CT_MALFORMED, "JWS: no JSON object");
    }
    do {
        if (take_member(c, out, err)) {
            return -1;
        }
    } while (take(c, ','));
    if (!take(c, '}')) {
        return ct_err_set(err, CT_MALFORMED, "JWS: `}` was expected");
    }
    skip_blanks(c);
    if (c->p != c->end) {
        return ct_err_set(err, CT_MALFORMED, "JWS: bytes after the object");
    }
    if (!out->protected.p || !out->payload.p || !out->signature.p) {
        return ct_err_set(err, CT_MALFORMED,
                          "JWS: needs exactly \"protected\", \"payload\" and \"signature\"");
    }
    return 0;
}

/* ---- the protected header ---- */

static int check_string(const json_t *value, const char *name, const char *wanted,
                        enum ct_code code, struct ct_err *err)
{
    if (!json_is_string(value)) {
        return ct_err_set(err, CT_MALFORMED, "JWS: no string \"%s\" in the protected header", name);
    }
    if (strcmp(json_string_value(value), wanted) != 0) {
        return ct_err_set(err, code, "JWS: \"%s\" is not \"%s\"", name, wanted);
    }
    return 0;
}

static int check_header(json_t *header, const char *typ, struct ct_jws *out, struct ct_err *err)
{
    const char *name = NULL;
    json_t *value = NULL;
    json_object_foreach(header, name, value)
    {
        if (strcmp(name, "alg") != 0 && strcmp(name, "typ") != 0 && strcmp(name, "kid") != 0) {
            return ct_err_set(err, CT_MALFORMED,
                              "JWS: \"%.32s\" is not allowed in the protected header", name);
        }
    }
    const json_t *kid = json_object_get(header, "kid");
    if (check_string(json_object_get(header, "alg"), "alg", "EdDSA", CT_UNSUPPORTED, err) ||
        check_string(json_object_get(header, "typ"), "typ", typ, CT_REJECTED, err)) {
        return -1;
    }
    out->kid_len = json_string_length(kid); /* 0 if it is no string */
    if (out->kid_len == 0 || out->kid_len > CT_JWS_KID_MAX) {
        return ct_err_set(err, CT_MALFORMED, "JWS: no usable \"kid\" in the protected header");
    }
    memcpy(out->kid, json_string_value(kid), out->kid_len + 1);
    return 0;
}

static int read_header(const char *typ, struct ct_jws *out, struct ct_err *err)
{
    uint8_t text[PROTECTED_MAX];
    if (out->protected.n > PROTECTED_MAX) {
        return ct_err_set(err, CT_MALFORMED, "JWS: the protected header is too long");
    }
    ssize_t n = ct_base64_decode(out->protected.p, out->protected.n, text, sizeof(text));
    if (n < 0) {
        return ct_err_set(err, CT_MALFORMED, "JWS: the protected header is not base64url");
    }
    json_t *header = json_loadb((char *)text, (size_t)n, JSON_REJECT_DUPLICATES, NULL);
    int r = json_is_object(header)
                ? check_header(header, typ, out, err)
                : ct_err_set(err, CT_MALFORMED, "JWS: the protected header is no JSON object");
    json_decref(header);
    return r;
}

int ct_jws_parse(const uint8_t *text, size_t n, const char *typ, struct ct_jws *out,
                 struct ct_err *err)
{
    *out = (struct ct_jws){0};
    const char *from = n ? (const char *)text : ""; /* nothing may come as NULL */
    struct cursor c = {from, from + n};
    if (take_object(&c, out, err) || read_header(typ, out, err)) {
        return -1;
    }
    return 0;
}

/* ---- the signature ---- */

int ct_jws_verify(const struct ct_jws *jws, const uint8_t pub[static CT_ED25519_PUB],
                  struct ct_err *err)
{
    uint8_t sig[CT_ED25519_SIG];
    if (ct_base64_decode(jws->signature.p, jws->signature.n, sig, sizeof(sig)) != sizeof(sig)) {
        return ct_err_set(err, CT_MALFORMED, "JWS: the signature does not have 64 bytes");
    }
    ct_autobuf input = {0};
    ct_buf_reserve(&input, jws->protected.n + 1 + jws->payload.n);
    ct_buf_put(&input, jws->protected.p, jws->protected.n);
    ct_buf_putc(&input, '.');
    ct_buf_put(&input, jws->payload.p, jws->payload.n);
    if (ct_buf_ok(&input, err)) {
        return -1;
    }
    return ct_ed25519_verify(pub, input.data, input.len, sig, err);
}

int ct_jws_payload(const struct ct_jws *jws, struct ct_buf *out, struct ct_err *err)
{
    size_t most = jws->payload.n / 4 * 3 + 3;
    uint8_t *to = ct_buf_reserve(out, most);
    if (!to) {
        return ct_buf_ok(out, err);
    }
    ssize_t n = ct_base64_decode(jws->payload.p, jws->payload.n, to, most);
    if (n < 0) {
        return ct_err_set(err, CT_MALFORMED, "JWS: the payload is not base64url");
    }
    out->len += (size_t)n;
    return 0;
}

static int put_protected(const char *typ, struct ct_span kid, struct ct_buf *out,
                         struct ct_err *err)
{
    if (kid.n == 0 || kid.n > CT_JWS_KID_MAX || memchr(kid.p, 0, kid.n)) {
        return ct_err_set(err, CT_USAGE, "the signing key needs a kid of 1 to %d bytes",
                          CT_JWS_KID_MAX);
    }
    json_t *header = json_pack("{s:s, s:s%, s:s}", "alg", "EdDSA", "kid", kid.p, kid.n, "typ", typ);
    char *text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    if (!text) {
        return ct_err_set(err, CT_USAGE, "the signing key's kid is not UTF-8");
    }
    ct_base64url_put(out, (const uint8_t *)text, strlen(text));
    ct_wiping_free(text);
    return ct_buf_ok(out, err);
}

int ct_jws_sign(const char *typ, struct ct_span kid, const struct ct_secret *seed,
                const void *payload, size_t n, struct ct_buf *out, struct ct_err *err)
{
    uint8_t sig[CT_ED25519_SIG];
    ct_autobuf input = {0};
    if (put_protected(typ, kid, &input, err)) {
        return -1;
    }
    size_t head = input.len;
    ct_buf_putc(&input, '.');
    ct_base64url_put(&input, payload, n);
    if (ct_buf_ok(&input, err) || ct_ed25519_sign(seed, input.data, input.len, sig, err)) {
        return -1;
    }
    ct_buf_puts(out, "{\"protected\":\"");
    ct_buf_put(out, input.data, head);
    ct_buf_puts(out, "\",\"payload\":\"");
    ct_buf_put(out, input.data + head + 1, input.len - head - 1);
    ct_buf_puts(out, "\",\"signature\":\"");
    ct_base64url_put(out, sig, sizeof(sig));
    ct_buf_puts(out, "\"}\n");
    return ct_buf_ok(out, err);
}
