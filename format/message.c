#include "format/message.h"

#include <pthread.h>
#include <string.h>

#include "format/aead/stream.h"
#include "format/aead/sum.h"
#include "format/base/spread.h"

enum state { UNKNOWN, GOOD, BAD };

struct ct_message {
    uint8_t iv[CT_IV_LEN];
    uint8_t tag[CT_TAG_LEN];
    uint64_t len, count;
    struct ct_piece *pieces; /* each written by one thread, read by all once the state is GOOD */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum state state;
    uint64_t next, done; /* pieces given out, pieces shared */
    unsigned active;     /* threads that hold one */
    bool broken;         /* one of them failed to read: start again when all are back */
    uint64_t *landed;    /* for each piece the number of where it was decrypted to; or NULL */
};

struct ct_message *ct_message_new(const uint8_t iv[static CT_IV_LEN],
                                  const uint8_t tag[static CT_TAG_LEN], uint64_t n,
                                  struct ct_piece *pieces, struct ct_err *err)
{
    struct ct_message *m = calloc(1, sizeof(*m));
    if (!m) {
        ct_err_set(err, CT_NOMEM, "no memory for a message");
        return NULL;
    }
    memcpy(m->iv, iv, CT_IV_LEN);
    memcpy(m->tag, tag, CT_TAG_LEN);
    m->len = n;
    m->count = ct_piece_count(n);
    m->pieces = pieces;
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->changed, NULL);
    return m;
}

void ct_message_free(struct ct_message *m)
{
    if (m) {
        pthread_mutex_destroy(&m->lock);
        pthread_cond_destroy(&m->changed);
        free(m->landed);
        free(m);
    }
}

/* What one thread authenticates with. */
struct helper {
    struct ct_aead *aead;
    uint8_t *buf; /* CT_SUM_PART bytes, for ciphertext */
    ct_message_read_fn read;
    void *ctx;
    const struct ct_landing *landing; /* or NULL */
    struct ct_piece_stream *stream;   /* of the landing's context */
};

static int sum_piece(const struct helper *h, uint64_t at, size_t n, struct ct_sum *sum,
                     struct ct_err *err)
{
    if (h->landing && ct_piece_stream_start(h->stream, at / CT_PIECE, err)) {
        return -1;
    }
    for (size_t done = 0; done < n; done += CT_SUM_PART) {
        size_t part = n - done < CT_SUM_PART ? n - done : CT_SUM_PART;
        if (h->read(h->ctx, at + done, h->buf, part, err) || ct_sum_add(sum, h->buf, part, err) ||
            (h->landing &&
             ct_piece_stream_add(h->stream, h->buf, part, h->landing->to + at + done, err))) {
            return -1;
        }
    }
    return 0;
}

static int share_piece(struct ct_message *m, const struct helper *h, uint64_t index,
                       struct ct_err *err)
{
    uint64_t at = index * CT_PIECE;
    size_t n = m->len - at < CT_PIECE ? (size_t)(m->len - at) : CT_PIECE;
    struct ct_sum sum;
    int r = ct_sum_start(&sum, h->aead, m->iv, err) || sum_piece(h, at, n, &sum, err) ||
                    ct_sum_share(&sum, &m->pieces[index], err)
                ? -1
                : 0;
    ct_sum_end(&sum);
    return r;
}

/* With the lock held: all pieces have given their share. */
static int conclude(struct ct_message *m, const struct helper *h, struct ct_err *err)
{
    struct ct_err why = CT_ERR_INIT;
    if (ct_pieces_check(h->aead, m->iv, m->pieces, m->len, m->tag, &why) == 0) {
        m->state = GOOD;
    } else if (why.code == CT_TAG) {
        m->state = BAD;
    } else {
        m->next = m->done = 0;
    }
    pthread_cond_broadcast(&m->changed);
    if (m->state == UNKNOWN && err) {
        *err = why;
    }
    return m->state == UNKNOWN ? -1 : 0;
}

