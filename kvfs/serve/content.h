/*
 * What a file of the view consists of, whoever authenticates it: an encrypted model, a file a
 * manifest vouches for, or a side file that is passed on as it is. The chunk cache and the read
 * path know only this.
 *
 * Content is `head_len` bytes that are always in memory, then a body of extents of at most
 * CT_EXTENT_MAX bytes. Immutable, refcounted, thread-safe.
 */
#ifndef KVFS_SERVE_CONTENT_H
#define KVFS_SERVE_CONTENT_H

#include "format/manifest.h"
#include "format/model.h"

struct kvfs_content;

/* Takes the reference over. */
struct kvfs_content *kvfs_content_model(struct ct_model *m, struct ct_err *err);
/* A file as it is. `entry` (FILE; borrowed from `manifest`, which is referenced): every byte is
 * compared with its digests; NULL: only the version is compared. Takes the source over, also on
 * failure. */
struct kvfs_content *kvfs_content_file(struct ct_source *source, const struct ct_version *version,
                                       struct ct_manifest *manifest, const struct ct_entry *entry,
                                       struct ct_err *err);
struct kvfs_content *kvfs_content_ref(struct kvfs_content *c);
void kvfs_content_unref(struct kvfs_content *c);

uint64_t kvfs_content_size(const struct kvfs_content *c);
const uint8_t *kvfs_content_head(const struct kvfs_content *c, size_t *len);
uint32_t kvfs_content_extents(const struct kvfs_content *c);
/* Offsets here are in the file (head included), offset ≥ head_len. */
uint32_t kvfs_content_extent_at(const struct kvfs_content *c, uint64_t offset);
void kvfs_content_extent(const struct kvfs_content *c, uint32_t i, uint64_t *begin, uint32_t *len);
/* As ct_model_read(); damage ranges are in file offsets. */
int kvfs_content_read(struct kvfs_content *c, uint32_t extent, uint8_t *buf,
                      struct ct_damages *damages, struct ct_err *err);
/* As ct_load_read(), of a load of this model's; damage ranges are in file offsets. */
int kvfs_content_load(struct kvfs_content *c, struct ct_load *load, uint32_t extent,
                      struct ct_damages *damages, struct ct_err *err);
/* As ct_model_pending(); 0 for other files. */
uint32_t kvfs_content_pending(struct kvfs_content *c, uint32_t extent);
/* As ct_model_fetch(). */
void kvfs_content_fetch(struct kvfs_content *c, uint32_t extent);
bool kvfs_content_is_near(struct kvfs_content *c, uint32_t extent);
/* Which extents were given out whole, so that they lie in the kernel's page cache and need not be
 * decrypted ahead. Guarded by the lock of the slots. */
void kvfs_content_give(struct kvfs_content *c, uint32_t extent);
bool kvfs_content_was_given(const struct kvfs_content *c, uint32_t extent);
/* One of them was asked for again: the page cache has been emptied. */
void kvfs_content_forget_given(struct kvfs_content *c);
/* CT_STALE if the source is not what it was when the content was made. */
int kvfs_content_check(struct kvfs_content *c, struct ct_err *err);
/* From now on every read fails with `why`. What is being read just now is not waited for. */
void kvfs_content_revoke(struct kvfs_content *c, const struct ct_err *why);
/* 0, or -1 with why it was revoked. */
int kvfs_content_revoked(const struct kvfs_content *c, struct ct_err *err);
/* NULL unless it is a model. Borrowed. */
struct ct_model *kvfs_content_as_model(const struct kvfs_content *c);

#endif
