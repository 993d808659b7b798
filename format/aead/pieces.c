#include <sodium.h>
#include <string.h>

#include "format/aead/backend.h"
#include "format/aead/gf128.h"
#include "format/aead/pieces.h"
#include "format/aead/poly1305.h"
#include "format/aead/sum.h"
#include "format/base/bytes.h"
#include "format/base/secret.h"

enum {
    BLOCKS = CT_PIECE / 16, /* of AES, of GHASH and of Poly1305 */
    CHACHA_BLOCKS = CT_PIECE / 64,
};

static size_t piece_len(uint64_t n, uint64_t index)
{
    uint64_t left = n - index * CT_PIECE;
    return left < CT_PIECE ? (size_t)left : CT_PIECE;
}

/*
 * ---- AES-GCM ----
 *
 * GHASH of a message is (sum of C_j * H^(m-j+1) + lengths) * H. The GMAC of piece i, without the
 * mask E(J0), is S_i = (P_i + lengths of its own) * H, where P_i is the piece's part of that sum:
 * so H * P_i is known, and the message's GHASH is the sum of H * P_i * H^(blocks behind the piece)
 * plus lengths * H.
 */

/* What ct_pieces_check() computes with; all of it secret. */
struct gcm {
    uint8_t h[16], h_inverse[16];
    uint8_t h_piece[16]; /* H^BLOCKS */
    uint8_t mask[16], sum[16], power[16], block[16], own[16];
};

static int find_h(struct ct_aead *a, struct gcm *g)
{
    if (ct_gcm_h(a, g->h)) {
        return -1;
    }
    ct_gf128_inverse(g->h_inverse, g->h);
    ct_gf128_pow(g->h_piece, g->h, BLOCKS);
    return 0;
}

/* Puts the tag that the shares make up into g->sum. */
static int gcm_tag(struct ct_aead *a, struct gcm *g, const uint8_t iv[static 12],
                   const struct ct_piece *pieces, uint64_t n)
{
    uint64_t count = ct_piece_count(n);
    memset(g->sum, 0, sizeof(g->sum));
    ct_gcm_lengths(g->own, CT_PIECE, 0);
    ct_gf128_mul(g->own, g->own, g->h);
    memcpy(g->power, g->h_piece, sizeof(g->power));
    for (uint64_t i = 0; i < count; i++) {
        size_t len = piece_len(n, i);
        if (len != CT_PIECE) {
            ct_gcm_lengths(g->own, len, 0);
            ct_gf128_mul(g->own, g->own, g->h);
            ct_gf128_pow(g->power, g->h, (len + 15) / 16);
        }
        ct_gf128_mul(g->sum, g->sum, g->power);
        ct_xor16(g->sum, pieces[i].bytes);
        ct_xor16(g->sum, g->own);
    }
    ct_gcm_lengths(g->block, 0, n);
    ct_gf128_mul(g->block, g->block, g->h);
    ct_xor16(g->sum, g->block);
    if (ct_gcm_mask(a, iv, 12, g->mask)) {
        return -1;
    }
    ct_xor16(g->sum, g->mask);
    return 0;
}

/*
 * The IV under which GCM opens a piece alone. Its key stream has to go on where the piece lies, so
 * J0 must be iv || 1 + (blocks before it); and a 16-byte IV x gives J0 = (x * H + lengths of x) *
 * H, which is solved for x.
 */
static void gcm_iv(const uint8_t h_inverse[static 16], const uint8_t iv[static 12], uint64_t index,
                   uint8_t x[static 16])
{
    uint8_t lengths[16];
    memcpy(x, iv, 12);
    /* Below 2^32, because longer messages were refused. */
    ct_put_be32(x + 12, (uint32_t)(1 + index * BLOCKS));
    ct_gcm_lengths(lengths, 0, 16);
    ct_gf128_mul(x, x, h_inverse);
    ct_xor16(x, lengths);
    ct_gf128_mul(x, x, h_inverse);
}

/* Turns a share into that IV and the tag: S_i with the lengths of ciphertext instead of those of
 * associated data, and the mask of x. */
