#include "format/message.h"

#include <openssl/rand.h>
#include <pthread.h>
#include <sodium.h>
#include <string.h>

#include "format/aead/stream.h"
#include "format/base/secret.h"

enum state { UNKNOWN, GOOD, BAD };
enum { SALT = 32 };

struct ct_message {
    uint8_t iv[CT_IV_LEN];
    uint8_t tag[CT_TAG_LEN];
    uint64_t len, count;
    struct ct_secret *secret; /* salt, then the digests */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum state state;
    uint64_t next, done; /* pieces given out, pieces digested */
    unsigned active;     /* threads that hold one */
    bool broken;         /* one of them failed to read: start again when all are back */
};

static uint8_t *salt_of(struct ct_message *m)
{
    return ct_secret_bytes(m->secret);
}

static uint8_t (*digests_of(struct ct_message *m))[CT_PIECE_DIGEST]
{
    return (uint8_t(*)[CT_PIECE_DIGEST])(ct_secret_bytes(m->secret) + SALT);
}

static size_t piece_len(const struct ct_message *m, uint64_t index)
{
    uint64_t left = m->len - index * CT_PIECE;
    return left < CT_PIECE ? (size_t)left : CT_PIECE;
}

struct ct_message *ct_message_new(const uint8_t iv[static CT_IV_LEN],
                                  const uint8_t tag[static CT_TAG_LEN], uint64_t n,
                                  struct ct_err *err)
{
    struct ct_message *m = calloc(1, sizeof(*m));
    if (!m) {
        ct_err_set(err, CT_NOMEM, "no memory for a message");
        return NULL;
    }
    memcpy(m->iv, iv, CT_IV_LEN);
    memcpy(m->tag, tag, CT_TAG_LEN);
    m->len = n;
    m->count = n / CT_PIECE + (n % CT_PIECE != 0);
    m->secret = ct_secret_new(SALT + m->count * CT_PIECE_DIGEST, err);
    if (!m->secret || RAND_priv_bytes(salt_of(m), SALT) != 1) {
        ct_secret_free(m->secret);
        free(m);
        ct_err_set(err, CT_NOMEM, "no memory for a message");
        return NULL;
    }
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->changed, NULL);
    return m;
}

void ct_message_free(struct ct_message *m)
{
    if (m) {
        pthread_mutex_destroy(&m->lock);
        pthread_cond_destroy(&m->changed);
        ct_secret_free(m->secret);
        free(m);
    }
}

static int mismatch(struct ct_err *err)
{
    return ct_err_set(err, CT_TAG, "tag does not match");
}

/* ---- AES-GCM: pieces in any order ---- */

static int digest_piece(struct ct_message *m, struct ct_aead *a, uint64_t index, uint8_t *buf,
                        ct_message_read_fn read, void *ctx, struct ct_err *err)
{
    size_t n = piece_len(m, index);
    return read(ctx, index * CT_PIECE, buf, n, err) ||
                   ct_aead_piece_digest(a, salt_of(m), index, buf, n, digests_of(m)[index], err)
               ? -1
               : 0;
}

/* With the lock held: all pieces are digested. Decides. */
static int conclude(struct ct_message *m, struct ct_aead *a, struct ct_err *err)
{
    const uint8_t(*digests)[CT_PIECE_DIGEST] = (const uint8_t(*)[CT_PIECE_DIGEST])digests_of(m);
    int r = ct_aead_pieces_check(a, m->iv, digests, m->count, m->len, m->tag, err);
    if (r == 0) {
        m->state = GOOD;
    } else if (!err || err->code == CT_TAG) {
        m->state = BAD;
    } else {
        m->next = m->done = 0;
    }
    pthread_cond_broadcast(&m->changed);
    return r;
}

/* One step of a thread that helps, with the lock held: a piece, or waiting for the others. */
static int help(struct ct_message *m, struct ct_aead *a, uint8_t *buf, ct_message_read_fn read,
                void *ctx, struct ct_err *err)
{
    if (m->broken || m->next == m->count) {
        pthread_cond_wait(&m->changed, &m->lock);
        return 0;
    }
    uint64_t index = m->next++;
    m->active++;
    pthread_mutex_unlock(&m->lock);
    int r = digest_piece(m, a, index, buf, read, ctx, err);
    pthread_mutex_lock(&m->lock);
    m->active--;
    m->broken |= r != 0;
    if (m->broken) {
        if (m->active == 0) {
            m->broken = false;
            m->next = m->done = 0;
        }
        pthread_cond_broadcast(&m->changed);
        return r;
    }
    return ++m->done == m->count ? conclude(m, a, err) : 0;
}

