/*
 * An order in which threads take the parts of something, one after the other: those that are taken
 * at the same time lie apart, as those that share a huge page must, since whoever comes second
 * waits until it is cleared.
 */
#ifndef CT_BASE_SPREAD_H
#define CT_BASE_SPREAD_H

#include <stdint.h>

/* The part that is number `n` of `all`: groups of 16, in each every fourth one, then the ones
 * behind them; what is left at the end in its own order. */
static inline uint64_t ct_spread(uint64_t n, uint64_t all)
{
    uint64_t group = n - n % 16;
    return all - group < 16 ? n : group + n % 4 * 4 + n % 16 / 4;
}

#endif
