#include "format/model.h"

#include <stdio.h>
#include <string.h>

#include "format/model_parts.h"

struct ct_model *ct_model_ref(struct ct_model *m)
{
    atomic_fetch_add_explicit(&m->refs, 1, memory_order_relaxed);
    return m;
}

void ct_model_unref(struct ct_model *m)
{
    if (!m || atomic_fetch_sub_explicit(&m->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (unsigned i = 0; i < m->idle_count; i++) {
        ct_aead_free(m->idle[i]);
    }
    for (size_t i = 0; m->longs && i < m->long_count; i++) {
        ct_message_free(m->longs[i]);
    }
    free(m->longs);
    free(m->long_first);
    free(m->extents);
    ct_buf_free(&m->view);
    ct_deks_free(&m->deks);
    ct_encryption_field_free(&m->enc);
    ct_policy_field_free(&m->policy);
    ct_keys_field_free(&m->keys);
    ct_header_free(m->header);
    ct_manifest_unref(m->manifest);
    ct_source_close(m->source);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

const struct ct_version *ct_model_version(const struct ct_model *m)
{
    return &m->version;
}

const uint8_t *ct_model_header(const struct ct_model *m, size_t *len)
{
    *len = m->view.len;
    return m->view.data;
}

uint64_t ct_model_body_len(const struct ct_model *m)
{
    return m->header->body_len;
}

uint64_t ct_model_view_size(const struct ct_model *m)
{
    return m->view.len + m->header->body_len;
}

void ct_model_info(const struct ct_model *m, struct ct_model_info *out)
{
    *out = m->info;
}

void ct_damages_free(struct ct_damages *d)
{
    free(d->items);
    *d = (struct ct_damages){0};
}

/* ---- reading ---- */

static struct ct_aead *take_aead(struct ct_model *m, const uint8_t *dek, struct ct_err *err)
{
    struct ct_aead *a = NULL;
    pthread_mutex_lock(&m->lock);
    if (m->idle_count) {
        a = m->idle[--m->idle_count];
    }
    pthread_mutex_unlock(&m->lock);
    if (!a) {
        return ct_aead_new(m->keys.enc.alg, dek, err);
    }
    if (ct_aead_rekey(a, dek, err)) {
        ct_aead_free(a);
        return NULL;
    }
    return a;
}

static void give_aead(struct ct_model *m, struct ct_aead *a)
{
    pthread_mutex_lock(&m->lock);
    if (a && m->idle_count < sizeof(m->idle) / sizeof(m->idle[0])) {
        m->idle[m->idle_count++] = a;
        a = NULL;
    }
    pthread_mutex_unlock(&m->lock);
    ct_aead_free(a);
}

/* One read of an extent. */
struct reading {
    struct ct_model *m;
    struct ct_aead *aead;
    size_t keyed; /* tensor whose DEK `aead` holds, + 1 */
    struct ct_damages *damages;
};

static int add_damage(struct reading *r, size_t tensor, const struct unit *u, enum ct_code code,
                      const char *why, struct ct_err *err)
{
    struct ct_span name = r->m->header->tensors[tensor].name;
    struct ct_damage *items = realloc(r->damages->items, (r->damages->count + 1) * sizeof(*items));
    if (!items) {
        return ct_err_set(err, CT_NOMEM, "no memory to say what is damaged");
    }
    r->damages->items = items;
    struct ct_damage *d = &items[r->damages->count++];
    *d = (struct ct_damage){.begin = u->begin, .end = u->begin + u->len, .code = code};
    int n = (int)(name.n < 80 ? name.n : 80);
    if (!u->encrypted) {
        (void)snprintf(d->what, sizeof(d->what), "tensor %.*s: piece %llu: %.40s", n, name.p,
                       (unsigned long long)u->piece, why);
    } else if (r->m->keys.version == 1) {
        (void)snprintf(d->what, sizeof(d->what), "tensor %.*s: %.60s", n, name.p, why);
    } else {
        (void)snprintf(d->what, sizeof(d->what), "tensor %.*s: chunk %llu: %.40s", n, name.p,
                       (unsigned long long)u->message, why);
    }
    return 0;
}

static int use_key(struct reading *r, size_t tensor, struct ct_err *err)
{
    const uint8_t *dek = ct_dek(&r->m->deks, r->m->keys.enc.alg, tensor);
    if (r->keyed == tensor + 1) {
        return 0;
    }
    r->keyed = 0;
    if (!r->aead && !(r->aead = take_aead(r->m, dek, err))) {
        return -1;
    }
    if (ct_aead_rekey(r->aead, dek, err)) {
        return -1;
    }
    r->keyed = tensor + 1;
    return 0;
}

static void unit_iv(const struct ct_encrypted *e, const struct unit *u,
                    uint8_t iv[static CT_IV_LEN])
{
    memcpy(iv, e->iv, CT_IV_LEN);
    /* That the counter does not overflow was checked with the header. */
    ct_put_be32(iv + 8, ct_be32(iv + 8) + (uint32_t)u->message);
}

/* ---- long messages ---- */

static uint64_t message_begin(const struct ct_model *m, size_t tensor, const struct unit *u)
{
    uint64_t chunk = m->keys.version == 1 ? 0 : m->keys.chunk_size * u->message;
    return m->header->tensors[tensor].begin + chunk;
}

static uint64_t message_end(const struct ct_model *m, size_t tensor, const struct unit *u)
{
    const struct ct_tensor *t = &m->header->tensors[tensor];
    uint64_t begin = message_begin(m, tensor, u);
    return m->keys.version == 1 || t->end - begin < m->keys.chunk_size ? t->end
                                                                       : begin + m->keys.chunk_size;
}

static struct ct_message *long_message(struct ct_model *m, size_t tensor, const struct unit *u,
                                       struct ct_err *err)
{
    const struct ct_encrypted *e = &m->enc.entries[tensor];
    uint8_t iv[CT_IV_LEN];
    unit_iv(e, u, iv);
    pthread_mutex_lock(&m->lock);
    struct ct_message **at = &m->longs[m->long_first[tensor] + u->message];
    if (!*at) {
        *at = ct_message_new(iv, e->tags + u->message * CT_TAG_LEN,
                             message_end(m, tensor, u) - message_begin(m, tensor, u), err);
    }
    struct ct_message *found = *at;
    pthread_mutex_unlock(&m->lock);
    return found;
}

struct message_source {
    struct ct_model *m;
    uint64_t at; /* of the message in the source */
};

static int read_message(void *ctx, uint64_t offset, uint8_t *buf, size_t n, struct ct_err *err)
{
    struct message_source *s = ctx;
    return ct_source_read(s->m->source, buf, n, s->at + offset, &s->m->version, err);
}

/* Before the extent is read: every long message it touches is authenticated, or known to be bad. */
static int authenticate(struct reading *r, size_t tensor, const struct unit *u, struct ct_err *err)
{
    struct ct_message *long_one = long_message(r->m, tensor, u, err);
    struct message_source source = {r->m, r->m->body_at + message_begin(r->m, tensor, u)};
    if (!long_one || use_key(r, tensor, err)) {
        return -1;
    }
    struct ct_err why = CT_ERR_INIT;
    if (ct_message_authenticate(long_one, r->aead, read_message, &source, &why) &&
        why.code != CT_TAG) {
        if (err) {
            *err = why;
        }
        return -1;
    }
    return 0;
}

/* ---- units ---- */

static int open_encrypted(struct reading *r, size_t tensor, const struct unit *u, uint8_t *buf,
                          struct ct_err *err)
{
    const struct ct_encrypted *e = &r->m->enc.entries[tensor];
    if (!r->m->deks.good[tensor]) {
        return ct_err_set(err, CT_REJECTED, "its DEK does not unwrap");
    }
    if (use_key(r, tensor, err)) {
        return -1;
    }
    if (u->is_long) {
        struct ct_message *m = long_message(r->m, tensor, u, err);
        struct message_source source = {r->m, r->m->body_at + message_begin(r->m, tensor, u)};
        return !m || ct_message_authenticate(m, r->aead, read_message, &source, err) ||
                       ct_message_open(m, r->aead, u->piece, buf, u->len, err)
                   ? -1
                   : 0;
    }
    uint8_t iv[CT_IV_LEN];
    unit_iv(e, u, iv);
    return ct_aead_open(r->aead, iv, buf, u->len, e->tags + u->message * CT_TAG_LEN, buf, err);
}

static int open_unit(struct reading *r, size_t tensor, const struct unit *u, uint8_t *buf,
                     struct ct_err *err)
{
    if (u->encrypted) {
        return open_encrypted(r, tensor, u, buf, err);
    }
    const struct ct_tensor *t = &r->m->header->tensors[tensor];
    const struct ct_digests *d = ct_plain_digests(r->m, t);
    return d ? ct_digests_check(d, u->begin - t->begin, buf, u->len, err) : 0;
}

/* Calls fn for each unit of the extent. */
typedef int (*unit_fn)(struct reading *r, size_t tensor, const struct unit *u, uint8_t *buf,
                       struct ct_err *err);

static int for_units(struct reading *r, const struct extent *x, uint8_t *buf, unit_fn fn,
                     struct ct_err *err)
{
    size_t tensor = x->tensor;
    for (uint64_t at = x->begin; at < x->begin + x->len;) {
        struct unit u;
        while (r->m->header->tensors[tensor].end <= at) {
            tensor++;
        }
        ct_unit_at(r->m, tensor, at, &u);
        if (fn(r, tensor, &u, buf + (at - x->begin), err)) {
            return -1;
        }
        at += u.len;
    }
    return 0;
}

static int prepare_unit(struct reading *r, size_t tensor, const struct unit *u, uint8_t *buf,
                        struct ct_err *err)
{
    (void)buf;
    return u->is_long && r->m->deks.good[tensor] ? authenticate(r, tensor, u, err) : 0;
}

static int finish_unit(struct reading *r, size_t tensor, const struct unit *u, uint8_t *buf,
                       struct ct_err *err)
{
    struct ct_err why = CT_ERR_INIT;
    if (open_unit(r, tensor, u, buf, &why) == 0) {
        return 0;
    }
    memset(buf, 0, u->len);
    if (why.code != CT_TAG && why.code != CT_REJECTED) {
        if (err) {
            *err = why;
        }
        return -1;
    }
    return add_damage(r, tensor, u, why.code, why.msg, err);
}

int ct_model_read(struct ct_model *m, uint32_t extent, uint8_t *buf, struct ct_damages *damages,
                  struct ct_err *err)
{
    const struct extent *x = &m->extents[extent];
    struct reading r = {.m = m, .damages = damages};
    /* The check before the read is for bytes without a tag, the one after it for everything: a tag
     * that fails because the file was replaced is to be told as such. */
    int failed =
        ct_source_check(m->source, &m->version, err) || for_units(&r, x, buf, prepare_unit, err) ||
        ct_source_read(m->source, buf, x->len, m->body_at + x->begin, &m->version, err) ||
        for_units(&r, x, buf, finish_unit, err) || ct_source_check(m->source, &m->version, err);
    give_aead(m, r.aead);
    if (failed) {
        memset(buf, 0, x->len);
        ct_damages_free(damages);
        return -1;
    }
    return 0;
}