static int gcm_settle(struct ct_aead *a, struct gcm *g, const uint8_t iv[static 12], uint64_t index,
                      size_t n, struct ct_piece *piece)
{
    uint8_t *x = piece->bytes;
    uint8_t *tag = piece->bytes + 16;
    memcpy(tag, piece->bytes, 16);
    gcm_iv(g->h_inverse, iv, index, x);
    ct_gcm_lengths(g->block, n, n);
    ct_gf128_mul(g->block, g->block, g->h);
    if (ct_gcm_mask(a, x, 16, g->mask)) {
        return -1;
    }
    ct_xor16(tag, g->block);
    ct_xor16(tag, g->mask);
    return 0;
}

static int gcm_check(struct ct_aead *a, const uint8_t iv[static 12], struct ct_piece *pieces,
                     uint64_t n, const uint8_t tag[static 16])
{
    struct gcm g;
    int r = find_h(a, &g) || gcm_tag(a, &g, iv, pieces, n) ? -1
            : sodium_memcmp(g.sum, tag, 16) != 0           ? 1
                                                           : 0;
    for (uint64_t i = 0; r == 0 && i < ct_piece_count(n); i++) {
        r = gcm_settle(a, &g, iv, i, piece_len(n, i), &pieces[i]);
    }
    ct_wipe(&g, sizeof(g));
    return r;
}

/*
 * ---- ChaCha20-Poly1305 ----
 *
 * Poly1305 is a sum of blocks times powers of r (RFC 8439 section 2.5), so a piece's share is that
 * sum over the piece alone.
 */

static int chacha20(struct ct_aead *a, const uint8_t iv[static 12], uint32_t block,
                    const uint8_t *in, size_t n, uint8_t *out)
{
    struct ct_impl *i = a->by[CT_OP_CHACHA20];
    return i->backend->chacha20(i, iv, block, in, n, out);
}

static int poly_share(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                      uint8_t sum[static CT_POLY_SUM])
{
    struct ct_impl *i = a->by[CT_OP_POLY1305];
    return i->backend->poly1305(i, iv, in, n, sum);
}

/* The tag that the shares make up. */
static int poly_tag(struct ct_aead *a, const uint8_t iv[static 12], const struct ct_piece *pieces,
                    uint64_t n, uint8_t tag[static 16])
{
    uint8_t key[32];
    uint8_t lengths[16] = {0};
    if (ct_poly_key(a, iv, key)) {
        return -1;
    }
    struct ct_gf1305 r = ct_poly1305_r(key);
    struct ct_gf1305 power = ct_gf1305_pow(&r, BLOCKS);
    struct ct_gf1305 sum = {{0}};
    for (uint64_t i = 0; i < ct_piece_count(n); i++) {
        size_t len = piece_len(n, i);
        if (len != CT_PIECE) {
            power = ct_gf1305_pow(&r, (len + 15) / 16);
        }
        struct ct_gf1305 share = ct_gf1305_load(pieces[i].bytes, pieces[i].bytes[16]);
        sum = ct_gf1305_mul(&sum, &power);
        sum = ct_gf1305_add(&sum, &share);
    }
    ct_put_le64(lengths + 8, n); /* of nothing, and of the ciphertext */
    sum = ct_poly1305_step(&sum, lengths, &r);
    ct_poly1305_mac(&sum, key, tag);
    ct_wipe(key, sizeof(key));
    ct_wipe(&r, sizeof(r));
    ct_wipe(&power, sizeof(power));
    ct_wipe(&sum, sizeof(sum));
    return 0;
}

static int poly_check(struct ct_aead *a, const uint8_t iv[static 12], const struct ct_piece *pieces,
                      uint64_t n, const uint8_t tag[static 16])
{
    uint8_t made[16];
    if (poly_tag(a, iv, pieces, n, made)) {
        return -1;
    }
    return sodium_memcmp(made, tag, sizeof(made)) != 0;
}

static int chacha_open(struct ct_aead *a, const uint8_t iv[static 12], uint64_t index,
                       const struct ct_piece *piece, uint8_t *buf, size_t n)
{
    uint8_t now[CT_POLY_SUM];
    int r = poly_share(a, iv, buf, n, now)                       ? -1
            : sodium_memcmp(now, piece->bytes, sizeof(now)) != 0 ? 1
                                                                 : 0;
    ct_wipe(now, sizeof(now));
    /* Block 0 made the key of Poly1305. */
    return r ? r : chacha20(a, iv, (uint32_t)(1 + index * CHACHA_BLOCKS), buf, n, buf);
}

