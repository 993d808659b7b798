#include "format/header.h"

#include <stdio.h>
#include <string.h>

#include "format/base/arena.h"
#include "format/base/sort.h"
#include "format/names.h"

/*
 * The text is read twice: the first pass checks it and counts, the second one fills memory of
 * exactly the size that was counted. So a hostile header costs a small multiple of its length
 * whatever it holds, and nothing has to grow.
 */
struct pool { /* decoded strings; NULL while counting */
    char *p;
    size_t used;
};

struct parser {
    struct ct_scan scan;
    bool fill;                   /* the second pass */
    struct pool text, meta_text; /* metadata is large and not needed for long */
    uint64_t *numbers;           /* of all shapes */
    struct ct_tensor *tensors;   /* in the file's order */
    struct ct_meta *meta;
    size_t number_count, tensor_count, meta_count;
    bool has_metadata;
};

static const struct {
    struct ct_span name;
    uint32_t bits;
} dtypes[] = {
#define DTYPE(name, bits)                                                                          \
    {                                                                                              \
        {name, sizeof(name) - 1}, bits                                                             \
    }
    DTYPE("BOOL", 8),    DTYPE("F4", 4),   DTYPE("F6_E2M3", 6), DTYPE("F6_E3M2", 6),
    DTYPE("U8", 8),      DTYPE("I8", 8),   DTYPE("F8_E5M2", 8), DTYPE("F8_E4M3", 8),
    DTYPE("F8_E8M0", 8), DTYPE("I16", 16), DTYPE("U16", 16),    DTYPE("F16", 16),
    DTYPE("BF16", 16),   DTYPE("I32", 32), DTYPE("U32", 32),    DTYPE("F32", 32),
    DTYPE("C64", 64),    DTYPE("F64", 64), DTYPE("I64", 64),    DTYPE("U64", 64),
#undef DTYPE
};

struct string { /* just taken; its beginning is known in both passes */
    struct pool *pool;
    size_t n;
    char head[16];
};

static int to_pool(void *ctx, const uint8_t *p, size_t n, struct ct_err *err)
{
    struct string *s = ctx;
    (void)err;
    if (s->n < sizeof(s->head)) {
        size_t room = sizeof(s->head) - s->n;
        memcpy(s->head + s->n, p, n < room ? n : room);
    }
    if (s->pool->p) {
        memcpy(s->pool->p + s->pool->used, p, n);
    }
    s->pool->used += n;
    s->n += n;
    return 0;
}

static int take_string(struct parser *p, struct pool *pool, struct string *out)
{
    out->pool = pool;
    out->n = 0;
    return ct_scan_string(&p->scan, to_pool, out);
}

static struct ct_span span_of(const struct string *s)
{
    return (struct ct_span){s->pool->p ? s->pool->p + s->pool->used - s->n : NULL, s->n};
}

static bool string_is(const struct string *s, struct ct_span text)
{
    return s->n <= sizeof(s->head) && ct_span_is(text, s->head, s->n);
}

static int take_dtype(struct parser *p, struct ct_tensor *t)
{
    struct string s;
    if (take_string(p, &p->text, &s)) {
        return -1;
    }
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (string_is(&s, dtypes[i].name)) {
            /* Its text goes again, but the first pass leaves room for it: it may be the last. */
            s.pool->used -= p->fill ? s.n : 0;
            t->dtype = dtypes[i].name;
            t->bits = dtypes[i].bits;
            return 0;
        }
    }
    t->dtype = span_of(&s);
    return 0;
}

static int take_shape(struct parser *p, struct ct_tensor *t)
{
    size_t from = p->number_count;
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&p->scan, '[')) {
        return -1;
    }
    while ((more = ct_scan_more(&p->scan, ']', &first)) == 1) {
        uint64_t v = 0;
        if (ct_scan_u64(&p->scan, &v)) {
            return -1;
        }
        if (p->fill) {
            p->numbers[p->number_count] = v;
        }
        p->number_count++;
    }
    if (p->fill) {
        t->shape = p->numbers + from;
        t->rank = (uint32_t)(p->number_count - from); /* bounded by CT_HEADER_MAX */
    }
    return more;
}

static int take_offsets(struct parser *p, struct ct_tensor *t)
{
    struct ct_scan *s = &p->scan;
    if (ct_scan_expect(s, '[') || ct_scan_u64(s, &t->begin) || ct_scan_expect(s, ',') ||
        ct_scan_u64(s, &t->end) || ct_scan_expect(s, ']')) {
        return -1;
    }
    return t->begin <= t->end ? 0 : ct_scan_fail(s, "data_offsets that end before they begin");
}

static int take_member(struct parser *p, struct ct_tensor *t, unsigned *seen)
{
    static const char *const names[] = {"dtype", "shape", "data_offsets", NULL};
    int which = -1;
    if (ct_scan_member(&p->scan, names, seen, &which)) {
        return -1;
    }
    return which == 0   ? take_dtype(p, t)
           : which == 1 ? take_shape(p, t)
           : which == 2 ? take_offsets(p, t)
                        : ct_scan_fail(&p->scan, "a member that a tensor does not have");
}

