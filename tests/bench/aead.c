/*
 * What the ciphers give on one core: each backend, algorithm and operation, in place.
 *
 *   aead [BYTES]      a message's size (2 MiB)
 *
 * Prints a JSON array of {"alg", "operation", "backend", "gb_per_second", "best", "chosen"}:
 * median and best of interleaved rounds of 64 MiB, in the thread's own time; `chosen` is what kvfs
 * would take. Backends that are not there, or wrong, are left out.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "format/aead/backend.h"
#include "format/aead/pieces.h"
#include "format/base/secret.h"

enum { ROUNDS = 9, VOLUME = 64 << 20, SERIES_MAX = 64 };

static struct series {
    const char *name;
    struct ct_aead *aead;
    double rates[ROUNDS];
    enum ct_alg alg;
    enum ct_op op;
    enum ct_crypto crypto;
    bool chosen;
} all[SERIES_MAX];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void run(struct series *s, uint8_t *buf, size_t n)
{
    static const uint8_t iv[12] = {1};
    uint8_t tag[16] = {0};
    struct ct_piece share;
    struct ct_impl *i = s->aead->by[s->op];
    switch (s->op) {
    case CT_OP_OPEN: /* the tag is wrong, which costs the same as a right one */
        (void)ct_open(i, iv, 12, buf, n, tag, buf);
        break;
    case CT_OP_ENCRYPT:
        (void)ct_aead_encrypt(s->aead, iv, buf, n, buf, tag, NULL);
        break;
    case CT_OP_CHACHA20:
        (void)i->backend->chacha20(i, iv, 1, buf, n, buf);
        break;
    default: /* what a first touch of version 1 does */
        (void)ct_piece_share(s->aead, iv, buf, n, &share, NULL);
        break;
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static size_t set_up(void)
{
    static const uint8_t key[32] = {1};
    size_t count = 0;
    for (enum ct_alg alg = CT_ALG_AES128GCM; alg <= CT_ALG_CHACHA20POLY1305; alg++) {
        struct ct_aead_choice choices[CT_AEAD_CHOICES];
        ct_aead_use(CT_CRYPTO_AUTO);
        size_t ops = ct_aead_choices(alg, choices);
        for (enum ct_crypto c = CT_CRYPTO_OPENSSL; c <= CT_CRYPTO_IPSEC; c++) {
            size_t k = 0;
            ct_aead_use(c);
            struct ct_aead *a = ct_aead_new(alg, key, NULL);
            for (enum ct_op op = 0; a && k < ops && op < CT_OPS; op++) {
                const char *backend = a->by[op] ? a->by[op]->backend->name : "";
                if (a->by[op] && strcmp(backend, ct_crypto_names[c]) == 0) {
                    all[count++] = (struct series){
                        .name = choices[k].operation,
                        .aead = a,
                        .alg = alg,
                        .op = op,
                        .crypto = c,
                        .chosen = strcmp(choices[k].backend, backend) == 0,
                    };
                }
                k += a->by[op] != NULL;
            }
        }
    }
    return count;
}

int main(int argc, char **argv)
{
    size_t n = argc > 1 ? strtoul(argv[1], NULL, 10) : CT_PIECE;
    if (n < 1 || n > VOLUME || ct_secret_init(NULL)) {
        (void)fprintf(stderr, "usage: aead [BYTES]\n");
        return 2;
    }
    uint8_t *buf = aligned_alloc(4096, (n + 4095) / 4096 * 4096);
    size_t count = set_up();
    if (!buf) {
        return 1;
    }
    memset(buf, 1, n);
    size_t volume = VOLUME / n * n;
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < count; i++) {
            run(&all[i], buf, n);
            double t = now();
            for (size_t done = 0; done < volume; done += n) {
                run(&all[i], buf, n);
            }
            t = now() - t;
            all[i].rates[round] = (double)volume / t * 1e-9;
        }
    }
    for (size_t i = 0; i < count; i++) {
        qsort(all[i].rates, ROUNDS, sizeof(double), compare);
        printf("%s{\"alg\": \"%s\", \"operation\": \"%s\", \"backend\": \"%s\", "
               "\"gb_per_second\": %.2f, \"best\": %.2f, \"chosen\": %s}",
               i ? ",\n " : "[", ct_alg_name(all[i].alg), all[i].name,
               ct_crypto_names[all[i].crypto], all[i].rates[ROUNDS / 2], all[i].rates[ROUNDS - 1],
               all[i].chosen ? "true" : "false");
    }
    puts("]");
    return 0;
}
