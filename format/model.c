#include "format/model.h"

#include <stdio.h>
#include <string.h>

#include "format/aead/sum.h"
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
    for (size_t i = 0; i < m->long_count; i++) {
        ct_message_free(m->longs[i].message);
    }
    ct_secret_free(m->pieces);
    ct_buf_free(&m->view);
    ct_deks_free(&m->deks);
    ct_arena_free(&m->arena);
    ct_policy_field_free(&m->policy);
    ct_keys_field_free(&m->keys);
    ct_manifest_unref(m->manifest);
    ct_source_close(m->source);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

void ct_model_forget(struct ct_model *m)
{
    if (m->deks.bytes) {
        ct_wipe(ct_secret_bytes(m->deks.bytes), ct_secret_len(m->deks.bytes));
    }
}

int ct_model_check(struct ct_model *m, struct ct_err *err)
{
    return ct_source_check_data(m->source, &m->version, err);
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
    return m->body_len;
}

uint64_t ct_model_view_size(const struct ct_model *m)
{
    return m->view.len + m->body_len;
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

static int pass_on(const struct ct_err *why, struct ct_err *err)
{
    if (err) {
        *err = *why;
    }
    return -1;
}

/* ---- contexts ---- */

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
    static const uint8_t no_key[CT_DEK_MAX];
    /* An idle context holds no DEK, so that sealing finds them all in secrets. */
    if (a && ct_aead_rekey(a, no_key, NULL) == 0) {
        pthread_mutex_lock(&m->lock);
        if (m->idle_count < sizeof(m->idle) / sizeof(m->idle[0])) {
            m->idle[m->idle_count++] = a;
            a = NULL;
        }
        pthread_mutex_unlock(&m->lock);
    }
    ct_aead_free(a);
}

struct ct_load {
    struct ct_model *m;
    uint8_t *body;
    uint64_t number; /* of the model's loads, from 1 */
};

/* One read of an extent. */
struct reading {
    struct ct_model *m;
    struct ct_load *load; /* or NULL */
    const struct extent *extent;
    uint8_t *buf;
    struct ct_aead *aead;
    const struct tensor *keyed; /* whose DEK `aead` holds */
    bool bare;                  /* some of its bytes have neither tag nor digest */
    bool verify;                /* its tags are checked, nothing is decrypted */
    bool by_parts;              /* one message is all of it: it is read where it is used */
    struct ct_damages *damages;
    const struct tensor *damaged; /* the last damage's tensor, and its first unit */
    struct unit first;
};

static const uint8_t *dek_of(const struct ct_model *m, const struct tensor *t)
{
    return ct_dek(&m->deks, m->keys.enc.alg, (size_t)(t - m->tensors));
}

static int use_key(struct reading *r, const struct tensor *t, struct ct_err *err)
{
    struct ct_model *m = r->m;
    const uint8_t *dek = dek_of(m, t);
    if (r->keyed == t) {
        return 0;
    }
    r->keyed = NULL;
    if (r->aead ? ct_aead_rekey(r->aead, dek, err) : !(r->aead = take_aead(m, dek, err))) {
        return -1;
    }
    r->keyed = t;
    return 0;
}

static bool has_key(const struct reading *r, const struct tensor *t)
{
    return r->m->deks.good[t - r->m->tensors];
}

/* ---- damages ---- */

/* "tensor w0: chunks 2 to 5: tag does not match" */
static void describe(const struct reading *r, const struct unit *last, const char *why,
                     struct ct_damage *d)
{
    const struct tensor *t = r->damaged;
    bool whole = t->encrypted && r->m->keys.version == 1;
    uint64_t from = t->encrypted ? r->first.message : r->first.piece;
    uint64_t to = t->encrypted ? last->message : last->piece;
    const char *unit = t->encrypted ? "chunk" : "piece";
    char where[64] = "";
    if (!whole && from == to) {
        (void)snprintf(where, sizeof(where), "%s %llu: ", unit, (unsigned long long)from);
    } else if (!whole) {
        (void)snprintf(where, sizeof(where), "%ss %llu to %llu: ", unit, (unsigned long long)from,
                       (unsigned long long)to);
    }
    (void)snprintf(d->what, sizeof(d->what), "tensor %.*s: %s%.40s",
                   (int)ct_utf8_cut(t->name, t->name_len, 48), t->name, where, why);
}

