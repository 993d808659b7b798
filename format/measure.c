#include <string.h>

#include "format/header.h"
#include "format/meta.h"

/*
 * One pass over the header in blocks. The length of the view's header does not depend on the order
 * of members or on how they were spelled, so it is a sum over what passes by.
 */

enum {
    WINDOW = 65536,
    KEYS_MAX = 8192, /* of __crypto_keys__, for its kids to be known here */
};

struct measuring {
    struct ct_scan scan;
    struct ct_measure *out;
    uint64_t tensors_len; /* of the tensors' members, commas included */
    uint64_t meta_len;    /* of the metadata's that stay */
};

static int count_string(void *ctx, const uint8_t *p, size_t n, struct ct_err *err)
{
    (void)err;
    uint64_t *len = ctx;
    for (size_t i = 0; i < n; i++) {
        bool named = p[i] == '"' || p[i] == '\\' || (p[i] >= 8 && p[i] <= 13 && p[i] != 11);
        *len += named ? 2 : p[i] < 0x20 ? 6 : 1;
    }
    return 0;
}

struct keyed { /* a string counted, its beginning kept */
    uint64_t len;
    char text[32];
    size_t have;
};

static int keep_key(void *ctx, const uint8_t *p, size_t n, struct ct_err *err)
{
    struct keyed *k = ctx;
    for (size_t i = 0; i < n && k->have < sizeof(k->text); i++) {
        k->text[k->have++] = (char)p[i];
    }
    return count_string(&k->len, p, n, err);
}

static uint64_t digits(uint64_t v)
{
    uint64_t n = 1;
    while (v >= 10) {
        v /= 10;
        n++;
    }
    return n;
}

static int count_numbers(struct measuring *m, uint64_t *len)
{
    bool first = true;
    int more = 0;
    uint64_t count = 0;
    if (ct_scan_expect(&m->scan, '[')) {
        return -1;
    }
    while ((more = ct_scan_more(&m->scan, ']', &first)) == 1) {
        uint64_t v = 0;
        if (ct_scan_u64(&m->scan, &v)) {
            return -1;
        }
        *len += digits(v);
        count++;
    }
    *len += 2 + (count ? count - 1 : 0);
    return more;
}

static int count_tensor(struct measuring *m)
{
    static const char *const names[] = {"dtype", "shape", "data_offsets", NULL};
    uint64_t len = strlen("{\"dtype\":\"\",\"shape\":,\"data_offsets\":}");
    unsigned seen = 0;
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&m->scan, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&m->scan, '}', &first)) == 1) {
        int which = -1;
        if (ct_scan_member(&m->scan, names, &seen, &which)) {
            return -1;
        }
        int r = which == 0  ? ct_scan_string(&m->scan, count_string, &len)
                : which > 0 ? count_numbers(m, &len)
                            : ct_scan_fail(&m->scan, "a member that a tensor does not have");
        if (r) {
            return -1;
        }
    }
    if (more == 0 && seen != 7) {
        return ct_scan_fail(&m->scan, "a tensor without dtype, shape or data_offsets");
    }
    m->out->tensor_count++;
    m->tensors_len += len;
    return more;
}

/* As a C string, or nothing where it does not make one. */
static void keep_kid(char out[static 256], struct ct_span kid)
{
    if (kid.n && kid.n < 256 && !memchr(kid.p, '\0', kid.n)) {
        memcpy(out, kid.p, kid.n);
        out[kid.n] = '\0';
    }
}

/* Whether the field is as it should be is for ct_meta_keys() to say later. */
static void find_kids(struct ct_measure *out, struct ct_span text)
{
    struct ct_keys_field keys;
    if (ct_meta_keys_text(text, &keys, NULL) == 0) {
        keep_kid(out->enc_kid, keys.enc.kid);
        keep_kid(out->sign_kid, keys.sign.kid);
        ct_keys_field_free(&keys);
    }
}

/* The value of a reserved field, of which nothing is in the view. */
static int pass_reserved(struct measuring *m, struct ct_span name)
{
    m->out->reserved = true;
    if (ct_span_eq(name, "__encryption__")) {
        m->out->kind = CT_KIND_ENCRYPTED;
    }
    if (!ct_span_eq(name, "__crypto_keys__")) {
        return ct_scan_string(&m->scan, NULL, NULL);
    }
    char text[KEYS_MAX];
    size_t n = 0;
    if (ct_scan_short(&m->scan, text, sizeof(text), &n)) {
        return -1;
    }
    if (n < sizeof(text)) {
        find_kids(m->out, (struct ct_span){text, n});
    }
    return 0;
}

