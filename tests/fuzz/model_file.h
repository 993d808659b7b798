/* Encrypted files, as fuzz_header makes and checks them. */
#ifndef MODEL_FILE_H
#define MODEL_FILE_H

#include "format/header.h"
#include "format/meta.h"
#include "tests/fuzz/fuzz.h"

enum {
    SMALL_BODY = 4096,  /* bodies that mutations make are written out up to here */
    BODY_MAX = 5 << 20, /* and read up to here: what is not there is zeros */
    MESSAGES_MAX = 2000,
};

/* A source over memory. Beyond n bytes there are zeros up to `size`; reads come short. */
struct model_file {
    struct ct_source source;
    const uint8_t *p;
    size_t n;
    uint64_t size;
    uint64_t fail_at; /* bytes from here on can't be read */
    int64_t mtime_ns;
    uint64_t flip_at; /* this byte has a bit changed; UINT64_MAX: none */
};

/* The file with the size that its header gives it, if that can be read or is refused for what it
 * is; its own otherwise. */
void model_file_init(struct model_file *f, const uint8_t *p, size_t n);
struct ct_version model_file_version(const struct model_file *f);
void model_file_read(const struct model_file *f, uint64_t at, uint8_t *buf, size_t n);

/* Where the last tensor ends in the n bytes of JSON; 0 if that is not to be found out. */
uint64_t body_of(const uint8_t *json, size_t n);

/* A new header (bytes 0..8+N-1) for the file: its tensors and keys, some options changed, its body
 * as it stands being the ciphertext that all DEKs and tags fit, signed. -1: not possible. */
int reseal(const struct model_file *f, const struct ct_header *h, const struct ct_keys_field *keys,
           struct ct_keyring *ring, struct rng *r, struct ct_buf *out);
/* Signs JSON whose canonical form is what it is: replaces the value of __signature__. */
int resign(struct ct_buf *json, uint64_t body_len, struct ct_keyring *ring);

/* Everything that reading a model promises, for a header that was parsed already. */
void check_model(struct model_file *f, const struct ct_header *h, const uint8_t *raw,
                 size_t raw_len, struct ct_keyring *ring);

#endif