static int add_damage(struct reading *r, const struct tensor *t, const struct unit *u,
                      const struct ct_err *why, struct ct_err *err)
{
    struct ct_damages *all = r->damages;
    struct ct_damage *last = all->count ? &all->items[all->count - 1] : NULL;
    if (!last || r->damaged != t || last->end != u->begin || last->code != why->code) {
        struct ct_damage *items = realloc(all->items, (all->count + 1) * sizeof(*items));
        if (!items) {
            return ct_err_set(err, CT_NOMEM, "no memory to say what is damaged");
        }
        all->items = items;
        last = &items[all->count++];
        *last = (struct ct_damage){.begin = u->begin, .code = why->code};
        r->damaged = t;
        r->first = *u;
    }
    last->end = u->begin + u->len;
    describe(r, u, why->msg, last);
    return 0;
}

/* ---- long messages ---- */

struct message_source {
    struct ct_model *m;
    uint64_t begin; /* of the message in the body */
};

static int read_message(void *ctx, uint64_t offset, uint8_t *buf, size_t n, struct ct_err *err)
{
    const struct message_source *s = ctx;
    return ct_source_read(s->m->source, buf, n, s->m->body_at + s->begin + offset, &s->m->version,
                          err);
}

static void unit_iv(const struct tensor *t, const struct unit *u, uint8_t iv[static CT_IV_LEN])
{
    memcpy(iv, t->iv, CT_IV_LEN);
    /* That the counter does not overflow was checked with the header. */
    ct_put_be32(iv + 8, ct_be32(iv + 8) + (uint32_t)u->message);
}

static struct ct_message *long_message(struct ct_model *m, const struct tensor *t,
                                       const struct unit *u, struct ct_err *err)
{
    struct ct_piece *pieces = (struct ct_piece *)(void *)ct_secret_bytes(m->pieces);
    uint8_t iv[CT_IV_LEN];
    unit_iv(t, u, iv);
    pthread_mutex_lock(&m->lock);
    struct long_message *one = &m->longs[t->first_long + u->message];
    if (!one->message) {
        one->message = ct_message_new(iv, t->tags + u->message * CT_TAG_LEN,
                                      ct_message_len(m, t, u), pieces + one->first_piece, err);
    }
    struct ct_message *found = one->message;
    pthread_mutex_unlock(&m->lock);
    return found;
}

/* Whether its plaintext is where it belongs already. */
static bool has_landed(const struct reading *r, struct ct_message *message, const struct unit *u)
{
    return r->load && message && ct_message_landed(message, u->piece, r->load->number);
}

/* Authenticates it, and decrypts it to where it belongs. */
static int load_message(struct reading *r, const struct tensor *t, struct ct_message *message,
                        struct message_source *source, struct ct_err *err)
{
    struct ct_landing landing = {r->load->body + source->begin, r->load->number,
                                 take_aead(r->m, dek_of(r->m, t), err)};
    int rc =
        landing.aead ? ct_message_load(message, r->aead, read_message, source, &landing, err) : -1;
    give_aead(r->m, landing.aead);
    return rc;
}

static int authenticate(struct reading *r, const struct tensor *t, const struct unit *u,
                        struct ct_message **out, struct ct_err *err)
{
    struct message_source source = {r->m, ct_message_begin(r->m, t, u)};
    *out = long_message(r->m, t, u, err);
    if (!*out || use_key(r, t, err)) {
        return -1;
    }
    return r->load && !ct_message_is_settled(*out)
               ? load_message(r, t, *out, &source, err)
               : ct_message_authenticate(*out, r->aead, read_message, &source, err);
}

/* ---- units ---- */

typedef int (*unit_fn)(struct reading *r, const struct tensor *t, const struct unit *u,
                       struct ct_err *err);

static int for_units(struct reading *r, unit_fn fn, struct ct_err *err)
{
    const struct extent *x = r->extent;
    const struct tensor *t = &r->m->tensors[x->tensor];
    for (uint64_t at = x->begin; at < x->begin + x->len;) {
        struct unit u;
        while (t->end <= at) {
            t++;
        }
        ct_unit_at(r->m, t, at, &u);
        if (fn(r, t, &u, err)) {
            return -1;
        }
        at += u.len;
    }
    return 0;
}