static int count_metadata(struct measuring *m)
{
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&m->scan, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&m->scan, '}', &first)) == 1) {
        struct keyed key = {0};
        uint64_t len = 0;
        if (ct_scan_string(&m->scan, keep_key, &key) || ct_scan_expect(&m->scan, ':')) {
            return -1;
        }
        struct ct_span name = {key.text, key.have};
        if (ct_meta_is_reserved(name)) {
            if (pass_reserved(m, name)) {
                return -1;
            }
            continue;
        }
        if (ct_scan_string(&m->scan, count_string, &len)) {
            return -1;
        }
        m->meta_len += key.len + len + strlen("\"\":\"\",");
    }
    return more;
}

static int count_object(struct measuring *m)
{
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&m->scan, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&m->scan, '}', &first)) == 1) {
        struct keyed key = {0};
        if (ct_scan_string(&m->scan, keep_key, &key) || ct_scan_expect(&m->scan, ':')) {
            return -1;
        }
        struct ct_span name = {key.text, key.have};
        if (ct_span_eq(name, "__metadata__") ? count_metadata(m) : count_tensor(m)) {
            return -1;
        }
        if (!ct_span_eq(name, "__metadata__")) {
            m->tensors_len += key.len + strlen("\"\":,");
        }
    }
    return more < 0 ? -1 : ct_scan_end(&m->scan);
}

/* A length whose upper half is 0, then an object: no text file begins so. Whether the file keeps
 * what that promises is another question. */
static bool begins_as_header(const uint8_t start[static CT_PREFIX + 1])
{
    return ct_le64(start) <= UINT32_MAX && start[CT_PREFIX] && strchr("{ \t\n\r", start[CT_PREFIX]);
}

static uint64_t view_size(const struct measuring *m, const struct ct_version *version)
{
    /* Every member that was counted has its comma: one too many each, if there is any. */
    uint64_t meta = m->meta_len ? strlen("\"__metadata__\":{},") + m->meta_len - 1 : 0;
    uint64_t all = meta + m->tensors_len;
    uint64_t json = 2 + (all ? all - 1 : 0);
    return CT_PREFIX + (json + 7) / 8 * 8 + (version->size - CT_PREFIX - m->out->json_len);
}

/* 1: measured; 0: no header after all. */
static int measure(struct measuring *m, const struct ct_version *version)
{
    struct ct_measure *out = m->out;
    int c = ct_scan_peek(&m->scan);
    if (c != '{') {
        return m->scan.err->code == CT_OK ? 0 : -1;
    }
    out->kind = CT_KIND_PLAIN;
    if (ct_scan_at(&m->scan) != 0) {
        return ct_scan_fail(&m->scan, "a header begins with '{'");
    }
    if (out->json_len > CT_HEADER_MAX || out->json_len > version->size - CT_PREFIX) {
        return ct_err_set(m->scan.err, CT_MALFORMED, "%llu bytes in a file of %llu",
                          (unsigned long long)out->json_len, (unsigned long long)version->size);
    }
    if (count_object(m)) {
        return -1;
    }
    if (out->kind == CT_KIND_ENCRYPTED) {
        out->view_size = view_size(m, version);
        out->reserved = false;
    }
    return 1;
}

int ct_header_measure(struct ct_source *s, const struct ct_version *version, struct ct_measure *out,
                      struct ct_err *err)
{
    uint8_t start[CT_PREFIX + 1];
    struct ct_err mine;
    struct measuring m = {.out = out};
    *out = (struct ct_measure){.kind = CT_KIND_OTHER, .view_size = version->size};
    if (version->size < sizeof(start)) {
        return 0;
    }
    if (ct_source_read(s, start, sizeof(start), 0, version, err)) {
        return -1;
    }
    if (!begins_as_header(start)) {
        return 0;
    }
    ct_autofree uint8_t *window = malloc(WINDOW);
    if (!window) {
        return ct_err_set(err, CT_NOMEM, "no memory for a window");
    }
    out->json_len = ct_le64(start);
    uint64_t end = CT_PREFIX + out->json_len;
    ct_scan_source(&m.scan, s, CT_PREFIX, end < version->size ? end : version->size, window, WINDOW,
                   &mine);
    int r = measure(&m, version);
    if (r < 0) {
        if (err) {
            *err = mine;
        }
        return ct_err_wrap(err, "header");
    }
    if (r == 0) {
        out->json_len = 0;
    }
    return 0;
}