/* One step of a thread, with the lock held: a piece, or waiting for the others. */
static int help(struct ct_message *m, const struct helper *h, struct ct_err *err)
{
    if (m->broken || m->next == m->count) {
        pthread_cond_wait(&m->changed, &m->lock);
        return 0;
    }
    uint64_t index = ct_spread(m->next++, m->count);
    m->active++;
    pthread_mutex_unlock(&m->lock);
    int r = share_piece(m, h, index, err);
    pthread_mutex_lock(&m->lock);
    m->active--;
    m->broken |= r != 0;
    if (m->landed) {
        m->landed[index] = h->landing ? h->landing->number : 0;
    }
    if (!m->broken) {
        return ++m->done == m->count ? conclude(m, h, err) : 0;
    }
    if (m->active == 0) {
        m->broken = false;
        m->next = m->done = 0;
        pthread_cond_broadcast(&m->changed);
    }
    return r;
}

static enum state state_of(struct ct_message *m)
{
    pthread_mutex_lock(&m->lock);
    enum state state = m->state;
    pthread_mutex_unlock(&m->lock);
    return state;
}

bool ct_message_is_settled(struct ct_message *m)
{
    return state_of(m) != UNKNOWN;
}

static int help_until_settled(struct ct_message *m, const struct helper *h, struct ct_err *err)
{
    int r = 0;
    pthread_mutex_lock(&m->lock);
    if (h->landing && !m->landed && !(m->landed = calloc(m->count, sizeof(*m->landed)))) {
        r = ct_err_set(err, CT_NOMEM, "no memory to load a message");
    }
    while (r == 0 && m->state == UNKNOWN) {
        r = help(m, h, err);
    }
    pthread_mutex_unlock(&m->lock);
    return r;
}

static int authenticate(struct ct_message *m, struct ct_aead *a, ct_message_read_fn read, void *ctx,
                        const struct ct_landing *landing, struct ct_err *err)
{
    struct ct_piece_stream stream = {0};
    uint8_t *buf = malloc(CT_SUM_PART); /* for ciphertext only */
    if (!buf) {
        return ct_err_set(err, CT_NOMEM, "no memory to authenticate a message");
    }
    const struct helper h = {a, buf, read, ctx, landing, &stream};
    int r = (landing && ct_piece_stream_init(&stream, landing->aead, m->iv, err)) ||
                    help_until_settled(m, &h, err)
                ? -1
                : 0;
    ct_piece_stream_end(&stream);
    free(buf);
    return r;
}

int ct_message_authenticate(struct ct_message *m, struct ct_aead *a, ct_message_read_fn read,
                            void *ctx, struct ct_err *err)
{
    return ct_message_load(m, a, read, ctx, NULL, err);
}

int ct_message_load(struct ct_message *m, struct ct_aead *a, ct_message_read_fn read, void *ctx,
                    const struct ct_landing *landing, struct ct_err *err)
{
    if (m->len > ct_aead_message_max(ct_aead_alg(a))) {
        /* Its counter would wrap. */
        return ct_err_set(err, CT_TAG, "a message of this length has no valid tag");
    }
    if (state_of(m) == UNKNOWN && authenticate(m, a, read, ctx, landing, err)) {
        return -1;
    }
    return state_of(m) == GOOD ? 0 : ct_err_set(err, CT_TAG, "tag does not match");
}

bool ct_message_landed(struct ct_message *m, uint64_t index, uint64_t number)
{
    pthread_mutex_lock(&m->lock);
    bool landed = m->landed && m->landed[index] == number;
    pthread_mutex_unlock(&m->lock);
    return landed;
}

int ct_message_open(struct ct_message *m, struct ct_aead *a, uint64_t index, uint8_t *buf, size_t n,
                    struct ct_err *err)
{
    return ct_piece_open(a, m->iv, index, &m->pieces[index], buf, n, err);
}
