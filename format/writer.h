/*
 * Writing encrypted files: encrypt, rewrap, rekey. Bounded memory whatever the size (2 MiB a
 * thread, rekey 6, and a few times the header), all cores, every output a ct_newfile (temporary
 * file, fsync, rename). Sources are only read. DEKs and IVs come from the system's generator for
 * every file anew, and never repeat (format/write/plan.c says why).
 *
 * Errors: CT_EXISTS before any work when the name is taken; CT_STALE when the source changed
 * meanwhile; CT_IO with err->sys ENOSPC, also before any work, when the file system is full; CT_IO
 * with err->sys ECANCELED when `progress` said so. Nothing is left behind by any of them.
 */
#ifndef CT_WRITER_H
#define CT_WRITER_H

#include "format/keyring.h"
#include "format/manifest.h"

/* Called from one thread at a time with bytes done since the last call. Non-zero cancels. */
typedef int (*ct_progress_fn)(void *ctx, uint64_t bytes);

struct ct_write_keys {
    const struct ct_secret *master; /* wraps the DEKs */
    enum ct_alg alg;
    struct ct_span master_kid, master_jku; /* written to the header; n = 0: left out */
    const struct ct_secret *seed;          /* Ed25519 */
    struct ct_span sign_kid, sign_jku;
};

struct ct_write_options {
    int version;         /* 2, or 1 */
    uint64_t chunk_size; /* version 2: 1 to 2^32 */
    /* Whether to encrypt this tensor; NULL: all (rekey: those that were). */
    bool (*choose)(void *ctx, struct ct_span tensor);
    void *choose_ctx;
    /* NULL: the default, which allows (rekey: what was there). */
    const char *policy_local, *policy_remote;
    unsigned threads; /* 0: as many as the process may use */
    ct_progress_fn progress;
    void *progress_ctx;
};

/* Encrypts the plain safetensors file `in` (version `v`) to dirfd/name; `name` has no slash, here
 * and below. `entry`, if not NULL, receives what a manifest says of it (all but the path),
 * allocated in `*arena`, which the caller frees with ct_entry_arena_free(). CT_USAGE for a file
 * that is encrypted already. */
struct ct_entry_arena;
int ct_encrypt_file(struct ct_source *in, const struct ct_version *v,
                    const struct ct_write_keys *keys, const struct ct_write_options *opt, int dirfd,
                    const char *name, struct ct_entry *entry, struct ct_entry_arena **arena,
                    struct ct_err *err);

/* How long the header of that file would be: bytes 0..8+N-1, exactly. Encrypts and writes nothing.
 */
int ct_encrypt_header_len(struct ct_source *in, const struct ct_version *v,
                          const struct ct_write_keys *keys, const struct ct_write_options *opt,
                          uint64_t *len, struct ct_err *err);

/* New wrapping, `__crypto_keys__` and signature for the same DEKs, IVs and body. `old` gives the
 * master and verification key of what is there; a new master key is for the same algorithm. Writes
 * a whole new file (the body is copied). Of `opt` only threads and progress matter. */
int ct_rewrap_file(struct ct_source *in, const struct ct_version *v, struct ct_keysource *old,
                   const struct ct_write_keys *keys, const struct ct_write_options *opt, int dirfd,
                   const char *name, struct ct_err *err);
/* The header alone (bytes 0..8+N-1 in, new ones appended): for a key server, which has no body and
 * may say CT_BODY_UNKNOWN. */
int ct_rewrap_header(const uint8_t *header, size_t n, uint64_t body_len, struct ct_keysource *old,
                     const struct ct_write_keys *keys, struct ct_buf *out, struct ct_err *err);

/* What bytes 0..8+N-1 of an encrypted file say, for who keeps headers without bodies. */
struct ct_header_facts {
    uint64_t body_len;
    uint8_t sha256[CT_DIGEST];    /* of these bytes */
    uint8_t immutable[CT_DIGEST]; /* of the header's immutable part */
    struct ct_policy_field policy;
    struct ct_keys_field keys;
};
/* Checks structure and, with the key that `keys` gives, the signature; unwraps nothing.
 * CT_MALFORMED, CT_REJECTED, CT_NOKEY; CT_USAGE when it is not encrypted. To be freed with
 * ct_header_facts_free(), also on failure. */
int ct_header_facts(const uint8_t *header, size_t n, struct ct_keysource *keys,
                    struct ct_header_facts *out, struct ct_err *err);
void ct_header_facts_free(struct ct_header_facts *f);

/* New DEKs, new IVs, new body: decrypts with `old` and encrypts anew, checking every tag. The
 * policy is kept, not asked. */
int ct_rekey_file(struct ct_source *in, const struct ct_version *v, struct ct_keysource *old,
                  const struct ct_write_keys *keys, const struct ct_write_options *opt, int dirfd,
                  const char *name, struct ct_entry *entry, struct ct_entry_arena **arena,
                  struct ct_err *err);

/* What a manifest says of an encrypted file that is there already (checked: signature, not body).
 */
int ct_shard_entry(struct ct_source *in, const struct ct_version *v, struct ct_keysource *keys,
                   struct ct_entry *entry, struct ct_entry_arena **arena, struct ct_err *err);

/* Copies a side file to dirfd/name and says what a manifest says of it; with name NULL it
 * only says so. Of `opt` only progress matters; NULL is allowed. */
int ct_copy_file(struct ct_source *in, const struct ct_version *v,
                 const struct ct_write_options *opt, int dirfd, const char *name, mode_t mode,
                 struct ct_entry *entry, struct ct_entry_arena **arena, struct ct_err *err);

void ct_entry_arena_free(struct ct_entry_arena *a); /* NULL is allowed */

#endif
