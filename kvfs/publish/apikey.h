/*
 * An API key, from wherever it may come: a file, a descriptor, the environment, a person at a
 * terminal. Never from the command line, which everybody on the machine can read.
 */
#ifndef KVFS_APIKEY_H
#define KVFS_APIKEY_H

#include <argp.h>

#include "format/base/secret.h"

enum { KVFS_APIKEY_MAX = 256 };

#define KVFS_APIKEY_ENV "KVFS_API_KEY"

/* What the options said. KVFS_APIKEY_ARG where nothing was said. */
struct kvfs_apikey_arg {
    const char *file; /* "-" is standard input */
    int fd;           /* -1: none */
};
#define KVFS_APIKEY_ARG                                                                            \
    {                                                                                              \
        .fd = -1                                                                                   \
    }

/* --api-key and --api-key-fd, as a child of a command's parser; its input is the struct. */
extern const struct argp kvfs_apikey_argp;

/*
 * The key, with a NUL behind it, owned by the caller: from the file or the descriptor that was
 * named; else from the environment variable; else asked for, without echo, where standard input is
 * a terminal; else the first line of standard input. The variable is wiped and removed in any case.
 * No message has any of it. CT_IO, CT_MALFORMED for what is no key, CT_NOKEY for nothing.
 */
struct ct_secret *kvfs_apikey_read(const struct kvfs_apikey_arg *arg, struct ct_err *err);

#endif
