/*
 * Encrypted files, whole: prefix, header, body. Mutations (mutate_header.c) are signed again with
 * the vectors' keys, so that they get past the signature; some of them fit DEKs and tags as well.
 * A body shorter than its header says goes on with zeros, so that small inputs make long messages.
 * What is checked holds for every input.
 */
#include "format/canon.h"
#include "tests/fuzz/model_file.h"

static struct ct_keyring *ring;

void fuzz_start(void)
{
    silence();
    ring = vector_keys();
}

static bool same_span(struct ct_span a, struct ct_span b)
{
    return ct_span_is(a, b.p, b.n);
}

static void check_same(const struct ct_header *a, const struct ct_header *b)
{
    MUST(a->tensor_count == b->tensor_count && a->body_len == b->body_len);
    for (size_t i = 0; i < a->tensor_count; i++) {
        const struct ct_tensor *x = &a->tensors[i];
        const struct ct_tensor *y = &b->tensors[i];
        MUST(same_span(x->name, y->name) && same_span(x->dtype, y->dtype));
        MUST(x->begin == y->begin && x->end == y->end && x->rank == y->rank && x->bits == y->bits);
        MUST(x->rank == 0 || memcmp(x->shape, y->shape, x->rank * sizeof(*x->shape)) == 0);
    }
}

typedef int (*form_fn)(const struct ct_header *h, struct ct_buf *out, struct ct_err *err);

/* A serialised form is a header like the one it was made from, and is its own form. `skip` bytes
 * stand before the JSON. */
static struct ct_header *check_form(const struct ct_header *h, form_fn form, size_t skip,
                                    struct ct_buf *text)
{
    struct ct_header *again = NULL;
    ct_autobuf second = {0};
    MUST(form(h, text, NULL) == 0 && text->len > skip);
    MUST(ct_header_parse(text->data + skip, text->len - skip, h->body_len, &again, NULL) == 0);
    check_same(h, again);
    MUST(form(again, &second, NULL) == 0);
    MUST(second.len == text->len && memcmp(second.data, text->data, text->len) == 0);
    return again;
}

/* Escapes are those that format/README.md section 3 names, and nothing else is escaped. */
static void check_escapes(const struct ct_buf *text)
{
    for (size_t i = 0; i < text->len; i++) {
        if (text->data[i] != '\\') {
            MUST(text->data[i] >= 0x20);
            continue;
        }
        const char *e = (const char *)&text->data[++i];
        if (*e != 'u') {
            MUST(*e && strchr("\"\\btnfr", *e));
            continue;
        }
        MUST(memcmp(e, "u00", 3) == 0 && (e[3] == '0' || e[3] == '1'));
        MUST(e[4] && strchr(e[3] == '1' ? "0123456789abcdef" : "01234567bef", e[4]));
    }
}

static void check_canonical(const struct ct_header *h)
{
    ct_autobuf text = {0};
    struct ct_header *again = check_form(h, ct_canon_signed, 0, &text);
    check_escapes(&text);
    MUST(!ct_header_meta(again, "__signature__"));
    MUST(again->has_metadata == h->has_metadata);
    MUST(again->meta_count + (ct_header_meta(h, "__signature__") != NULL) == h->meta_count);
    for (size_t i = 0; i < again->meta_count; i++) {
        char name[256] = "";
        if (again->meta[i].key.n < sizeof(name) &&
            !memchr(again->meta[i].key.p, 0, again->meta[i].key.n)) {
            memcpy(name, again->meta[i].key.p, again->meta[i].key.n);
            const struct ct_span *value = ct_header_meta(h, name);
            MUST(value && same_span(*value, again->meta[i].value));
        }
    }
    ct_header_free(again);
}

static void check_measure(const struct model_file *f, const struct ct_header *h, uint64_t view_len)
{
    struct ct_measure m;
    struct ct_version v = model_file_version(f);
    struct ct_keys_field keys = {0};
    const struct ct_span *text = ct_header_meta(h, "__crypto_keys__");
    bool reserved = false;
    MUST(ct_header_measure((struct ct_source *)&f->source, &v, &m, NULL) == 0);
    MUST(m.json_len == h->json_len && m.tensor_count == h->tensor_count);
    for (size_t i = 0; i < h->meta_count; i++) {
        reserved |= ct_meta_is_reserved(h->meta[i].key);
    }
    MUST(m.kind == (ct_meta_is_encrypted(h) ? CT_KIND_ENCRYPTED : CT_KIND_PLAIN));
    MUST(m.view_size == (ct_meta_is_encrypted(h) ? view_len + h->body_len : f->size));
    MUST(m.reserved == (reserved && !ct_meta_is_encrypted(h)));
    if (text && text->n < 8000 && ct_meta_keys(h, &keys, NULL) == 0) {
        MUST(!m.enc_kid[0] || ct_span_is(keys.enc.kid, m.enc_kid, strlen(m.enc_kid)));
        MUST(m.enc_kid[0] || keys.enc.kid.n == 0 || keys.enc.kid.n > 255 ||
             memchr(keys.enc.kid.p, 0, keys.enc.kid.n));
        MUST(!m.sign_kid[0] || ct_span_is(keys.sign.kid, m.sign_kid, strlen(m.sign_kid)));
        ct_keys_field_free(&keys);
    }
}

