/* Ciphers from many threads at once: who comes first tries them out, contexts are independent. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/aead/pieces.h"
#include "format/base/secret.h"

#define MUST(x)                                                                                    \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            (void)fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                          \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

enum { THREADS = 8, N = 100000, TURNS = 60 };
static pthread_barrier_t gate;

static void one_message(struct ct_aead *a, uint8_t seed, uint8_t *buf)
{
    uint8_t iv[12] = {seed};
    uint8_t tag[16];
    struct ct_piece piece;
    memset(buf, seed, N);
    MUST(ct_aead_encrypt(a, iv, buf, N, buf, tag, NULL) == 0);
    MUST(ct_piece_share(a, iv, buf, N, &piece, NULL) == 0);
    MUST(ct_pieces_check(a, iv, &piece, N, tag, NULL) == 0);
    MUST(ct_piece_open(a, iv, 0, &piece, buf, N, NULL) == 0);
    MUST(buf[0] == seed && buf[N - 1] == seed);
    MUST(ct_aead_encrypt(a, iv, buf, N, buf, tag, NULL) == 0);
    MUST(ct_aead_open(a, iv, buf, N, tag, buf, NULL) == 0);
    MUST(buf[0] == seed && buf[N - 1] == seed);
}

static void *work(void *arg)
{
    uint8_t seed = (uint8_t)(1 + *(const int *)arg);
    uint8_t *buf = malloc(N);
    MUST(buf);
    pthread_barrier_wait(&gate);
    for (int turn = 0; turn < TURNS; turn++) {
        uint8_t key[32] = {seed, (uint8_t)turn};
        enum ct_alg alg = (enum ct_alg)(CT_ALG_AES128GCM + (turn + seed) % 3);
        struct ct_aead *a = ct_aead_new(alg, key, NULL);
        struct ct_aead_choice choices[CT_AEAD_CHOICES];
        MUST(a && ct_aead_choices(alg, choices) >= 3);
        one_message(a, (uint8_t)(seed + turn), buf);
        ct_aead_free(a);
        if (turn == TURNS / 2 && seed == 1) { /* others go on with what they have */
            ct_aead_use(CT_CRYPTO_OPENSSL);
        }
    }
    free(buf);
    return NULL;
}

int main(void)
{
    pthread_t ids[THREADS];
    int numbers[THREADS];
    MUST(ct_secret_init(NULL) == 0);
    pthread_barrier_init(&gate, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        MUST(pthread_create(&ids[i], NULL, work, &numbers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(ids[i], NULL);
    }
    return 0;
}
