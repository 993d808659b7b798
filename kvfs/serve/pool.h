/*
 * The worker's own threads. The pool of the cache has `threads` that decrypt, and two runners for
 * what would hold up a FUSE thread but is no decryption (opens: parsing, signatures, unwrapping),
 * so that neither kind waits behind the other. Another pool (fetch.h) has only runners.
 */
#ifndef KVFS_SERVE_POOL_H
#define KVFS_SERVE_POOL_H

#include <stdbool.h>

#include "format/base/err.h"

struct kvfs_pool;

/* Each thread runs work(arg, its number) until that returns. */
struct kvfs_pool *kvfs_pool_start(unsigned threads, unsigned runners,
                                  void (*work)(void *arg, unsigned number), void *arg,
                                  struct ct_err *err);
/* Runs fn(arg) on a runner. False, having done nothing, when their queue is full. */
bool kvfs_pool_try(struct kvfs_pool *p, void (*fn)(void *), void *arg);
/* The same, or on the caller. */
void kvfs_pool_run(struct kvfs_pool *p, void (*fn)(void *), void *arg);
/* Waits for what was given to kvfs_pool_run(), and for all threads; work() must have been told. */
void kvfs_pool_stop(struct kvfs_pool *p);

#endif