/* The view is a plain file: for our own parser, for `ls`, and in its size. */
static void check_view(const struct model_file *f, const struct ct_header *h)
{
    struct ct_measure m;
    struct model_file view;
    ct_autobuf text = {0};
    struct ct_header *again = check_form(h, ct_view_header, CT_PREFIX, &text);
    MUST(ct_le64(text.data) == text.len - CT_PREFIX && text.len % 8 == 0);
    for (size_t i = 0; i < again->meta_count; i++) {
        MUST(!ct_meta_is_reserved(again->meta[i].key));
    }
    check_measure(f, h, text.len);
    model_file_init(&view, text.data, text.len);
    view.size = text.len + h->body_len;
    struct ct_version v = model_file_version(&view);
    MUST(ct_header_measure(&view.source, &v, &m, NULL) == 0);
    MUST(m.kind == CT_KIND_PLAIN && !m.reserved && m.view_size == view.size);
    ct_header_free(again);
}

/* A size that shape and dtype give; any for a dtype that is not known. */
static void check_size(const struct ct_tensor *t)
{
    uint64_t elements = 1;
    uint64_t bits = 0;
    for (uint32_t i = 0; i < t->rank && t->bits; i++) {
        MUST(ct_mul_u64(elements, t->shape[i], &elements));
    }
    MUST(ct_mul_u64(elements, t->bits, &bits) && bits % 8 == 0);
    MUST(!t->bits || bits / 8 == t->end - t->begin);
}

static void check_tensors(const struct ct_header *h)
{
    uint64_t at = 0;
    for (size_t i = 0; i < h->tensor_count; i++) {
        MUST(h->tensors[i].begin == at && h->tensors[i].end >= at);
        at = h->tensors[i].end;
        check_size(&h->tensors[i]);
        MUST(ct_header_find(h, h->tensors[i].name) == (ptrdiff_t)i);
    }
    MUST(at == h->body_len);
    MUST(ct_header_find(h, (struct ct_span){"__metadata__", 12}) == -1);
    MUST(ct_header_memory(h) > 0);
}

/* What a manifest vouches for: a header, too, that lost what rewrapping changes. */
static void check_immutable(const struct ct_header *h)
{
    struct ct_keys_field keys = {0};
    struct ct_encryption_field enc = {0};
    struct ct_policy_field policy = {0};
    struct ct_err err = CT_ERR_INIT;
    ct_autobuf text = {0};
    struct ct_header *again = NULL;
    if (ct_meta_keys(h, &keys, &err) == 0 && ct_meta_encryption(h, &keys, &enc, &err) == 0) {
        MUST(enc.count == h->tensor_count);
        MUST(ct_canon_immutable(h, &keys, &enc, &text, NULL) == 0);
        MUST(ct_header_parse(text.data, text.len, h->body_len, &again, NULL) == 0);
        check_same(h, again);
        MUST(!ct_header_meta(again, "__crypto_keys__") && !ct_header_meta(again, "__signature__"));
    } else {
        MUST(err.code != CT_OK && err.msg[0]);
    }
    if (ct_meta_policy(h, &policy, NULL) == 0) {
        MUST(policy.local[policy.local_len] == '\0' && policy.remote[policy.remote_len] == '\0');
    }
    ct_policy_field_free(&policy);
    ct_encryption_field_free(&enc);
    ct_keys_field_free(&keys);
    ct_header_free(again);
}

/* A reader that never gets as far as a header must get an error, and `ls` may not promise more. */
static void check_refused(struct model_file *f, const struct ct_err *why)
{
    struct ct_measure m;
    struct ct_err err = CT_ERR_INIT;
    struct ct_version v = model_file_version(f);
    MUST(why->code != CT_OK && why->msg[0]);
    int r = ct_header_measure(&f->source, &v, &m, &err);
    MUST(r == 0 || (err.code != CT_OK && err.msg[0]));
    MUST(r == 0 || m.kind != CT_KIND_OTHER);
}

static void check_file(struct model_file *f)
{
    struct ct_header *h = NULL;
    struct ct_err err = CT_ERR_INIT;
    struct ct_version v = model_file_version(f);
    ct_autobuf raw = {0};
    if (ct_header_read(&f->source, &v, &raw, &h, &err)) {
        MUST(!h);
        check_refused(f, &err);
        return;
    }
    MUST(h && raw.len == CT_PREFIX + h->json_len && h->body_len == f->size - raw.len);
    check_tensors(h);
    check_canonical(h);
    check_view(f, h);
    check_immutable(h);
    check_model(f, h, raw.data, raw.len, ring);
    ct_header_free(h);
}

/* Cut off before the end, or on a disk that breaks within the header: refused. */
static void check_short(struct model_file f, uint64_t size)
{
    struct ct_header *h = NULL;
    struct ct_err err = CT_ERR_INIT;
    struct ct_version v = model_file_version(&f);
    f.fail_at = CT_PREFIX + ct_le64(f.p) - 1;
    MUST(ct_header_read(&f.source, &v, NULL, &h, &err) == -1 && err.code == CT_IO && !h);
    f.fail_at = UINT64_MAX;
    f.size = size;
    v = model_file_version(&f);
    MUST(ct_header_read(&f.source, &v, NULL, &h, &err) == -1 && err.code == CT_MALFORMED && !h);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_file f;
    model_file_init(&f, data, size);
    check_file(&f);
    if (f.size > size) {
        check_short(f, size);
    }
    return 0;
}
