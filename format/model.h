/*
 * A verified model file: header checked, signature checked, policy asked, DEKs unwrapped. Immutable
 * and refcounted from then on; all functions are thread-safe.
 *
 * The view is `ct_model_header()` followed by the body. The body is cut into extents of at most
 * CT_EXTENT_MAX bytes that hold whole units of authentication (chunks, pieces, unencrypted runs):
 * an extent is what is read, decrypted and cached at once, a unit is what fails alone.
 */
#ifndef CT_MODEL_H
#define CT_MODEL_H

#include <jansson.h>

#include "format/keyring.h"
#include "format/manifest.h"

enum { CT_EXTENT_MAX = 2097152 };
/* Sparse files can claim any size: what is kept for one must stay within bounds, and the number of
 * its extents within 32 bits. */
#define CT_BODY_MAX (UINT64_C(1) << 45)

struct ct_model;

struct ct_open {
    struct ct_source *source; /* taken over, also on failure */
    struct ct_version version;
    struct ct_keysource *keys;          /* borrowed, only during the call */
    const struct ct_manifest *manifest; /* NULL: none; otherwise it must vouch for `path` */
    const char *path;                   /* relative to the manifest's directory */
    bool refuse_unencrypted;    /* plain=none: any unauthenticated tensor refuses the file */
    const json_t *policy_input; /* NULL: the policy is not evaluated (verify, rewrap) */
    const uint8_t *header;      /* bytes 0..8+N-1 to use instead of the file's own; NULL: none */
    size_t header_len;
};

int ct_model_open(const struct ct_open *how, struct ct_model **out, struct ct_err *err);
struct ct_model *ct_model_ref(struct ct_model *m);
void ct_model_unref(struct ct_model *m); /* the last one wipes the DEKs; NULL is allowed */
/* Wipes the DEKs now, for good. Nobody may read from it then or later. */
void ct_model_forget(struct ct_model *m);

/* Asks the local policy again: at every open. CT_POLICY unless it says exactly true. */
int ct_model_allow(const struct ct_model *m, const json_t *input, struct ct_err *err);

/* CT_STALE if the source's data is no longer what was opened. */
int ct_model_check(struct ct_model *m, struct ct_err *err);

const struct ct_version *ct_model_version(const struct ct_model *m);
/* The view's first bytes, length prefix included; borrowed. */
const uint8_t *ct_model_header(const struct ct_model *m, size_t *len);
uint64_t ct_model_body_len(const struct ct_model *m);
uint64_t ct_model_view_size(const struct ct_model *m);

struct ct_extent {
    uint64_t begin; /* in the body */
    uint32_t len;
};

uint32_t ct_model_extent_count(const struct ct_model *m);
void ct_model_extent(const struct ct_model *m, uint32_t i, struct ct_extent *out);
uint32_t ct_model_extent_at(const struct ct_model *m,
                            uint64_t body_offset); /* must be < body_len */

/* Ranges of the body that could not be authenticated, ascending, with one reason each. */
struct ct_damage {
    uint64_t begin, end;
    enum ct_code code; /* CT_TAG, CT_REJECTED (its DEK did not unwrap) */
    char what[160];    /* "tensor w0: chunk 2: tag does not match" */
};

struct ct_damages {
    struct ct_damage *items;
    size_t count;
};

void ct_damages_free(struct ct_damages *d);

/* Reads extent i into `buf` (its len bytes), decrypted and authenticated. Bytes of damaged units
 * are zeroed in `buf` and listed in `damages` (zero-initialised by the caller, freed by him); then
 * the call still returns 0. -1 when nothing of it can be had: CT_IO, CT_STALE. The source's version
 * is compared after the read. The first touch of a long message authenticates all of it; threads
 * that need the same message help. */
int ct_model_read(struct ct_model *m, uint32_t extent, uint8_t *buf, struct ct_damages *damages,
                  struct ct_err *err);

/* The same without decrypting, which costs less: whether what ct_model_read() gives is authentic.
 * `buf` has room for the extent; what it holds afterwards means nothing. */
int ct_model_verify(struct ct_model *m, uint32_t extent, uint8_t *buf, struct ct_damages *damages,
                    struct ct_err *err);

/*
 * Reading all extents into one buffer of the body's length, each once, by as many threads as there
 * are. Long messages are read from the source once: decrypted to the buffer while they are
 * authenticated. Nobody else may see the buffer before all extents have been read without damage.
 */
struct ct_load;
struct ct_load *ct_load_new(struct ct_model *m, uint8_t *body,
                            struct ct_err *err); /* borrows both */
void ct_load_free(struct ct_load *l);            /* NULL is allowed */
/* As ct_model_read(). */
int ct_load_read(struct ct_load *l, uint32_t extent, struct ct_damages *damages,
                 struct ct_err *err);

/* 0 unless reading an extent begins with authenticating a long message. Then threads that read
 * other extents of it at the same time help: how many of them follow. */
uint32_t ct_model_pending(struct ct_model *m, uint32_t extent);

/* Has the source bring an extent's bytes near, and waits for it: for threads of their own, ahead of
 * ct_model_read(). */
void ct_model_fetch(struct ct_model *m, uint32_t extent);
/* As ct_source_is_near(): then there is nothing to fetch. */
bool ct_model_is_near(struct ct_model *m, uint32_t extent);

/* For inspect, status and xattrs. */
struct ct_model_info {
    int version; /* of CryptoTensors: 1 or 2 */
    enum ct_alg alg;
    uint64_t chunk_size;
    size_t tensors, encrypted, unwrapped; /* counts; unwrapped < encrypted: some DEKs failed */
    uint64_t unauthenticated_bytes;       /* of tensors that nothing vouches for */
    bool manifest;
    size_t memory; /* bytes held by the model, without plaintext */
    char enc_kid[256], sign_kid[256];
    char header_sha256[65]; /* over bytes 0..8+N-1 as used */
};
void ct_model_info(const struct ct_model *m, struct ct_model_info *out);

#endif
