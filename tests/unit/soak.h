/* Tests that can go on for as long as one likes. */
#ifndef SOAK_H
#define SOAK_H

#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

/* False, but true in a soak (tests/soak) until KVFS_SECONDS have passed since the first call. */
static inline bool soaking(void)
{
    static struct timespec start;
    const char *seconds = getenv("KVFS_SOAK") ? getenv("KVFS_SECONDS") : NULL;
    struct timespec now;
    if (!seconds) {
        return false;
    }
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    start = start.tv_sec ? start : now;
    return now.tv_sec - start.tv_sec < strtol(seconds, NULL, 10);
}

#endif