static int authenticate_gcm(struct ct_message *m, struct ct_aead *a, uint8_t *buf,
                            ct_message_read_fn read, void *ctx, struct ct_err *err)
{
    int r = 0;
    while (r == 0 && m->state == UNKNOWN) {
        r = help(m, a, buf, read, ctx, err);
    }
    return r;
}

/* ---- ChaCha20-Poly1305: one thread, in order ---- */

static int poly_whole(struct ct_message *m, struct ct_aead *a, uint8_t *buf,
                      ct_message_read_fn read, void *ctx, uint8_t tag[static 16],
                      struct ct_err *err)
{
    static const uint8_t zeros[16];
    crypto_onetimeauth_state poly;
    uint8_t key[crypto_onetimeauth_KEYBYTES];
    uint8_t lengths[16] = {0};
    int r = 0;
    /* RFC 8439 section 2.6: the one-time key is block 0 of the key stream. */
    crypto_stream_chacha20_ietf(key, sizeof(key), m->iv, a->key);
    crypto_onetimeauth_init(&poly, key);
    for (uint64_t i = 0; i < m->count && r == 0; i++) {
        r = digest_piece(m, a, i, buf, read, ctx, err);
        if (r == 0) {
            crypto_onetimeauth_update(&poly, buf, piece_len(m, i));
        }
    }
    crypto_onetimeauth_update(&poly, zeros, (16 - m->len % 16) % 16);
    ct_put_le64(lengths + 8, m->len);
    crypto_onetimeauth_update(&poly, lengths, sizeof(lengths));
    crypto_onetimeauth_final(&poly, tag);
    ct_wipe(key, sizeof(key));
    ct_wipe(&poly, sizeof(poly));
    return r;
}

static int authenticate_chacha(struct ct_message *m, struct ct_aead *a, uint8_t *buf,
                               ct_message_read_fn read, void *ctx, struct ct_err *err)
{
    uint8_t tag[16];
    while (m->active && m->state == UNKNOWN) {
        pthread_cond_wait(&m->changed, &m->lock);
    }
    if (m->state != UNKNOWN) {
        return 0;
    }
    m->active = 1;
    pthread_mutex_unlock(&m->lock);
    int r = poly_whole(m, a, buf, read, ctx, tag, err);
    pthread_mutex_lock(&m->lock);
    m->active = 0;
    if (r == 0) {
        m->state = sodium_memcmp(tag, m->tag, sizeof(tag)) == 0 ? GOOD : BAD;
    }
    ct_wipe(tag, sizeof(tag));
    pthread_cond_broadcast(&m->changed);
    return r;
}

/* ---- either ---- */

int ct_message_authenticate(struct ct_message *m, struct ct_aead *a, ct_message_read_fn read,
                            void *ctx, struct ct_err *err)
{
    pthread_mutex_lock(&m->lock);
    enum state state = m->state;
    pthread_mutex_unlock(&m->lock);
    if (state == UNKNOWN) {
        if (m->len > ct_aead_message_max(a->alg)) {
            return ct_err_set(err, CT_MALFORMED, "a message longer than its cipher can have");
        }
        ct_autofree uint8_t *buf = malloc(CT_PIECE); /* ciphertext only */
        if (!buf) {
            return ct_err_set(err, CT_NOMEM, "no memory to authenticate a message");
        }
        pthread_mutex_lock(&m->lock);
        int r = a->alg == CT_ALG_CHACHA20POLY1305 ? authenticate_chacha(m, a, buf, read, ctx, err)
                                                  : authenticate_gcm(m, a, buf, read, ctx, err);
        state = m->state;
        pthread_mutex_unlock(&m->lock);
        if (r && state == UNKNOWN) {
            return -1;
        }
    }
    return state == GOOD ? 0 : mismatch(err);
}

int ct_message_open(struct ct_message *m, struct ct_aead *a, uint64_t index, uint8_t *buf, size_t n,
                    struct ct_err *err)
{
    return ct_aead_piece_open(a, m->iv, salt_of(m), index, buf, n, digests_of(m)[index], buf, err);
}
