#include <string.h>

#include "format/model_parts.h"

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Bytes of a tensor's messages; the last one may be shorter. */
static uint64_t message_size(const struct ct_model *m, const struct tensor *t)
{
    uint64_t len = t->end - t->begin;
    return m->keys.version == 1 ? len : least(m->keys.chunk_size, len);
}

uint64_t ct_message_begin(const struct ct_model *m, const struct tensor *t, const struct unit *u)
{
    return t->begin + u->message * message_size(m, t);
}

uint64_t ct_message_len(const struct ct_model *m, const struct tensor *t, const struct unit *u)
{
    return least(message_size(m, t), t->end - ct_message_begin(m, t, u));
}

void ct_unit_at(const struct ct_model *m, const struct tensor *t, uint64_t at, struct unit *out)
{
    uint64_t offset = at - t->begin;
    *out = (struct unit){.begin = at};
    if (!t->encrypted) {
        uint64_t piece = t->digests ? t->digests->piece : CT_EXTENT_MAX;
        out->piece = offset / piece;
        out->len = (uint32_t)least(piece - offset % piece, t->end - at);
        return;
    }
    out->message = offset / message_size(m, t);
    uint64_t begin = ct_message_begin(m, t, out);
    uint64_t len = ct_message_len(m, t, out);
    out->is_long = len > CT_PIECE;
    if (out->is_long) {
        out->piece = (at - begin) / CT_PIECE;
        len = least(CT_PIECE, begin + len - at);
    }
    out->len = (uint32_t)len;
}

static void close_extent(struct ct_buf *all, struct extent *now)
{
    if (now->len) {
        ct_buf_put(all, now, sizeof(*now));
    }
    now->len = 0;
}

/* Appends the units of tensor i to the extents; long messages go to `longs` as they begin. */
static void add_tensor(struct ct_model *m, size_t i, struct extent *now, struct ct_buf *all,
                       struct ct_buf *longs, uint64_t *pieces)
{
    struct tensor *t = &m->tensors[i];
    t->first_long = (uint32_t)(longs->len / sizeof(struct long_message));
    for (uint64_t at = t->begin; at < t->end && !all->failed && !longs->failed;) {
        struct unit u;
        ct_unit_at(m, t, at, &u);
        if (now->len + u.len > CT_EXTENT_MAX) {
            close_extent(all, now);
        }
        if (now->len == 0) {
            *now = (struct extent){at, 0, (uint32_t)i};
        }
        if (u.is_long && u.piece == 0) {
            struct long_message one = {NULL, *pieces};
            ct_buf_put(longs, &one, sizeof(one));
            *pieces += ct_piece_count(ct_message_len(m, t, &u));
        }
        now->len += u.len;
        at += u.len;
    }
}

static void *keep(struct ct_model *m, const struct ct_buf *b, size_t size, struct ct_err *err)
{
    void *p = ct_arena_alloc(&m->arena, b->len / size, size, err);
    if (p && b->len) {
        memcpy(p, b->data, b->len);
    }
    return p;
}

int ct_extents_make(struct ct_model *m, struct ct_err *err)
{
    ct_autobuf all = {0};
    ct_autobuf longs = {0};
    struct extent now = {0};
    uint64_t pieces = 0;
    if (m->body_len > CT_BODY_MAX) {
        return ct_err_set(err, CT_UNSUPPORTED, "a body of more than %llu bytes",
                          (unsigned long long)CT_BODY_MAX);
    }
    for (size_t i = 0; i < m->tensor_count; i++) {
        add_tensor(m, i, &now, &all, &longs, &pieces);
    }
    close_extent(&all, &now);
    m->extent_count = (uint32_t)(all.len / sizeof(struct extent)); /* fits, by CT_BODY_MAX */
    m->long_count = longs.len / sizeof(struct long_message);
    if (ct_buf_ok(&all, err) || ct_buf_ok(&longs, err) ||
        !(m->extents = keep(m, &all, sizeof(struct extent), err)) ||
        !(m->longs = keep(m, &longs, sizeof(struct long_message), err)) ||
        (pieces && !(m->pieces = ct_secret_new(pieces * sizeof(struct ct_piece), err)))) {
        return -1;
    }
    return 0;
}

uint32_t ct_model_extent_count(const struct ct_model *m)
{
    return m->extent_count;
}

void ct_model_extent(const struct ct_model *m, uint32_t i, struct ct_extent *out)
{
    *out = (struct ct_extent){m->extents[i].begin, m->extents[i].len};
}

uint32_t ct_model_extent_at(const struct ct_model *m, uint64_t body_offset)
{
    uint32_t lo = 0;
    uint32_t hi = m->extent_count;
    while (hi - lo > 1) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (m->extents[mid].begin <= body_offset) {
            lo = mid;
        } else {
            hi = mid;
        }
    }
    return lo;
}
