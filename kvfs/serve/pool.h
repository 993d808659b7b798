/*
 * The worker's own threads: `threads` that decrypt, and two more for what would hold up a FUSE
 * thread but is no decryption (opens: parsing, signatures, unwrapping), so that neither kind waits
 * behind the other.
 */
#ifndef KVFS_SERVE_POOL_H
#define KVFS_SERVE_POOL_H

#include "format/base/err.h"

struct kvfs_pool;

/* Each thread runs work(arg, its number) until that returns. */
struct kvfs_pool *kvfs_pool_start(unsigned threads, void (*work)(void *arg, unsigned number),
                                  void *arg, struct ct_err *err);
/* Runs fn(arg) on one of the other two, or on the caller when their queue is full. */
void kvfs_pool_run(struct kvfs_pool *p, void (*fn)(void *), void *arg);
/* Waits for what was given to kvfs_pool_run(), and for all threads; work() must have been told. */
void kvfs_pool_stop(struct kvfs_pool *p);

#endif