static int check_size(const struct ct_tensor *t, struct ct_err *err)
{
    uint64_t bits = 0;
    uint64_t elements = 1;
    if (!t->bits) {
        return 0; /* not known: the size is what the offsets say */
    }
    for (uint32_t i = 0; i < t->rank; i++) {
        if (!ct_mul_u64(elements, t->shape[i], &elements)) {
            return ct_err_set(err, CT_MALFORMED, "a shape whose product overflows");
        }
    }
    if (!ct_mul_u64(elements, t->bits, &bits) || bits % 8 || bits / 8 != t->end - t->begin) {
        return ct_err_set(err, CT_MALFORMED, "shape, dtype and data_offsets do not agree");
    }
    return 0;
}

static int take_tensor(struct parser *p, struct ct_span name)
{
    struct ct_tensor t = {.name = name};
    unsigned seen = 0;
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&p->scan, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&p->scan, '}', &first)) == 1) {
        if (take_member(p, &t, &seen)) {
            return -1;
        }
    }
    if (more < 0) {
        return -1;
    }
    if (seen != 7) {
        return ct_scan_fail(&p->scan, "a tensor without dtype, shape or data_offsets");
    }
    if (p->fill) {
        p->tensors[p->tensor_count] = t;
    }
    p->tensor_count++;
    return p->fill && check_size(&t, p->scan.err)
               ? ct_err_wrap(p->scan.err, "tensor %.*s", ct_span_shown(name), name.p)
               : 0;
}

static int take_metadata(struct parser *p)
{
    bool first = true;
    int more = 0;
    if (p->has_metadata) {
        return ct_scan_fail(&p->scan, "__metadata__ twice");
    }
    p->has_metadata = true;
    if (ct_scan_expect(&p->scan, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&p->scan, '}', &first)) == 1) {
        struct string key;
        struct string value;
        if (take_string(p, &p->meta_text, &key)) {
            return -1;
        }
        struct ct_span key_span = span_of(&key);
        if (ct_scan_expect(&p->scan, ':') || take_string(p, &p->meta_text, &value)) {
            return -1;
        }
        if (p->fill) {
            p->meta[p->meta_count] = (struct ct_meta){key_span, span_of(&value)};
        }
        p->meta_count++;
    }
    return more;
}

static int take_object(struct parser *p)
{
    static const struct ct_span metadata_name = {"__metadata__", 12};
    bool first = true;
    int more = 0;
    if (p->scan.p == p->scan.end || *p->scan.p != '{') {
        return ct_scan_fail(&p->scan, "a header begins with '{'");
    }
    (void)ct_scan_expect(&p->scan, '{');
    while ((more = ct_scan_more(&p->scan, '}', &first)) == 1) {
        struct string name;
        if (take_string(p, &p->text, &name) || ct_scan_expect(&p->scan, ':')) {
            return -1;
        }
        bool is_metadata = string_is(&name, metadata_name);
        if (is_metadata ? take_metadata(p) : take_tensor(p, span_of(&name))) {
            return -1;
        }
    }
    return more < 0 ? -1 : ct_scan_end(&p->scan);
}

/* Both passes; what they found is in `arena` (tensors) and `meta_arena` then. */
static int take_twice(struct parser *p, const uint8_t *json, size_t n, struct ct_arena *arena,
                      struct ct_arena *meta_arena, struct ct_err *err)
{
    ct_scan_memory(&p->scan, json, n, err);
    if (take_object(p)) {
        return -1;
    }
    struct parser q = {.scan = p->scan, .fill = true};
    if (!(q.tensors = ct_arena_alloc(arena, p->tensor_count, sizeof(*q.tensors), err)) ||
        !(q.numbers = ct_arena_alloc(arena, p->number_count, sizeof(*q.numbers), err)) ||
        !(q.text.p = ct_arena_alloc(arena, p->text.used, 1, err)) ||
        !(q.meta = ct_arena_alloc(meta_arena, p->meta_count, sizeof(*q.meta), err)) ||
        !(q.meta_text.p = ct_arena_alloc(meta_arena, p->meta_text.used, 1, err))) {
        return -1;
    }
    *p = q;
    ct_scan_memory(&p->scan, json, n, err);
    return take_object(p);
}

/* ---- what holds for the whole ---- */

static int by_offset(const void *a, const void *b)
{
    const struct ct_tensor *x = a;
    const struct ct_tensor *y = b;
    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    return (x->end > y->end) - (x->end < y->end);
}

static int by_key(const void *a, const void *b)
{
    const struct ct_meta *x = a;
    const struct ct_meta *y = b;
    return ct_cmp_bytes(x->key.p, x->key.n, y->key.p, y->key.n);
}

static int check_offsets(struct ct_header *h, struct ct_err *err)
{
    uint64_t at = 0;
    for (size_t i = 0; i < h->tensor_count; i++) {
        const struct ct_tensor *t = &h->tensors[i];
        if (t->begin != at) {
            return ct_err_set(err, CT_MALFORMED, "tensor %.*s: %s at byte %llu of the body",
                              ct_span_shown(t->name), t->name.p,
                              t->begin > at ? "a hole" : "an overlap", (unsigned long long)at);
        }
        at = t->end;
    }
    if (h->body_len == CT_BODY_UNKNOWN) {
        h->body_len = at;
    }
    if (at != h->body_len) {
        return ct_err_set(err, CT_MALFORMED, "the tensors end at byte %llu of a body of %llu",
                          (unsigned long long)at, (unsigned long long)h->body_len);
    }
    return 0;
}

