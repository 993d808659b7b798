/*
 * Digests of files and of directories with code in them.
 *
 * The digest of a tree is SHA-256 over one line for each thing in it, PATH being relative to the
 * tree; names of a directory in the order of their bytes, what is in a directory after its line:
 *
 *     PATH NUL "f" NUL size NUL sha256 of the content, in hexadecimal LF
 *     PATH NUL "l" NUL target LF
 *     PATH NUL "d" LF
 *
 * Anything else in it is an error: what is measured has no sockets or devices. Owners, modes and
 * times are no part of it.
 */
#ifndef GUARD_TREE_H
#define GUARD_TREE_H

#include "format/base/sha256.h"
#include "guard/facts.h"

enum { GUARD_TREE_ITEMS_MAX = 200000, GUARD_TREE_DEPTH_MAX = 64 };

int guard_file_digest(int fd, uint8_t out[static CT_SHA256_LEN], struct ct_err *err);
int guard_tree_digest(int dirfd, uint8_t out[static CT_SHA256_LEN], struct ct_err *err);
/* The same over device, inode, size, mtime and ctime instead of contents: reads no file, and tells
 * whether anything was changed. */
int guard_tree_marks(int dirfd, uint8_t out[static CT_SHA256_LEN], struct ct_err *err);

/* A tree's digest that goes with its marks. */
struct guard_known_tree {
    dev_t dev;
    ino_t ino;
    uint64_t mnt_ns;   /* something else may be mounted in it in another one */
    int64_t looked_ns; /* when the marks were last compared */
    uint8_t marks[CT_SHA256_LEN];
    uint8_t digest[CT_SHA256_LEN];
};

/* Both, of the same moment: CT_STALE if it was changed while it was read. */
int guard_tree_measure(int dirfd, uint8_t digest[static CT_SHA256_LEN],
                       uint8_t marks[static CT_SHA256_LEN], struct ct_err *err);

#endif
