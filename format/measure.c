#include <string.h>

#include "format/header.h"
#include "format/meta.h"

/*
 * One pass over the header in blocks. The length of the view's header does not depend on the order
 * of members or on how they were spelled, so it is a sum over what passes by.
 */

enum { WINDOW = 65536 };

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
    bool first = true;
    int more = 0;
    uint64_t len = strlen("{\"dtype\":\"\",\"shape\":,\"data_offsets\":}");
    if (ct_scan_expect(&m->scan, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&m->scan, '}', &first)) == 1) {
        char name[16];
        size_t n = 0;
        if (ct_scan_short(&m->scan, name, sizeof(name), &n) || ct_scan_expect(&m->scan, ':')) {
            return -1;
        }
        if (n == 5 && strcmp(name, "dtype") == 0) {
            if (ct_scan_string(&m->scan, count_string, &len)) {
                return -1;
            }
        } else if ((n == 5 && strcmp(name, "shape") == 0) ||
                   (n == 12 && strcmp(name, "data_offsets") == 0)) {
            if (count_numbers(m, &len)) {
                return -1;
            }
        } else {
            return ct_scan_fail(&m->scan, "a member that a tensor does not have");
        }
    }
    m->out->tensor_count++;
    m->tensors_len += len;
    return more;
}

/* kid of `enc` and of `sign` in the text of __crypto_keys__; what is not as expected is for
 * ct_meta_keys() to say. */
static void find_kids(struct ct_measure *out, const char *text, size_t n)
{
    struct ct_err ignored;
    struct ct_scan s;
    bool first = true;
    ct_scan_memory(&s, text, n, &ignored);
    if (ct_scan_expect(&s, '{')) {
        return;
    }
    while (ct_scan_more(&s, '}', &first) == 1) {
        char name[16];
        char value[256];
        size_t len = 0;
        bool inner = true;
        uint64_t number = 0;
        if (ct_scan_short(&s, name, sizeof(name), &len) || ct_scan_expect(&s, ':')) {
            return;
        }
        int c = ct_scan_peek(&s);
        if (c != '{') {
            if (c == '"' ? ct_scan_string(&s, NULL, NULL) : ct_scan_u64(&s, &number)) {
                return;
            }
            continue;
        }
        char *kid = strcmp(name, "enc") == 0 ? out->enc_kid : out->sign_kid;
        (void)ct_scan_expect(&s, '{');
        while (ct_scan_more(&s, '}', &inner) == 1) {
            if (ct_scan_short(&s, name, sizeof(name), &len) || ct_scan_expect(&s, ':') ||
                ct_scan_short(&s, value, sizeof(value), &len)) {
                return;
            }
            if (strcmp(name, "kid") == 0 && len < sizeof(value)) {
                memcpy(kid, value, len + 1);
            }
        }
    }
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
        if (ct_span_eq(name, "__crypto_keys__")) {
            char text[8192];
            size_t n = 0;
            m->out->reserved = true;
            if (ct_scan_short(&m->scan, text, sizeof(text), &n)) {
                return -1;
            }
            if (n < sizeof(text)) {
                find_kids(m->out, text, n);
            }
        } else if (ct_meta_is_reserved(name)) {
            m->out->reserved = true;
            if (ct_span_eq(name, "__encryption__")) {
                m->out->kind = CT_KIND_ENCRYPTED;
            }
            if (ct_scan_string(&m->scan, NULL, NULL)) {
                return -1;
            }
        } else {
            if (ct_scan_string(&m->scan, count_string, &len)) {
                return -1;
            }
            m->meta_len += key.len + len + strlen("\"\":\"\",");
        }
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

static int begins_as_header(struct ct_source *s, const struct ct_version *version,
                            struct ct_measure *out, struct ct_err *err)
{
    uint8_t start[CT_PREFIX + 1];
    if (version->size < sizeof(start)) {
        return 0;
    }
    if (ct_source_read(s, start, sizeof(start), 0, version, err)) {
        return -1;
    }
    out->json_len = ct_le64(start);
    return out->json_len >= 2 && out->json_len <= CT_HEADER_MAX &&
           out->json_len <= version->size - CT_PREFIX && start[CT_PREFIX] == '{';
}

int ct_header_measure(struct ct_source *s, const struct ct_version *version, struct ct_measure *out,
                      struct ct_err *err)
{
    *out = (struct ct_measure){.kind = CT_KIND_OTHER, .view_size = version->size};
    int r = begins_as_header(s, version, out, err);
    if (r <= 0) {
        return r;
    }
    out->kind = CT_KIND_PLAIN;
    struct ct_err mine;
    struct measuring m = {.out = out};
    ct_autofree uint8_t *window = malloc(WINDOW);
    if (!window) {
        return ct_err_set(err, CT_NOMEM, "no memory for a window");
    }
    ct_scan_source(&m.scan, s, CT_PREFIX, CT_PREFIX + out->json_len, window, WINDOW, &mine);
    if (count_object(&m)) {
        if (err) {
            *err = mine;
        }
        return ct_err_wrap(err, "header");
    }
    if (out->kind == CT_KIND_ENCRYPTED) {
        /* Every member above has its comma: one too many each, unless there is none at all. */
        uint64_t meta = m.meta_len ? strlen("\"__metadata__\":{},") + m.meta_len - 1 : 0;
        uint64_t all = meta + m.tensors_len;
        uint64_t json = 2 + (all ? all - 1 : 0);
        out->view_size =
            CT_PREFIX + (json + 7) / 8 * 8 + (version->size - CT_PREFIX - out->json_len);
        out->reserved = false;
    }
    return 0;
}
