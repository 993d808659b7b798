#include "format/meta_parts.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

bool ct_meta_is_reserved(struct ct_span key)
{
    return ct_span_eq(key, "__crypto_keys__") || ct_span_eq(key, "__encryption__") ||
           ct_span_eq(key, "__policy__") || ct_span_eq(key, "__signature__");
}

bool ct_meta_is_encrypted(const struct ct_header *h)
{
    return ct_header_meta(h, "__encryption__") != NULL;
}

const struct ct_span *ct_meta_field(const struct ct_header *h, const char *name, struct ct_err *err)
{
    const struct ct_span *value = ct_header_meta(h, name);
    if (!value) {
        ct_err_set(err, CT_MALFORMED, "%s is missing", name);
    }
    return value;
}

int ct_meta_failed(const char *name, const struct ct_err *mine, struct ct_err *err)
{
    if (err) {
        *err = *mine;
    }
    return ct_err_wrap(err, "%s", name);
}

/* ---- __crypto_keys__ ---- */

struct keys_parser {
    struct ct_scan scan;
    struct ct_keys_field *out;
    char *free; /* in out->arena, which is as large as the text */
    char kty[16], alg[32];
};

/* Absent, null or a string. */
static int take_optional(struct keys_parser *k, struct ct_span *out)
{
    ct_autobuf text = {0};
    if (ct_scan_peek(&k->scan) == 'n') {
        return ct_scan_skip(&k->scan);
    }
    if (ct_scan_string_to(&k->scan, &text)) {
        return -1;
    }
    *out = (struct ct_span){k->free, text.len};
    if (text.len) {
        memcpy(k->free, text.data, text.len);
    }
    k->free += text.len;
    return 0;
}

/* A name of an algorithm. One with a NUL, or longer than any that is known, is like none. */
static int take_word(struct ct_scan *s, char *out, size_t cap)
{
    size_t n = 0;
    if (ct_scan_short(s, out, cap, &n)) {
        return -1;
    }
    if (strlen(out) != n) {
        (void)snprintf(out, cap, "?");
    }
    return 0;
}

static int take_jwk(struct keys_parser *k, struct ct_keyref *ref)
{
    static const char *const names[] = {"kty", "alg", "kid", "jku", NULL};
    unsigned seen = 0;
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&k->scan, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&k->scan, '}', &first)) == 1) {
        int which = -1;
        if (ct_scan_member(&k->scan, names, &seen, &which)) {
            return -1;
        }
        int r = which == 0   ? take_word(&k->scan, k->kty, sizeof(k->kty))
                : which == 1 ? take_word(&k->scan, k->alg, sizeof(k->alg))
                : which == 2 ? take_optional(k, &ref->kid)
                : which == 3 ? take_optional(k, &ref->jku)
                             : ct_scan_skip(&k->scan);
        if (r) {
            return -1;
        }
    }
    if (more == 0 && (seen & 3) != 3) {
        return ct_scan_fail(&k->scan, "a JWK without kty or alg");
    }
    return more;
}

static int take_enc(struct keys_parser *k)
{
    if (take_jwk(k, &k->out->enc)) {
        return -1;
    }
    k->out->enc.alg = ct_alg_parse(k->alg, strlen(k->alg));
    if (strcasecmp(k->kty, "oct") != 0 || k->out->enc.alg == CT_ALG_NONE) {
        return ct_err_set(k->scan.err, CT_UNSUPPORTED, "algorithm %s/%s is not known", k->kty,
                          k->alg);
    }
    return 0;
}

static int take_sign(struct keys_parser *k)
{
    if (take_jwk(k, &k->out->sign)) {
        return -1;
    }
    if (strcasecmp(k->kty, "okp") != 0 || strcasecmp(k->alg, "ed25519") != 0) {
        return ct_err_set(k->scan.err, CT_UNSUPPORTED, "signature algorithm %s/%s is not known",
                          k->kty, k->alg);
    }
    return 0;
}

static int take_version(struct keys_parser *k)
{
    char version[16];
    if (take_word(&k->scan, version, sizeof(version))) {
        return -1;
    }
    k->out->version = strcmp(version, "1") == 0 ? 1 : strcmp(version, "2") == 0 ? 2 : 0;
    return k->out->version
               ? 0
               : ct_err_set(k->scan.err, CT_UNSUPPORTED, "version %s is not known", version);
}

