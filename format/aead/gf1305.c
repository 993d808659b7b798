#include "format/aead/gf1305.h"

#include "format/base/bytes.h"

#define MASK44 ((UINT64_C(1) << 44) - 1)
#define MASK42 ((UINT64_C(1) << 42) - 1)

__extension__ typedef unsigned __int128 wide;

struct ct_gf1305 ct_gf1305_load(const uint8_t p[static 16], uint64_t high)
{
    uint64_t a = ct_le64(p);
    uint64_t b = ct_le64(p + 8);
    return (struct ct_gf1305){{a & MASK44, (a >> 44 | b << 20) & MASK44, b >> 24 | high << 40}};
}

/* Once around: limbs end within their bits, but for a small excess in the second. */
static struct ct_gf1305 carry(wide x, wide y, wide z)
{
    y += (uint64_t)(x >> 44);
    z += (uint64_t)(y >> 44);
    uint64_t low = ((uint64_t)x & MASK44) + (uint64_t)(z >> 42) * 5; /* 2^130 is 5 */
    return (struct ct_gf1305){
        {low & MASK44, ((uint64_t)y & MASK44) + (low >> 44), (uint64_t)z & MASK42}};
}

struct ct_gf1305 ct_gf1305_add(const struct ct_gf1305 *a, const struct ct_gf1305 *b)
{
    return carry(a->limb[0] + b->limb[0], a->limb[1] + b->limb[1], a->limb[2] + b->limb[2]);
}

struct ct_gf1305 ct_gf1305_mul(const struct ct_gf1305 *a, const struct ct_gf1305 *b)
{
    const uint64_t *x = a->limb;
    const uint64_t *y = b->limb;
    /* Products of weight 2^132 and above come back times 20. */
    uint64_t y1 = y[1] * 20;
    uint64_t y2 = y[2] * 20;
    return carry((wide)x[0] * y[0] + (wide)x[1] * y2 + (wide)x[2] * y1,
                 (wide)x[0] * y[1] + (wide)x[1] * y[0] + (wide)x[2] * y2,
                 (wide)x[0] * y[2] + (wide)x[1] * y[1] + (wide)x[2] * y[0]);
}

struct ct_gf1305 ct_gf1305_pow(const struct ct_gf1305 *a, uint64_t e)
{
    struct ct_gf1305 square = *a;
    struct ct_gf1305 r = {{1, 0, 0}};
    for (; e; e >>= 1) {
        if (e & 1) {
            r = ct_gf1305_mul(&r, &square);
        }
        square = ct_gf1305_mul(&square, &square);
    }
    return r;
}

uint64_t ct_gf1305_store(const struct ct_gf1305 *a, uint8_t p[static 16])
{
    struct ct_gf1305 h = carry(a->limb[0], a->limb[1], a->limb[2]);
    h = carry(h.limb[0], h.limb[1], h.limb[2]);
    /* h + 5 - 2^130, which is taken unless it is negative. */
    uint64_t g0 = h.limb[0] + 5;
    uint64_t g1 = h.limb[1] + (g0 >> 44);
    uint64_t g2 = h.limb[2] + (g1 >> 44) - (UINT64_C(1) << 42);
    uint64_t keep = 0 - (g2 >> 63);
    uint64_t l0 = (h.limb[0] & keep) | (g0 & MASK44 & ~keep);
    uint64_t l1 = (h.limb[1] & keep) | (g1 & MASK44 & ~keep);
    uint64_t l2 = (h.limb[2] & keep) | (g2 & MASK42 & ~keep);
    ct_put_le64(p, l0 | l1 << 44);
    ct_put_le64(p + 8, l1 >> 20 | l2 << 24);
    return l2 >> 40;
}
