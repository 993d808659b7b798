/*
 * Writing encrypted files: encrypt, rewrap, rekey. Bounded memory whatever the size, all cores,
 * every output a ct_newfile (temporary file, fsync, rename). Sources are only read. DEKs and IVs
 * come from the system's generator for every file anew, and never repeat.
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
    const struct ct_secret *seed; /* Ed25519 */
    struct ct_span sign_kid, sign_jku;
};

struct ct_write_options {
    int version;         /* 2, or 1 */
    uint64_t chunk_size; /* version 2 */
    /* Whether to encrypt this tensor; NULL: all. */
    bool (*choose)(void *ctx, struct ct_span tensor);
    void *choose_ctx;
    const char *policy_local, *policy_remote; /* NULL: the default, which allows */
    unsigned threads;                          /* 0: as many as the process may use */
    ct_progress_fn progress;
    void *progress_ctx;
};

/* Encrypts the plain safetensors file `in` (version `v`) to dirfd/name. `entry`, if not NULL,
 * receives what a manifest says of it (kind, size, sha256, plain digests), allocated in `*arena`,
 * which the caller frees with ct_entry_arena_free(). CT_STALE when the source changes meanwhile. */
struct ct_entry_arena;
int ct_encrypt_file(struct ct_source *in, const struct ct_version *v,
                    const struct ct_write_keys *keys, const struct ct_write_options *opt, int dirfd,
                    const char *name, struct ct_entry *entry, struct ct_entry_arena **arena,
                    struct ct_err *err);

/* New wrapping, `__crypto_keys__` and signature for the same DEKs, IVs and body. `old` gives the
 * master and verification key of what is there. Writes a whole new file (the body is copied). */
int ct_rewrap_file(struct ct_source *in, const struct ct_version *v, struct ct_keysource *old,
                   const struct ct_write_keys *keys, const struct ct_write_options *opt, int dirfd,
                   const char *name, struct ct_err *err);
/* The header alone (bytes 0..8+N-1 in, new ones appended): for a key server, which has no body. */
int ct_rewrap_header(const uint8_t *header, size_t n, uint64_t body_len, struct ct_keysource *old,
                     const struct ct_write_keys *keys, struct ct_buf *out, struct ct_err *err);

/* New DEKs, new IVs, new body: decrypts with `old` and encrypts anew, checking every tag. */
int ct_rekey_file(struct ct_source *in, const struct ct_version *v, struct ct_keysource *old,
                  const struct ct_write_keys *keys, const struct ct_write_options *opt, int dirfd,
                  const char *name, struct ct_entry *entry, struct ct_entry_arena **arena,
                  struct ct_err *err);

/* What a manifest says of an encrypted file that is there already (checked: signature, not body). */
int ct_shard_entry(struct ct_source *in, const struct ct_version *v, struct ct_keysource *keys,
                   struct ct_entry *entry, struct ct_entry_arena **arena, struct ct_err *err);
void ct_entry_arena_free(struct ct_entry_arena *a);

#endif
