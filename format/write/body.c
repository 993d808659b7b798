#include "format/aead/stream.h"
#include "format/write/write.h"

/* ---- encrypting ---- */

struct encryption {
    const struct ct_body *b;
    struct ct_plan *p;
    size_t tensor; /* the cursor: what is to be done next */
    uint64_t at;
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The longest run of whole messages of the tensor under the cursor that fits in `room`; the first
 * message, however long, when `alone`. */
static uint64_t whole_messages(const struct encryption *c, uint64_t room, bool alone)
{
    uint64_t unit = c->p->parts[c->tensor].unit;
    uint64_t left = c->p->header->tensors[c->tensor].end - c->at;
    if (room == 0) {
        return 0;
    }
    if (left <= room) {
        return left;
    }
    return room < unit && alone ? min_u64(unit, left) : room - room % unit;
}

/* As many whole messages as fit in CT_SPAN, or a single longer one. */
static bool next_span(void *ctx, struct ct_span_of *span)
{
    struct encryption *c = ctx;
    const struct ct_header *h = c->p->header;
    *span = (struct ct_span_of){.begin = c->at};
    while (c->tensor < h->tensor_count) {
        if (c->at == h->tensors[c->tensor].end) {
            c->tensor++;
            continue;
        }
        uint64_t room = span->len < CT_SPAN ? CT_SPAN - span->len : 0;
        uint64_t n = whole_messages(c, room, span->len == 0);
        if (n == 0) {
            break;
        }
        if (span->len == 0) {
            span->tensor = c->tensor;
        }
        span->len += n;
        c->at += n;
    }
    return span->len > 0;
}

/* The worker's cipher with the DEK of tensor i. */
static int use_dek(const struct ct_plan *p, struct ct_worker *w, size_t i, struct ct_err *err)
{
    if (w->keyed == i + 1) {
        return 0;
    }
    w->keyed = 0;
    if (!w->aead) {
        w->aead = ct_aead_new(p->keys.enc.alg, ct_plan_dek(p, i), err);
        if (!w->aead) {
            return -1;
        }
    } else if (ct_aead_rekey(w->aead, ct_plan_dek(p, i), err)) {
        return -1;
    }
    w->keyed = i + 1;
    return 0;
}

/* Whole messages of tensor i in memory, the first beginning at `at` of the body. */
static int run_messages(struct encryption *c, struct ct_worker *w, size_t i, uint64_t at,
                        uint8_t *buf, uint64_t len, struct ct_err *err)
{
    const struct ct_part *part = &c->p->parts[i];
    bool encrypted = c->p->enc.entries[i].encrypted;
    uint64_t index = (at - c->p->header->tensors[i].begin) / part->unit;
    if (encrypted && use_dek(c->p, w, i, err)) {
        return -1;
    }
    for (; len > 0 && (encrypted || part->digests); index++) {
        uint64_t n = min_u64(part->unit, len);
        if (encrypted) {
            uint8_t iv[CT_IV_LEN];
            ct_plan_iv(c->p, i, index, iv);
            if (ct_aead_encrypt(w->aead, iv, buf, n, buf, part->tags + index * CT_TAG_LEN, err)) {
                return -1;
            }
        } else if (ct_sha256(buf, n, part->digests[index], err)) {
            return -1;
        }
        buf += n;
        len -= n;
    }
    return 0;
}

static int run_short(struct encryption *c, struct ct_worker *w, const struct ct_span_of *span,
                     struct ct_err *err)
{
    const struct ct_body *b = c->b;
    uint64_t at = span->begin;
    const uint64_t end = span->begin + span->len;
    if (ct_source_read(b->in, w->buf, span->len, b->in_base + at, b->version, err)) {
        return -1;
    }
    for (size_t i = span->tensor; at < end; i++) {
        uint64_t n = min_u64(c->p->header->tensors[i].end, end) - at;
        if (run_messages(c, w, i, at, w->buf + (at - span->begin), n, err)) {
            return -1;
        }
        at += n;
    }
    if (ct_pwrite_full(b->out, w->buf, span->len, b->out_base + span->begin, err)) {
        return -1;
    }
    return ct_worker_done(w, span->len, err);
}

/* One message that is longer than the buffer. */
static int stream(struct encryption *c, struct ct_worker *w, const struct ct_span_of *span,
                  struct ct_aead_stream *s, struct ct_err *err)
{
    const struct ct_body *b = c->b;
    for (uint64_t done = 0; done < span->len;) {
        uint64_t at = span->begin + done;
        size_t n = (size_t)min_u64(CT_SPAN, span->len - done);
        if (ct_source_read(b->in, w->buf, n, b->in_base + at, b->version, err) ||
            ct_aead_stream_update(s, w->buf, n, w->buf, err) ||
            ct_pwrite_full(b->out, w->buf, n, b->out_base + at, err) || ct_worker_done(w, n, err)) {
            return -1;
        }
        done += n;
    }
    return 0;
}

static int run_long(struct encryption *c, struct ct_worker *w, const struct ct_span_of *span,
                    struct ct_err *err)
{
    uint8_t iv[CT_IV_LEN];
    const size_t i = span->tensor;
    const struct ct_part *part = &c->p->parts[i];
    uint64_t index = (span->begin - c->p->header->tensors[i].begin) / part->unit;
    ct_plan_iv(c->p, i, index, iv);
    struct ct_aead_stream *s =
        ct_aead_stream_new(c->p->keys.enc.alg, ct_plan_dek(c->p, i), iv, err);
    if (!s) {
        return -1;
    }
    int r = stream(c, w, span, s, err);
    if (r == 0) {
        r = ct_aead_stream_tag(s, part->tags + index * CT_TAG_LEN, err);
    }
    ct_aead_stream_free(s);
    return r;
}

static int run_encryption(void *ctx, struct ct_worker *w, const struct ct_span_of *span,
                          struct ct_err *err)
{
    return span->len > CT_SPAN ? run_long(ctx, w, span, err) : run_short(ctx, w, span, err);
}

int ct_body_encrypt(const struct ct_body *b, struct ct_plan *p, const struct ct_write_options *opt,
                    struct ct_err *err)
{
    struct encryption c = {.b = b, .p = p};
    const struct ct_job job = {&c, b->len, next_span, run_encryption};
    return ct_workers_run(&job, opt, err);
}

/* ---- copying ---- */

struct copy {
    const struct ct_body *b;
    uint64_t at;
};

static bool next_copy(void *ctx, struct ct_span_of *span)
{
    struct copy *c = ctx;
    *span = (struct ct_span_of){.begin = c->at, .len = min_u64(CT_SPAN, c->b->len - c->at)};
    c->at += span->len;
    return span->len > 0;
}

static int run_copy(void *ctx, struct ct_worker *w, const struct ct_span_of *span,
                    struct ct_err *err)
{
    const struct ct_body *b = ((struct copy *)ctx)->b;
    if (ct_source_read(b->in, w->buf, span->len, b->in_base + span->begin, b->version, err) ||
        ct_pwrite_full(b->out, w->buf, span->len, b->out_base + span->begin, err)) {
        return -1;
    }
    return ct_worker_done(w, span->len, err);
}

int ct_body_copy(const struct ct_body *b, const struct ct_write_options *opt, struct ct_err *err)
{
    struct copy c = {.b = b};
    const struct ct_job job = {&c, b->len, next_copy, run_copy};
    return ct_workers_run(&job, opt, err);
}
