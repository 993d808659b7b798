/*
 * `--key FILE|DIR`, `--key-dir DIR` and CRYPTOTENSOR_KEYS, for everything that needs keys. The
 * tools read the files into a ring; the supervisor only opens them and hands descriptors over.
 */
#ifndef KVFS_KEYS_ARG_H
#define KVFS_KEYS_ARG_H

#include <argp.h>
#include <stdbool.h>
#include <stddef.h>

#include "format/keyring.h"

enum { KVFS_KEY_PATHS_MAX = 64, KVFS_KEY_FILES_LIMIT = 256 };

#define KVFS_KEYS_ENV "CRYPTOTENSOR_KEYS"

/* An open key file. `name` is its base name, for messages. */
struct kvfs_key_file {
    int fd;
    char name[256];
};

struct kvfs_key_files {
    struct kvfs_key_file items[KVFS_KEY_FILES_LIMIT];
    size_t count;
};

/* Opens `path`: a file (or a pipe, as `<(command)` makes), or every *.jwk, *.jwks and *.json of a
 * directory, by name. Appends; what was opened before stays open on failure too. Warns in the log
 * of a file that everybody may read, unless its name is that of a public key (*.pub.jwk,
 * public.jwk). */
int kvfs_key_files_open(struct kvfs_key_files *files, const char *path, struct ct_err *err);
void kvfs_key_files_close(struct kvfs_key_files *files);

/* What the options said. Zero-initialised. */
struct kvfs_keys_arg {
    const char *paths[KVFS_KEY_PATHS_MAX];
    size_t count;
    const char *key_dir; /* where `file://` of a jku may lead; NULL: nowhere */
};

/* Adds a path; -1 when there are too many. */
int kvfs_keys_arg_add(struct kvfs_keys_arg *a, const char *path);

/* --key and --key-dir, as a child of a command's parser; its input is a struct kvfs_keys_arg. */
extern const struct argp kvfs_keys_argp;

/* No core dump of this process from here on, nor memory of it in one that a debugger makes. */
void kvfs_no_core(void);

/* Reads all of them, or, where no --key was given, the environment variable. CT_NOKEY with a
 * sentence that says what to type when there is neither. Calls kvfs_no_core(). */
int kvfs_keys_load(const struct kvfs_keys_arg *a, struct ct_keyring **out, struct ct_err *err);
static inline void kvfs_keyring_freep(struct ct_keyring **r)
{
    ct_keyring_free(*r);
}
#define kvfs_autokeyring __attribute__((cleanup(kvfs_keyring_freep))) struct ct_keyring

/* Opens the path of a `file://` jku beneath the directory `root` (its name) that `dirfd` is open
 * on: an absolute path must begin with root. A descriptor, or -1. */
int kvfs_key_dir_open(int dirfd, const char *root, const char *path, struct ct_err *err);

#endif