static int gcm_open(struct ct_aead *a, const struct ct_piece *piece, uint8_t *buf, size_t n)
{
    struct ct_impl *i = a->by[CT_OP_OPEN];
    return ct_open(i, piece->bytes, 16, buf, n, piece->bytes + 16, buf);
}

/* ---- either ---- */

static int outcome(int r, struct ct_err *err)
{
    return r == 0  ? 0
           : r > 0 ? ct_err_set(err, CT_TAG, "tag does not match")
                   : ct_err_set(err, CT_IO, "decryption failed");
}

int ct_piece_share(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                   struct ct_piece *out, struct ct_err *err)
{
    struct ct_sum s;
    int r = ct_sum_start(&s, a, iv, err) || ct_sum_add(&s, in, n, err) || ct_sum_share(&s, out, err)
                ? -1
                : 0;
    ct_sum_end(&s);
    return r;
}

int ct_pieces_check(struct ct_aead *a, const uint8_t iv[static 12], struct ct_piece *pieces,
                    uint64_t n, const uint8_t tag[static 16], struct ct_err *err)
{
    bool chacha = a->alg == CT_ALG_CHACHA20POLY1305;
    return outcome(chacha ? poly_check(a, iv, pieces, n, tag) : gcm_check(a, iv, pieces, n, tag),
                   err);
}

/* ---- as they are authenticated ---- */

static int gcm_stream_init(struct ct_piece_stream *s)
{
    uint8_t h[16];
    int r = ct_gcm_h(s->aead, h);
    if (r == 0) {
        ct_gf128_inverse(s->h_inverse, h);
    }
    ct_wipe(h, sizeof(h));
    return r;
}

static int gcm_stream_start(const struct ct_piece_stream *s, uint64_t index)
{
    struct ct_impl *i = s->aead->by[CT_OP_OPEN];
    uint8_t x[16];
    gcm_iv(s->h_inverse, s->iv, index, x);
    int r = i->backend->open_start(i, x, sizeof(x));
    ct_wipe(x, sizeof(x));
    return r;
}

static int chacha_stream_add(struct ct_piece_stream *s, const uint8_t *in, size_t n, uint8_t *out)
{
    int r = chacha20(s->aead, s->iv, s->block, in, n, out);
    s->block += (uint32_t)(n / 64);
    return r;
}

int ct_piece_stream_init(struct ct_piece_stream *s, struct ct_aead *a, const uint8_t iv[static 12],
                         struct ct_err *err)
{
    *s = (struct ct_piece_stream){.aead = a};
    memcpy(s->iv, iv, sizeof(s->iv));
    return a->alg == CT_ALG_CHACHA20POLY1305 ? 0 : outcome(gcm_stream_init(s), err);
}

int ct_piece_stream_start(struct ct_piece_stream *s, uint64_t index, struct ct_err *err)
{
    s->block = (uint32_t)(1 + index * CHACHA_BLOCKS);
    return s->aead->alg == CT_ALG_CHACHA20POLY1305 ? 0 : outcome(gcm_stream_start(s, index), err);
}

int ct_piece_stream_add(struct ct_piece_stream *s, const uint8_t *in, size_t n, uint8_t *out,
                        struct ct_err *err)
{
    struct ct_impl *i = s->aead->by[CT_OP_OPEN];
    return outcome(s->aead->alg == CT_ALG_CHACHA20POLY1305 ? chacha_stream_add(s, in, n, out)
                                                           : i->backend->open_add(i, in, n, out),
                   err);
}

void ct_piece_stream_end(struct ct_piece_stream *s)
{
    ct_wipe(s, sizeof(*s));
}

int ct_piece_open(struct ct_aead *a, const uint8_t iv[static 12], uint64_t index,
                  const struct ct_piece *piece, uint8_t *buf, size_t n, struct ct_err *err)
{
    int r = a->alg == CT_ALG_CHACHA20POLY1305 ? chacha_open(a, iv, index, piece, buf, n)
                                              : gcm_open(a, piece, buf, n);
    if (r) {
        memset(buf, 0, n);
    }
    return outcome(r, err);
}
