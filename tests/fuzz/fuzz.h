/* What the fuzzers share. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/bytes.h"
#include "format/keyring.h"

/* assert() that is there in every configuration. */
#define MUST(x)                                                                                    \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            (void)fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #x);                  \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* libFuzzer's interface. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);

/* What a fuzzer does once, before its first input. Secrets can be made then. */
void fuzz_start(void);

/* xorshift64*; the same mutation for the same seed. */
struct rng {
    uint64_t state;
};

static inline struct rng rng_of(unsigned seed)
{
    return (struct rng){(seed + UINT64_C(1)) * UINT64_C(0x9e3779b97f4a7c15)};
}

static inline uint32_t rnd(struct rng *r, uint32_t below)
{
    r->state ^= r->state >> 12;
    r->state ^= r->state << 25;
    r->state ^= r->state >> 27;
    return (uint32_t)(r->state * UINT64_C(0x2545f4914f6cdd1d) >> 32) % below;
}

/* One step of libFuzzer's own mutations; the text may grow by up to 64 bytes. */
void mutate_bytes(struct ct_buf *text);
/* A step that leaves JSON of it, if it was JSON: values changed, moved, left out; also in JSON that
 * stands in strings. */
void mutate_json(struct ct_buf *text, struct rng *r);

/* All keys of the reference vectors, private halves included. */
struct ct_keyring *vector_keys(void);
void silence(void); /* nothing is logged from here on */

#endif
