#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "format/aead/backend.h"
#include "format/base/log.h"

/*
 * The trial: a piece that stays in the second-level cache, as a chunk that was just read does; the
 * best of some rounds, in turn, in the thread's own time; a backend has to be faster by a margin,
 * so that the choice is the same every time. A slow machine gets fewer rounds.
 */
enum { PIECE = 128 << 10, ROUNDS_LEAST = 3, ROUNDS = 6, BACKENDS = 2 };
static const double enough = 0.002, margin = 1.05; /* seconds an operation; times as fast */

const char *const ct_crypto_names[] = {
    [CT_CRYPTO_AUTO] = "auto", [CT_CRYPTO_OPENSSL] = "openssl", [CT_CRYPTO_IPSEC] = "ipsec", NULL};

enum { OPENSSL, IPSEC };
static const struct ct_backend *const backends[BACKENDS] = {
    [OPENSSL] = &ct_backend_openssl,
#if KVFS_HAVE_IPSEC
    [IPSEC] = &ct_backend_ipsec,
#endif
};

static const char *const op_names[CT_OPS] = {"open", "encrypt", "gmac", "chacha20", "poly1305"};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool asked; /* by ct_aead_use(), or the environment was looked at */
static enum ct_crypto crypto;
static bool tried[CT_ALG_CHACHA20POLY1305 + 1];
/* GB/s; 0: not provided, or wrong. */
static double rates[CT_ALG_CHACHA20POLY1305 + 1][CT_OPS][BACKENDS];

/* ---- the trial, with the lock held ---- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void run(struct ct_impl *i, enum ct_op op, uint8_t *buf)
{
    static const uint8_t iv[12] = {1};
    uint8_t out[CT_POLY_SUM] = {0};
    switch (op) {
    case CT_OP_OPEN: /* a wrong tag takes as long as a right one */
        (void)ct_open(i, iv, sizeof(iv), buf, PIECE, out, buf);
        break;
    case CT_OP_ENCRYPT:
        (void)(i->backend->start(i, iv) || i->backend->update(i, buf, PIECE, buf) ||
               i->backend->finish(i, out));
        break;
    case CT_OP_GMAC:
        (void)ct_gmac(i, iv, sizeof(iv), buf, PIECE, out);
        break;
    case CT_OP_CHACHA20:
        (void)i->backend->chacha20(i, iv, 1, buf, PIECE, buf);
        break;
    case CT_OP_POLY1305:
        (void)i->backend->poly1305(i, iv, buf, PIECE, out);
        break;
    case CT_OPS:
        break;
    }
}

static void time_op(struct ct_impl *const impls[BACKENDS], enum ct_op op, uint8_t *buf,
                    double rate[static BACKENDS])
{
    double begin = now();
    for (int round = 0; round < ROUNDS; round++) {
        if (round >= ROUNDS_LEAST && now() - begin > enough) {
            break;
        }
        for (int b = 0; b < BACKENDS; b++) {
            if (impls[b]) {
                double t = now();
                run(impls[b], op, buf);
                t = now() - t;
                double r = PIECE / (t > 1e-9 ? t : 1e-9) * 1e-9;
                rate[b] = r > rate[b] ? r : rate[b];
            }
        }
    }
}

static void try_op(enum ct_alg alg, enum ct_op op, struct ct_impl *const impls[BACKENDS],
                   uint8_t *buf)
{
    struct ct_impl *right[BACKENDS] = {NULL};
    for (int b = 0; b < BACKENDS; b++) {
        if (!impls[b] || !backends[b]->provides(alg, op)) {
            continue;
        }
        if (ct_known_answer(impls[b], op)) {
            right[b] = impls[b];
        } else {
            ct_log(CT_LOG_WARN, "crypto: %s is not used for %s (%s): its answers are wrong",
                   backends[b]->name, ct_alg_name(alg), op_names[op]);
        }
    }
    time_op(right, op, buf, rates[alg][op]);
}

