/*
 * Reading ahead of decryption in the source, which may be slow: threads that bring extents near
 * (the page cache of the source's file system) and do nothing else. Far ahead, 64 MiB where memory
 * allows, while decryption runs only an extent or two ahead.
 */
#ifndef KVFS_SERVE_FETCH_H
#define KVFS_SERVE_FETCH_H

#include "kvfs/serve/content.h"

struct kvfs_fetch;

/* `memory`: what the worker may hold; the window is at most half of it. */
struct kvfs_fetch *kvfs_fetch_start(uint64_t memory, struct ct_err *err);
/* How many extents ahead. */
uint32_t kvfs_fetch_window(const struct kvfs_fetch *f);
/* Extents [first, first + count), as far as there are, soon; forgotten when too much is asked for.
 */
void kvfs_fetch_ask(struct kvfs_fetch *f, struct kvfs_content *content, uint32_t first,
                    uint32_t count);
void kvfs_fetch_stop(struct kvfs_fetch *f);

#endif