/* Before the extent is read: every long message it touches is authenticated, or known to be bad. */
static int prepare_unit(struct reading *r, const struct tensor *t, const struct unit *u,
                        struct ct_err *err)
{
    struct ct_err why = CT_ERR_INIT;
    struct ct_message *message = NULL;
    r->bare |= !t->encrypted && !t->digests;
    if (!u->is_long || !has_key(r, t) || authenticate(r, t, u, &message, &why) == 0 ||
        why.code == CT_TAG) {
        return 0;
    }
    return pass_on(&why, err);
}

static int sum_up(struct reading *r, const struct unit *u, const uint8_t *buf, struct ct_sum *sum,
                  struct ct_err *err)
{
    struct message_source source = {r->m, u->begin};
    for (uint32_t done = 0; done < u->len; done += CT_SUM_PART) {
        uint32_t n = u->len - done < CT_SUM_PART ? u->len - done : CT_SUM_PART;
        if ((r->by_parts && read_message(&source, done, r->buf, n, err)) ||
            ct_sum_add(sum, r->by_parts ? r->buf : buf + done, n, err)) {
            return -1;
        }
    }
    return 0;
}

static int verify_message(struct reading *r, const struct unit *u, const uint8_t *iv,
                          const uint8_t *tag, const uint8_t *buf, struct ct_err *err)
{
    struct ct_sum sum;
    int failed = ct_sum_start(&sum, r->aead, iv, err) || sum_up(r, u, buf, &sum, err) ||
                 ct_sum_check(&sum, tag, err);
    ct_sum_end(&sum);
    return failed ? -1 : 0;
}

static int open_unit(struct reading *r, const struct tensor *t, const struct unit *u, uint8_t *buf,
                     struct ct_err *err)
{
    if (!t->encrypted) {
        return t->digests ? ct_digests_check(t->digests, u->begin, buf, u->len, err) : 0;
    }
    if (!has_key(r, t)) {
        return ct_err_set(err, CT_REJECTED, "its DEK does not unwrap");
    }
    if (u->is_long) {
        struct ct_message *m = NULL;
        return authenticate(r, t, u, &m, err) ||
                       (!r->verify && !has_landed(r, m, u) &&
                        ct_message_open(m, r->aead, u->piece, buf, u->len, err))
                   ? -1
                   : 0;
    }
    uint8_t iv[CT_IV_LEN];
    const uint8_t *tag = t->tags + u->message * CT_TAG_LEN;
    unit_iv(t, u, iv);
    if (use_key(r, t, err)) {
        return -1;
    }
    if (r->verify) {
        return verify_message(r, u, iv, tag, buf, err);
    }
    struct message_source source = {r->m, u->begin};
    return r->by_parts
               ? ct_aead_open_read(r->aead, iv, read_message, &source, u->len, tag, buf, err)
               : ct_aead_open(r->aead, iv, buf, u->len, tag, buf, err);
}

static int finish_unit(struct reading *r, const struct tensor *t, const struct unit *u,
                       struct ct_err *err)
{
    uint8_t *buf = r->buf + (u->begin - r->extent->begin);
    struct ct_err why;
    why.code = CT_OK;
    if (open_unit(r, t, u, buf, &why) == 0) {
        return 0;
    }
    memset(buf, 0, u->len);
    if (why.code != CT_TAG && why.code != CT_REJECTED) {
        return pass_on(&why, err);
    }
    return add_damage(r, t, u, &why, err);
}

/* Bytes with a tag may have changed in name and mode since: that is no change of content. */
static int check_source(const struct reading *r, struct ct_err *err)
{
    const struct ct_model *m = r->m;
    return r->bare ? ct_source_check(m->source, &m->version, err)
                   : ct_source_check_data(m->source, &m->version, err);
}

static int read_unit(struct reading *r, const struct tensor *t, const struct unit *u,
                     struct ct_err *err)
{
    struct ct_model *m = r->m;
    return (u->is_long && has_landed(r, long_message(m, t, u, NULL), u)) ||
                   ct_source_read(m->source, r->buf + (u->begin - r->extent->begin), u->len,
                                  m->body_at + u->begin, &m->version, err) == 0
               ? 0
               : -1;
}

