#include <string.h>

#include "format/model_parts.h"

const struct ct_digests *ct_plain_digests(const struct ct_model *m, const struct ct_tensor *t)
{
    size_t lo = 0;
    size_t hi = m->entry ? m->entry->plain_count : 0;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (m->entry->plain[mid].begin < t->begin) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    bool found = m->entry && lo < m->entry->plain_count && m->entry->plain[lo].begin == t->begin &&
                 m->entry->plain[lo].end == t->end;
    return found ? &m->entry->plain[lo] : NULL;
}

/* Bytes of a message of an encrypted tensor; the last one may be shorter. */
static uint64_t message_len(const struct ct_model *m, const struct ct_tensor *t)
{
    uint64_t len = t->end - t->begin;
    return m->keys.version == 1 || m->keys.chunk_size > len ? len : m->keys.chunk_size;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

void ct_unit_at(const struct ct_model *m, size_t tensor, uint64_t at, struct unit *out)
{
    const struct ct_tensor *t = &m->header->tensors[tensor];
    uint64_t offset = at - t->begin;
    *out = (struct unit){.begin = at, .encrypted = m->enc.entries[tensor].encrypted};
    if (!out->encrypted) {
        const struct ct_digests *d = ct_plain_digests(m, t);
        uint64_t piece = d ? d->piece : CT_EXTENT_MAX;
        out->piece = offset / piece;
        out->len = (uint32_t)least(piece - offset % piece, t->end - at);
        return;
    }
    uint64_t whole = message_len(m, t);
    out->message = offset / whole;
    uint64_t begin = t->begin + out->message * whole;
    uint64_t len = least(whole, t->end - begin);
    out->is_long = len > CT_EXTENT_MAX;
    if (out->is_long) {
        out->piece = (at - begin) / CT_PIECE;
        len = least(CT_PIECE, begin + len - at);
    }
    out->len = (uint32_t)len;
}

uint64_t ct_long_messages(const struct ct_model *m, size_t tensor)
{
    const struct ct_tensor *t = &m->header->tensors[tensor];
    if (!m->enc.entries[tensor].encrypted || t->begin == t->end) {
        return 0;
    }
    uint64_t len = t->end - t->begin;
    uint64_t whole = message_len(m, t);
    return whole <= CT_EXTENT_MAX ? 0 : len / whole + (len % whole > CT_EXTENT_MAX);
}

static int count_longs(struct ct_model *m, struct ct_err *err)
{
    size_t tensors = m->header->tensor_count;
    for (size_t i = 0; i < tensors; i++) {
        uint64_t n = ct_long_messages(m, i);
        if (n && !m->long_first && !(m->long_first = calloc(tensors, sizeof(*m->long_first)))) {
            return ct_err_set(err, CT_NOMEM, "no memory for %zu tensors", tensors);
        }
        if (m->long_first) {
            m->long_first[i] = (uint32_t)m->long_count;
        }
        m->long_count += n; /* each has a tag in the header, so there are few */
    }
    m->longs = calloc(m->long_count ? m->long_count : 1, sizeof(*m->longs));
    return m->longs ? 0 : ct_err_set(err, CT_NOMEM, "no memory for long messages");
}

int ct_extents_make(struct ct_model *m, struct ct_err *err)
{
    struct ct_buf all = {0};
    struct extent now = {0};
    for (size_t i = 0; i < m->header->tensor_count; i++) {
        const struct ct_tensor *t = &m->header->tensors[i];
        for (uint64_t at = t->begin; at < t->end;) {
            struct unit u;
            ct_unit_at(m, i, at, &u);
            if (now.len == 0 || now.len + u.len > CT_EXTENT_MAX) {
                if (now.len) {
                    ct_buf_put(&all, &now, sizeof(now));
                }
                now = (struct extent){at, 0, (uint32_t)i};
            }
            now.len += u.len;
            at += u.len;
        }
    }
    if (now.len) {
        ct_buf_put(&all, &now, sizeof(now));
    }
    size_t n = all.len / sizeof(struct extent);
    if (ct_buf_ok(&all, err) || n > UINT32_MAX) {
        ct_buf_free(&all);
        return ct_err_set(err, CT_NOMEM, "no memory for %zu extents", n);
    }
    m->extent_count = (uint32_t)n;
    m->extents = malloc(n ? all.len : 1);
    if (m->extents && n) {
        memcpy(m->extents, all.data, all.len);
    }
    ct_buf_free(&all);
    if (!m->extents) {
        return ct_err_set(err, CT_NOMEM, "no memory for %zu extents", n);
    }
    m->info.memory += n * sizeof(struct extent);
    return count_longs(m, err);
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
