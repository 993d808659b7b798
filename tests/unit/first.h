/*
 * Include this in every unit test. criterion's main() uses OpenSSL (through libgit2) before it
 * runs a test, and ct_secret_init() has to come before any use: so it runs as a constructor.
 */
#ifndef UNIT_FIRST_H
#define UNIT_FIRST_H

#include <stdlib.h>

#include "format/base/secret.h"

__attribute__((constructor)) static void first(void)
{
    if (ct_secret_init(NULL)) {
        abort();
    }
}

#endif
