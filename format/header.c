#include "format/header.h"

#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "format/base/arena.h"

/* Indices into tensors + 1 by SipHash of the name, seeded anew for each header, so that nobody can
 * choose names that collide. */
struct ct_name_index {
    unsigned char seed[crypto_shorthash_KEYBYTES];
    uint32_t mask;
    uint32_t slots[];
};

struct parser {
    struct ct_scan scan;
    struct ct_arena *arena;      /* of tensors */
    struct ct_arena *meta_arena; /* of metadata, which is large and not needed for long */
    struct ct_buf text;          /* a string being decoded */
    struct ct_buf numbers;       /* a shape being read */
    struct ct_buf tensors, meta;
    bool has_metadata;
};

static const struct {
    const char *name;
    uint32_t bits;
} dtypes[] = {
    {"BOOL", 8}, {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},
    {"U16", 16}, {"F16", 16},    {"BF16", 16},   {"I32", 32},    {"U32", 32},
    {"F32", 32}, {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
};

static uint32_t dtype_bits(struct ct_span name)
{
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (ct_span_is(name, dtypes[i].name, strlen(dtypes[i].name))) {
            return dtypes[i].bits;
        }
    }
    return 0;
}

static int take_string(struct parser *p, struct ct_arena *arena, struct ct_span *out)
{
    p->text.len = 0;
    if (ct_scan_string_to(&p->scan, &p->text)) {
        return -1;
    }
    out->p = ct_arena_copy(arena, p->text.data, p->text.len, p->scan.err);
    out->n = p->text.len;
    return out->p ? 0 : -1;
}

static int take_numbers(struct parser *p, uint64_t **out, size_t *count)
{
    bool first = true;
    int more = 0;
    p->numbers.len = 0;
    if (ct_scan_expect(&p->scan, '[')) {
        return -1;
    }
    while ((more = ct_scan_more(&p->scan, ']', &first)) == 1) {
        uint64_t v = 0;
        if (ct_scan_u64(&p->scan, &v)) {
            return -1;
        }
        ct_buf_put(&p->numbers, &v, sizeof(v));
    }
    if (more < 0 || ct_buf_ok(&p->numbers, p->scan.err)) {
        return -1;
    }
    *count = p->numbers.len / sizeof(uint64_t);
    *out = ct_arena_alloc(p->arena, *count, sizeof(uint64_t), p->scan.err);
    if (!*out) {
        return -1;
    }
    if (*count) {
        memcpy(*out, p->numbers.data, p->numbers.len);
    }
    return 0;
}

enum { SEEN_DTYPE = 1, SEEN_SHAPE = 2, SEEN_OFFSETS = 4, SEEN_ALL = 7 };

static int take_offsets(struct parser *p, struct ct_tensor *t)
{
    uint64_t *offsets = NULL;
    size_t count = 0;
    if (take_numbers(p, &offsets, &count)) {
        return -1;
    }
    if (count != 2 || offsets[0] > offsets[1]) {
        return ct_scan_fail(&p->scan, "data_offsets are not [begin, end]");
    }
    t->begin = offsets[0];
    t->end = offsets[1];
    return 0;
}

static int take_member(struct parser *p, struct ct_tensor *t, unsigned *seen)
{
    char name[16];
    size_t n = 0;
    if (ct_scan_short(&p->scan, name, sizeof(name), &n) || ct_scan_expect(&p->scan, ':')) {
        return -1;
    }
    unsigned bit = strcmp(name, "dtype") == 0 && n == 5           ? SEEN_DTYPE
                   : strcmp(name, "shape") == 0 && n == 5         ? SEEN_SHAPE
                   : strcmp(name, "data_offsets") == 0 && n == 12 ? SEEN_OFFSETS
                                                                  : 0;
    if (!bit || *seen & bit) {
        return ct_scan_fail(&p->scan,
                            bit ? "a member twice" : "a member that a tensor does not have");
    }
    *seen |= bit;
    if (bit == SEEN_DTYPE) {
        return take_string(p, p->arena, &t->dtype);
    }
    if (bit == SEEN_OFFSETS) {
        return take_offsets(p, t);
    }
    uint64_t *shape = NULL;
    size_t rank = 0;
    if (take_numbers(p, &shape, &rank)) {
        return -1;
    }
    t->shape = shape;
    t->rank = (uint32_t)rank; /* bounded by CT_HEADER_MAX */
    return 0;
}