static int check_meta(const struct ct_header *h, struct ct_err *err)
{
    for (size_t i = 1; i < h->meta_count; i++) {
        struct ct_span key = h->meta[i].key;
        if (ct_span_is(key, h->meta[i - 1].key.p, h->meta[i - 1].key.n)) {
            return ct_err_set(err, CT_MALFORMED, "metadata %.*s twice", ct_span_shown(key), key.p);
        }
    }
    return 0;
}

static int check_whole(struct ct_header *h, struct ct_arena *arena, struct ct_err *err)
{
    return ct_sort(h->tensors, h->tensor_count, sizeof(*h->tensors), by_offset, err) ||
                   ct_names_index(h->tensors, h->tensor_count, arena, &h->names, err) ||
                   check_offsets(h, err) ||
                   ct_sort(h->meta, h->meta_count, sizeof(*h->meta), by_key, err) ||
                   check_meta(h, err)
               ? -1
               : 0;
}

int ct_header_parse(const uint8_t *json, size_t n, uint64_t body_len, struct ct_header **out,
                    struct ct_err *err)
{
    struct ct_err mine = CT_ERR_INIT;
    struct parser p = {0};
    struct ct_header *h = calloc(1, sizeof(*h));
    struct ct_arena *arena = calloc(2, sizeof(*arena));
    *out = NULL;
    if (!h || !arena) {
        free(h);
        free(arena);
        return ct_err_set(err, CT_NOMEM, "no memory for a header");
    }
    *h = (struct ct_header){.json_len = n, .body_len = body_len, .arena = arena};
    int r = n > CT_HEADER_MAX ? ct_err_set(&mine, CT_MALFORMED, "above %d bytes", CT_HEADER_MAX)
                              : take_twice(&p, json, n, &arena[0], &arena[1], &mine);
    if (r == 0) {
        h->has_metadata = p.has_metadata;
        h->tensor_count = p.tensor_count;
        h->meta_count = p.meta_count;
        h->tensors = p.tensors;
        h->meta = p.meta;
        r = check_whole(h, &arena[0], &mine);
    }
    if (r) {
        ct_header_free(h);
        if (err) {
            *err = mine;
        }
        return ct_err_wrap(err, "header");
    }
    *out = h;
    return 0;
}

void ct_header_free(struct ct_header *h)
{
    if (h) {
        struct ct_arena *arena = h->arena;
        ct_arena_free(&arena[0]);
        ct_arena_free(&arena[1]);
        free(arena);
        free(h);
    }
}

size_t ct_header_memory(const struct ct_header *h)
{
    const struct ct_arena *arena = h->arena;
    return sizeof(*h) + arena[0].total + arena[1].total;
}

void ct_header_forget_meta(struct ct_header *h)
{
    struct ct_arena *arena = h->arena;
    ct_arena_free(&arena[1]);
    h->meta = NULL;
    h->meta_count = 0;
}

int ct_header_read(struct ct_source *s, const struct ct_version *version, struct ct_buf *raw,
                   struct ct_header **out, struct ct_err *err)
{
    uint8_t prefix[CT_PREFIX];
    *out = NULL;
    if (version->size < CT_PREFIX) {
        return ct_err_set(err, CT_MALFORMED, "a file of %llu bytes has no header",
                          (unsigned long long)version->size);
    }
    if (ct_source_read(s, prefix, sizeof(prefix), 0, version, err)) {
        return -1;
    }
    uint64_t n = ct_le64(prefix);
    if (n > CT_HEADER_MAX || n > version->size - CT_PREFIX) {
        return ct_err_set(err, CT_MALFORMED, "a header of %llu bytes in a file of %llu",
                          (unsigned long long)n, (unsigned long long)version->size);
    }
    ct_autobuf own = {0};
    struct ct_buf *text = raw ? raw : &own;
    ct_buf_put(text, prefix, sizeof(prefix));
    uint8_t *to = ct_buf_reserve(text, n);
    if (!to) {
        return ct_buf_ok(text, err);
    }
    if (ct_source_read(s, to, n, CT_PREFIX, version, err)) {
        return -1;
    }
    text->len += n;
    return ct_header_parse(to, n, version->size - CT_PREFIX - n, out, err);
}

const struct ct_span *ct_header_meta(const struct ct_header *h, const char *key)
{
    size_t n = strlen(key);
    size_t lo = 0;
    size_t hi = h->meta_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int r = ct_cmp_bytes(h->meta[mid].key.p, h->meta[mid].key.n, key, n);
        if (r == 0) {
            return &h->meta[mid].value;
        }
        if (r < 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return NULL;
}

ptrdiff_t ct_header_find(const struct ct_header *h, struct ct_span name)
{
    return ct_names_find(h->names, h->tensors, name);
}