static int take_keys(struct keys_parser *k)
{
    static const char *const names[] = {"version", "enc", "sign", "chunk_size", NULL};
    unsigned seen = 0;
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&k->scan, '{')) {
        return -1;
    }
    k->out->chunk_size = CT_CHUNK_DEFAULT;
    while ((more = ct_scan_more(&k->scan, '}', &first)) == 1) {
        int which = -1;
        if (ct_scan_member(&k->scan, names, &seen, &which)) {
            return -1;
        }
        int r = which == 0   ? take_version(k)
                : which == 1 ? take_enc(k)
                : which == 2 ? take_sign(k)
                : which == 3 ? ct_scan_u64(&k->scan, &k->out->chunk_size)
                             : ct_scan_skip(&k->scan);
        if (r) {
            return -1;
        }
    }
    if (more < 0 || ct_scan_end(&k->scan)) {
        return -1;
    }
    if ((seen & 7) != 7) {
        return ct_scan_fail(&k->scan, "version, enc or sign is missing");
    }
    if (k->out->chunk_size == 0) {
        return ct_scan_fail(&k->scan, "a chunk_size of 0");
    }
    if (k->out->version == 1) {
        k->out->chunk_size = 0;
    }
    return 0;
}

int ct_meta_keys_text(struct ct_span text, struct ct_keys_field *out, struct ct_err *err)
{
    struct ct_err mine;
    *out = (struct ct_keys_field){.arena = malloc(text.n + 1)};
    if (!out->arena) {
        return ct_err_set(err, CT_NOMEM, "no memory for __crypto_keys__");
    }
    struct keys_parser k = {.out = out, .free = out->arena};
    ct_scan_memory(&k.scan, text.p, text.n, &mine);
    if (take_keys(&k)) {
        ct_keys_field_free(out);
        return ct_meta_failed("__crypto_keys__", &mine, err);
    }
    return 0;
}

int ct_meta_keys(const struct ct_header *h, struct ct_keys_field *out, struct ct_err *err)
{
    *out = (struct ct_keys_field){0};
    const struct ct_span *text = ct_meta_field(h, "__crypto_keys__", err);
    return text ? ct_meta_keys_text(*text, out, err) : -1;
}

void ct_keys_field_free(struct ct_keys_field *f)
{
    free(f->arena);
    *f = (struct ct_keys_field){0};
}

/* ---- __policy__, __signature__ ---- */

static int take_text(struct ct_scan *s, char **out, size_t *len)
{
    ct_autobuf text = {0};
    if (ct_scan_string_to(s, &text)) {
        return -1;
    }
    *out = malloc(text.len + 1);
    if (!*out) {
        return ct_err_set(s->err, CT_NOMEM, "no memory for a policy");
    }
    if (text.len) {
        memcpy(*out, text.data, text.len);
    }
    (*out)[text.len] = '\0';
    *len = text.len;
    return 0;
}

static int take_policy(struct ct_scan *s, struct ct_policy_field *out)
{
    static const char *const names[] = {"local", "remote", NULL};
    unsigned seen = 0;
    bool first = true;
    int more = 0;
    if (ct_scan_expect(s, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(s, '}', &first)) == 1) {
        int which = -1;
        if (ct_scan_member(s, names, &seen, &which)) {
            return -1;
        }
        int r = which == 0   ? take_text(s, &out->local, &out->local_len)
                : which == 1 ? take_text(s, &out->remote, &out->remote_len)
                             : ct_scan_skip(s);
        if (r) {
            return -1;
        }
    }
    if (more < 0 || ct_scan_end(s)) {
        return -1;
    }
    return seen == 3 ? 0 : ct_scan_fail(s, "local or remote is missing");
}

int ct_meta_policy(const struct ct_header *h, struct ct_policy_field *out, struct ct_err *err)
{
    struct ct_err mine;
    struct ct_scan s;
    *out = (struct ct_policy_field){0};
    const struct ct_span *text = ct_meta_field(h, "__policy__", err);
    if (!text) {
        return -1;
    }
    ct_scan_memory(&s, text->p, text->n, &mine);
    if (take_policy(&s, out)) {
        ct_policy_field_free(out);
        return ct_meta_failed("__policy__", &mine, err);
    }
    return 0;
}

void ct_policy_field_free(struct ct_policy_field *f)
{
    free(f->local);
    free(f->remote);
    *f = (struct ct_policy_field){0};
}

int ct_meta_signature(const struct ct_header *h, uint8_t sig[static CT_SIG_LEN], struct ct_err *err)
{
    const struct ct_span *text = ct_header_meta(h, "__signature__");
    if (!text) {
        return ct_err_set(err, CT_REJECTED, "__signature__ is missing");
    }
    if (ct_base64_decode(text->p, text->n, sig, CT_SIG_LEN) != CT_SIG_LEN) {
        return ct_err_set(err, CT_REJECTED, "__signature__ is not 64 bytes of base64");
    }
    return 0;
}