static int try_out(enum ct_alg alg, struct ct_err *err)
{
    struct ct_impl *impls[BACKENDS] = {NULL};
    uint8_t *buf = calloc(1, PIECE);
    if (!buf) {
        return ct_err_set(err, CT_NOMEM, "no memory to try the ciphers");
    }
    for (int b = 0; b < BACKENDS; b++) {
        if (backends[b] && backends[b]->provides(alg, CT_OP_OPEN)) {
            impls[b] = backends[b]->create(alg);
        }
    }
    for (enum ct_op op = 0; op < CT_OPS; op++) {
        if (ct_alg_has(alg, op)) {
            try_op(alg, op, impls, buf);
        }
    }
    for (int b = 0; b < BACKENDS; b++) {
        if (impls[b]) {
            backends[b]->destroy(impls[b]);
        }
    }
    free(buf);
    tried[alg] = true;
    return 0;
}

/* ---- the choice ---- */

int ct_crypto_environment(enum ct_crypto *out, struct ct_err *err)
{
    const char *name = getenv("KVFS_CRYPTO");
    *out = CT_CRYPTO_AUTO;
    for (int i = 0; name && ct_crypto_names[i]; i++) {
        if (strcmp(name, ct_crypto_names[i]) == 0) {
            *out = (enum ct_crypto)i;
            return 0;
        }
    }
    return name ? ct_err_set(err, CT_USAGE, "KVFS_CRYPTO is none of auto, openssl, ipsec") : 0;
}

/* NULL: none. */
static const struct ct_backend *choose(enum ct_alg alg, enum ct_op op)
{
    const double *rate = rates[alg][op];
    bool faster = rate[IPSEC] > margin * rate[OPENSSL];
    if (crypto == CT_CRYPTO_IPSEC && op != CT_OP_CHACHA20) {
        return rate[IPSEC] > 0 ? backends[IPSEC] : NULL;
    }
    if (crypto == CT_CRYPTO_AUTO && faster) {
        return backends[IPSEC];
    }
    return rate[OPENSSL] > 0 ? backends[OPENSSL] : NULL;
}

static int choose_all(enum ct_alg alg, const struct ct_backend *by[static CT_OPS],
                      struct ct_err *err)
{
    if ((!asked && ct_crypto_environment(&crypto, err)) || (!tried[alg] && try_out(alg, err))) {
        return -1;
    }
    asked = true;
    for (enum ct_op op = 0; op < CT_OPS; op++) {
        by[op] = ct_alg_has(alg, op) ? choose(alg, op) : NULL;
        if (by[op] || !ct_alg_has(alg, op)) {
            continue;
        }
        return crypto == CT_CRYPTO_IPSEC
                   ? ct_err_set(err, CT_UNSUPPORTED, "%s by ipsec-mb: %s", ct_alg_name(alg),
                                backends[IPSEC] ? "not on this machine" : "not in this build")
                   : ct_err_set(err, CT_UNSUPPORTED, "no cipher for %s", ct_alg_name(alg));
    }
    return 0;
}

int ct_choose(enum ct_alg alg, const struct ct_backend *by[static CT_OPS], struct ct_err *err)
{
    if (alg < CT_ALG_AES128GCM || alg > CT_ALG_CHACHA20POLY1305) {
        return ct_err_set(err, CT_UNSUPPORTED, "no cipher for %s", ct_alg_name(alg));
    }
    pthread_mutex_lock(&lock);
    int r = choose_all(alg, by, err);
    pthread_mutex_unlock(&lock);
    return r;
}

void ct_aead_use(enum ct_crypto how)
{
    pthread_mutex_lock(&lock);
    crypto = how;
    asked = true;
    pthread_mutex_unlock(&lock);
}

int ct_aead_prepare(struct ct_err *err)
{
    const struct ct_backend *by[CT_OPS];
    for (enum ct_alg alg = CT_ALG_AES128GCM; alg <= CT_ALG_CHACHA20POLY1305; alg++) {
        if (ct_choose(alg, by, err)) {
            return -1;
        }
    }
    return 0;
}

size_t ct_aead_choices(enum ct_alg alg, struct ct_aead_choice out[static CT_AEAD_CHOICES])
{
    const struct ct_backend *by[CT_OPS] = {NULL};
    size_t n = 0;
    if (ct_choose(alg, by, NULL)) {
        return 0;
    }
    for (enum ct_op op = 0; op < CT_OPS; op++) {
        if (by[op]) {
            out[n++] = (struct ct_aead_choice){op_names[op], by[op]->name, rates[alg][op][OPENSSL],
                                               rates[alg][op][IPSEC]};
        }
    }
    return n;
}