static int check_size(struct parser *p, const struct ct_tensor *t)
{
    uint64_t bits = t->bits;
    if (!bits) {
        return 0; /* a dtype of the future: its size is what the offsets say */
    }
    uint64_t elements = 1;
    for (uint32_t i = 0; i < t->rank; i++) {
        if (!ct_mul_u64(elements, t->shape[i], &elements)) {
            return ct_scan_fail(&p->scan, "a shape whose product overflows");
        }
    }
    if (!ct_mul_u64(elements, bits, &bits) || bits % 8 || bits / 8 != t->end - t->begin) {
        return ct_scan_fail(&p->scan, "shape, dtype and data_offsets do not agree");
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
    if (seen != SEEN_ALL) {
        return ct_scan_fail(&p->scan, "a tensor without dtype, shape or data_offsets");
    }
    t.bits = dtype_bits(t.dtype);
    if (check_size(p, &t)) {
        return -1;
    }
    ct_buf_put(&p->tensors, &t, sizeof(t));
    return ct_buf_ok(&p->tensors, p->scan.err);
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
        struct ct_meta m;
        if (take_string(p, p->meta_arena, &m.key) || ct_scan_expect(&p->scan, ':') ||
            take_string(p, p->meta_arena, &m.value)) {
            return -1;
        }
        ct_buf_put(&p->meta, &m, sizeof(m));
    }
    return more < 0 ? -1 : ct_buf_ok(&p->meta, p->scan.err);
}

static int take_object(struct parser *p)
{
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&p->scan, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&p->scan, '}', &first)) == 1) {
        struct ct_span name;
        if (take_string(p, p->arena, &name) || ct_scan_expect(&p->scan, ':')) {
            return -1;
        }
        if (ct_span_eq(name, "__metadata__") ? take_metadata(p) : take_tensor(p, name)) {
            return -1;
        }
    }
    return more < 0 ? -1 : ct_scan_end(&p->scan);
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

/* qsort is not stable; a merge sort keeps the file's order where offsets are equal. */
static int sort_tensors(struct ct_tensor *t, size_t n, struct ct_err *err)
{
    ct_autofree void *scratch = malloc(n ? n * sizeof(*t) : 1);
    struct ct_tensor *from = t;
    struct ct_tensor *to = scratch;
    if (!scratch) {
        return ct_err_set(err, CT_NOMEM, "no memory for %zu tensors", n);
    }
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t lo = 0; lo < n; lo += 2 * width) {
            size_t mid = lo + width < n ? lo + width : n;
            size_t hi = lo + 2 * width < n ? lo + 2 * width : n;
            size_t a = lo;
            size_t b = mid;
            for (size_t k = lo; k < hi; k++) {
                bool left = a < mid && (b >= hi || by_offset(&from[a], &from[b]) <= 0);
                to[k] = left ? from[a++] : from[b++];
            }
        }
        struct ct_tensor *swap = from;
        from = to;
        to = swap;
    }
    if (from != t) {
        memcpy(t, from, n * sizeof(*t));
    }
    return 0;
}

static int check_offsets(const struct ct_header *h, struct ct_err *err)
{
    uint64_t at = 0;
    for (size_t i = 0; i < h->tensor_count; i++) {
        const struct ct_tensor *t = &h->tensors[i];
        if (t->begin != at) {
            return ct_err_set(err, CT_MALFORMED, "tensor %.*s: %s at byte %llu of the body",
                              (int)(t->name.n < 128 ? t->name.n : 128), t->name.p,
                              t->begin > at ? "a hole" : "an overlap", (unsigned long long)at);
        }
        at = t->end;
    }
    if (at != h->body_len) {
        return ct_err_set(err, CT_MALFORMED, "the tensors end at byte %llu of a body of %llu",
                          (unsigned long long)at, (unsigned long long)h->body_len);
    }
    return 0;
}

static uint32_t slot_of(const struct ct_name_index *x, struct ct_span name)
{
    unsigned char hash[crypto_shorthash_BYTES];
    crypto_shorthash(hash, (const unsigned char *)name.p, name.n, x->seed);
    uint32_t v = 0;
    memcpy(&v, hash, sizeof(v));
    return v & x->mask;
}

