#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "format/aead/backend.h"
#include "format/base/bytes.h"

/*
 * A text long enough for the widest loops of any backend, that ends within a block and lies at an
 * odd address. It is the ciphertext that is opened and the plaintext that is encrypted: either way
 * the result is the text plus the key stream, of which SHA-256 is known. The values were computed
 * with PyCryptodome, which shares no code with the backends.
 */
enum { TEXT = 10007, ODD = 3, HEX = 65 };

static const struct known {
    size_t iv_len; /* 0: not for this algorithm */
    const char *sha256, *open_tag, *encrypt_tag, *gmac;
} known[][2] = {
    [CT_ALG_AES128GCM] = {{12, "c7a45302c98add8ce5bd355db78ca5c392c963ed0f75c9594c1f62f018ea2d9f",
                           "366b5db7304b66818ea0e7f24f8a177a", "4b92d375753b8335499656f7594a1b48",
                           "f14b8da201d5069b0044203ddb18411e"},
                          {16, "127c31c48147aec4326c29b6d5c39580c4652d90102b8ec955c5d19a6daa106a",
                           "1f183ee293824259f0e92b034a40cded", NULL,
                           "d838eef7a21c22437e0decccded29b89"}},
    [CT_ALG_AES256GCM] = {{12, "1de503e2e13e2f5c2b6bd8e3f4da741fb3bab3cc1669e46febdb936f29f65858",
                           "07e52a2903fd7dc645a94ce7fe8bb206", "d04ebe3f7e7f43596d3cfa95c42da004",
                           "713b10159cf9029202eba52ffb72dda2"},
                          {16, "10f5336e145c7a6c9a3b128a0d0877d319c7bc61606675721620b261d335f1a7",
                           "6f72f7d6ad0c7d22ac3261af9a912b3d", NULL,
                           "19accdea32080276eb7088679f684499"}},
    [CT_ALG_CHACHA20POLY1305] =
        {{12, "82528f48d7401f00f2df2fb4a172516b850e44506d6c72706bb7d1b620377135",
          "69654b835457c38ef046539b55d505cb", "a84c3bf41cfcf668d2b635a15fdde21a", NULL}},
};
static const char known_sum[] = "78d2b2b11a3ae3a345d007c376ff3d8603";

static bool is_hex(const uint8_t *p, size_t n, const char *want)
{
    char have[HEX];
    ct_hex(have, p, n);
    return strcmp(have, want) == 0;
}

static void put_text(uint8_t *text)
{
    for (unsigned i = 0; i < TEXT; i++) {
        text[i] = (uint8_t)(i * 7 ^ i >> 8);
    }
}

static bool is_known(const uint8_t *p, const struct known *k)
{
    uint8_t digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256(digest, p, TEXT);
    return is_hex(digest, sizeof(digest), k->sha256);
}

enum { FIRST = 4099 }; /* of two parts, that meet within a block */

static int open_in_parts(struct ct_impl *i, const struct known *k, const uint8_t *iv, uint8_t *text,
                         const uint8_t *tag)
{
    const struct ct_backend *b = i->backend;
    return b->open_start(i, iv, k->iv_len) || b->open_add(i, text, FIRST, text) ||
                   b->open_add(i, text + FIRST, TEXT - FIRST, text + FIRST)
               ? -1
               : b->open_finish(i, tag);
}

static bool opens(struct ct_impl *i, const struct known *k, const uint8_t *iv, uint8_t *text)
{
    uint8_t tag[16];
    (void)ct_unhex(k->open_tag, 32, tag, sizeof(tag));
    if (open_in_parts(i, k, iv, text, tag) != 0 || !is_known(text, k)) {
        return false;
    }
    put_text(text);
    tag[15] ^= 0x80;
    return open_in_parts(i, k, iv, text, tag) == 1;
}

static bool encrypts(struct ct_impl *i, const struct known *k, const uint8_t *iv, uint8_t *text)
{
    uint8_t tag[16];
    return k->iv_len != 12 ||
           (i->backend->start(i, iv) == 0 && i->backend->update(i, text, FIRST, text) == 0 &&
            i->backend->update(i, text + FIRST, TEXT - FIRST, text + FIRST) == 0 &&
            i->backend->finish(i, tag) == 0 && is_hex(tag, 16, k->encrypt_tag) &&
            is_known(text, k));
}

/* In two parts too. */
static bool macs(struct ct_impl *i, const struct known *k, const uint8_t *iv, const uint8_t *text)
{
    uint8_t tag[16];
    return i->backend->gmac_start(i, iv, k->iv_len) == 0 &&
           i->backend->gmac_add(i, text, FIRST) == 0 &&
           i->backend->gmac_add(i, text + FIRST, TEXT - FIRST) == 0 &&
           i->backend->gmac_finish(i, tag) == 0 && is_hex(tag, 16, k->gmac);
}

static bool chacha20(struct ct_impl *i, const struct known *k, const uint8_t *iv, uint8_t *text)
{
    enum { BLOCKS = 77, BEFORE = BLOCKS * 64 };
    return i->backend->chacha20(i, iv, 1 + BLOCKS, text + BEFORE, TEXT - BEFORE, text + BEFORE) ==
               0 &&
           i->backend->chacha20(i, iv, 1, text, BEFORE, text) == 0 && is_known(text, k);
}

static bool answers(struct ct_impl *i, enum ct_op op, const struct known *k, uint8_t *text)
{
    uint8_t iv[16];
    uint8_t out[CT_POLY_SUM];
    for (unsigned n = 0; n < sizeof(iv); n++) {
        iv[n] = (uint8_t)(0xa0 + n);
    }
    put_text(text);
    switch (op) {
    case CT_OP_OPEN:
        return opens(i, k, iv, text);
    case CT_OP_ENCRYPT:
        return encrypts(i, k, iv, text);
    case CT_OP_GMAC:
        return macs(i, k, iv, text);
    case CT_OP_CHACHA20:
        return chacha20(i, k, iv, text);
    case CT_OP_POLY1305:
        return i->backend->poly1305(i, iv, text, TEXT, out) == 0 &&
               is_hex(out, sizeof(out), known_sum);
    case CT_OPS:
        break;
    }
    return false;
}

bool ct_known_answer(struct ct_impl *i, enum ct_op op)
{
    uint8_t key[32];
    uint8_t *room = malloc(TEXT + ODD);
    for (unsigned n = 0; n < sizeof(key); n++) {
        key[n] = (uint8_t)(n + 1);
    }
    bool good = room && i->backend->set_key(i, key) == 0;
    for (unsigned n = 0; n < 2; n++) {
        const struct known *k = &known[i->alg][n];
        good = good && (k->iv_len == 0 || answers(i, op, k, room + ODD));
    }
    free(room);
    return good;
}
