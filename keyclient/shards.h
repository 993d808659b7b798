/*
 * The encrypted files of a model, as they lie on the disk and as the server wants them: for each
 * the digest of its own header, and the header that is used in its place where the server sent
 * another (kept in memory; the directory is not written to).
 */
#ifndef KC_SHARDS_H
#define KC_SHARDS_H

#include <jansson.h>
#include <stdbool.h>

#include "format/base/bytes.h"
#include "format/base/sha256.h"
#include "format/protocol/digest.h"

struct kc_shard {
    char path[256];             /* relative to the model's directory */
    char local[KX_HEX + 1];     /* digest of header bytes on the disk */
    char used[KX_HEX + 1];      /* of those that are used */
    char immutable[KX_HEX + 1]; /* of the immutable part of the local header */
    uint64_t body;              /* bytes */
    struct ct_buf header;       /* what the server sent; empty: the local one is used */
    bool wanted;                /* the generation has a file of this name */
};

struct kc_shards {
    struct kc_shard *items;
    size_t count;
};

/* Adds a file by its header bytes 0..8+N-1 and the length of its body. CT_MALFORMED when it is no
 * encrypted file or the path none that the protocol allows. */
int kc_shards_add(struct kc_shards *s, const char *path, const uint8_t *header, size_t n,
                  uint64_t body, struct ct_err *err);
struct kc_shard *kc_shards_find(const struct kc_shards *s, const char *path);
/* Back to what lies on the disk: a synchronisation that failed leaves digests without headers. */
void kc_shards_reset(struct kc_shards *s);
void kc_shards_free(struct kc_shards *s);

/* [{"path", "sha256"}, …] of those that are wanted; owned by the caller. */
json_t *kc_shards_json(const struct kc_shards *s);

/* Takes a checked synchronisation (payload and the list beside it). CT_REJECTED: body_outdated, a
 * file that is missing here, or bytes that are not those of their digest. */
int kc_shards_sync(struct kc_shards *s, const json_t *payload, const json_t *sent,
                   struct ct_err *err);

#endif