static int read_extent(struct reading *r, struct ct_err *err)
{
    const struct ct_model *m = r->m;
    if (r->by_parts) {
        return 0;
    }
    return r->load && m->long_count
               ? for_units(r, read_unit, err)
               : ct_source_read(m->source, r->buf, r->extent->len, m->body_at + r->extent->begin,
                                &m->version, err);
}

static int read_all(struct reading *r, struct ct_err *err)
{
    struct ct_model *m = r->m;
    const struct extent *x = r->extent;
    bool prepare = m->long_count || m->info.unauthenticated_bytes;
    /* The check before the read is for bare bytes, the one after it for all: a tag that fails
     * because the file was replaced is to be told as such. */
    int failed = (prepare && for_units(r, prepare_unit, err)) ||
                 (r->bare && check_source(r, err)) || read_extent(r, err) ||
                 for_units(r, finish_unit, err) || check_source(r, err);
    give_aead(m, r->aead);
    /* What holds the plaintext now serves readers; a copy of the ciphertext only takes memory. */
    ct_source_done(m->source, m->body_at + x->begin, x->len);
    if (failed) {
        memset(r->buf, 0, x->len);
        ct_damages_free(r->damages);
        return -1;
    }
    return 0;
}

static int read_as(struct reading r, struct ct_err *err)
{
    const struct tensor *t = &r.m->tensors[r.extent->tensor];
    struct unit first;
    ct_unit_at(r.m, t, r.extent->begin, &first);
    r.by_parts = t->encrypted && first.len == r.extent->len && (r.verify || !first.is_long);
    return read_all(&r, err);
}

int ct_model_read(struct ct_model *m, uint32_t extent, uint8_t *buf, struct ct_damages *damages,
                  struct ct_err *err)
{
    return read_as(
        (struct reading){.m = m, .extent = &m->extents[extent], .buf = buf, .damages = damages},
        err);
}

int ct_model_verify(struct ct_model *m, uint32_t extent, uint8_t *buf, struct ct_damages *damages,
                    struct ct_err *err)
{
    return read_as(
        (struct reading){
            .m = m, .extent = &m->extents[extent], .buf = buf, .damages = damages, .verify = true},
        err);
}

struct ct_load *ct_load_new(struct ct_model *m, uint8_t *body, struct ct_err *err)
{
    struct ct_load *l = calloc(1, sizeof(*l));
    if (!l) {
        ct_err_set(err, CT_NOMEM, "no memory to load a model");
        return NULL;
    }
    l->m = m;
    l->body = body;
    pthread_mutex_lock(&m->lock);
    l->number = ++m->loads;
    pthread_mutex_unlock(&m->lock);
    return l;
}

void ct_load_free(struct ct_load *l)
{
    free(l);
}

int ct_load_read(struct ct_load *l, uint32_t extent, struct ct_damages *damages, struct ct_err *err)
{
    const struct extent *x = &l->m->extents[extent];
    return read_as(
        (struct reading){
            .m = l->m, .load = l, .extent = x, .buf = l->body + x->begin, .damages = damages},
        err);
}

uint32_t ct_model_pending(struct ct_model *m, uint32_t extent)
{
    const struct extent *x = &m->extents[extent];
    const struct tensor *t = &m->tensors[x->tensor];
    struct unit u;
    ct_unit_at(m, t, x->begin, &u);
    if (!u.is_long) {
        return 0;
    }
    pthread_mutex_lock(&m->lock);
    struct ct_message *message = m->longs[t->first_long + u.message].message;
    pthread_mutex_unlock(&m->lock);
    if (message && ct_message_is_settled(message)) {
        return 0;
    }
    uint64_t end = ct_message_begin(m, t, &u) + ct_message_len(m, t, &u);
    return ct_model_extent_at(m, end - 1) - extent;
}

void ct_model_fetch(struct ct_model *m, uint32_t extent)
{
    const struct extent *x = &m->extents[extent];
    ct_source_fetch(m->source, m->body_at + x->begin, x->len);
}

bool ct_model_is_near(struct ct_model *m, uint32_t extent)
{
    const struct extent *x = &m->extents[extent];
    return ct_source_is_near(m->source, m->body_at + x->begin, x->len);
}
