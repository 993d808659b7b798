/* The profiles that are compiled in: files of guard/profiles. */
#ifndef GUARD_BUILTIN_H
#define GUARD_BUILTIN_H

#include <stddef.h>

struct guard_builtin {
    const char *name;
    const unsigned char *text;
    size_t len;
};

/* NULL if there is none of this name. */
const struct guard_builtin *guard_builtin_named(const char *name);

#endif