static int index_names(struct ct_header *h, struct ct_arena *arena, struct ct_err *err)
{
    size_t slots = 8;
    while (slots < h->tensor_count * 2) {
        slots *= 2;
    }
    struct ct_name_index *x =
        ct_arena_alloc(arena, 1, sizeof(*x) + slots * sizeof(x->slots[0]), err);
    if (!x) {
        return -1;
    }
    randombytes_buf(x->seed, sizeof(x->seed));
    x->mask = (uint32_t)(slots - 1);
    h->names = x;
    for (size_t i = 0; i < h->tensor_count; i++) {
        struct ct_span name = h->tensors[i].name;
        uint32_t at = slot_of(x, name);
        for (; x->slots[at]; at = (at + 1) & x->mask) {
            struct ct_span other = h->tensors[x->slots[at] - 1].name;
            if (ct_span_is(name, other.p, other.n)) {
                return ct_err_set(err, CT_MALFORMED, "tensor %.*s twice",
                                  (int)(name.n < 128 ? name.n : 128), name.p);
            }
        }
        x->slots[at] = (uint32_t)(i + 1);
    }
    return 0;
}

static int check_meta(const struct ct_header *h, struct ct_err *err)
{
    for (size_t i = 1; i < h->meta_count; i++) {
        struct ct_span key = h->meta[i].key;
        if (ct_span_is(key, h->meta[i - 1].key.p, h->meta[i - 1].key.n)) {
            return ct_err_set(err, CT_MALFORMED, "metadata %.*s twice",
                              (int)(key.n < 128 ? key.n : 128), key.p);
        }
    }
    return 0;
}

/* Moves what was collected into the arena, sorts it, and checks it as a whole. */
static int finish(struct parser *p, struct ct_header *h, struct ct_err *err)
{
    h->tensor_count = p->tensors.len / sizeof(struct ct_tensor);
    h->meta_count = p->meta.len / sizeof(struct ct_meta);
    h->has_metadata = p->has_metadata;
    h->tensors = ct_arena_alloc(p->arena, h->tensor_count, sizeof(*h->tensors), err);
    h->meta = ct_arena_alloc(p->meta_arena, h->meta_count, sizeof(*h->meta), err);
    if (!h->tensors || !h->meta) {
        return -1;
    }
    if (h->tensor_count) {
        memcpy(h->tensors, p->tensors.data, p->tensors.len);
    }
    if (h->meta_count) {
        memcpy(h->meta, p->meta.data, p->meta.len);
        qsort(h->meta, h->meta_count, sizeof(*h->meta), by_key);
    }
    return sort_tensors(h->tensors, h->tensor_count, err) || check_offsets(h, err) ||
                   index_names(h, p->arena, err) || check_meta(h, err)
               ? -1
               : 0;
}

int ct_header_parse(const uint8_t *json, size_t n, uint64_t body_len, struct ct_header **out,
                    struct ct_err *err)
{
    struct ct_err mine;
    struct parser p = {0};
    struct ct_header *h = calloc(1, sizeof(*h));
    struct ct_arena *arena = calloc(2, sizeof(*arena));
    *out = NULL;
    if (!h || !arena) {
        free(h);
        free(arena);
        return ct_err_set(err, CT_NOMEM, "no memory for a header");
    }
    h->arena = arena;
    h->json_len = n;
    h->body_len = body_len;
    p.arena = &arena[0];
    p.meta_arena = &arena[1];
    ct_scan_memory(&p.scan, json, n, &mine);
    int r = n > CT_HEADER_MAX ? ct_scan_fail(&p.scan, "a header above 100,000,000 bytes")
            : take_object(&p) ? -1
                              : finish(&p, h, &mine);
    ct_buf_free(&p.text);
    ct_buf_free(&p.numbers);
    ct_buf_free(&p.tensors);
    ct_buf_free(&p.meta);
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
    const struct ct_name_index *x = h->names;
    for (uint32_t at = slot_of(x, name); x->slots[at]; at = (at + 1) & x->mask) {
        uint32_t i = x->slots[at] - 1;
        if (ct_span_is(name, h->tensors[i].name.p, h->tensors[i].name.n)) {
            return (ptrdiff_t)i;
        }
    }
    return -1;
}
