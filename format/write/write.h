/*
 * What the files of format/write/ share. Not for others.
 *
 * A plan says what becomes of every tensor; the body is then written by all cores in any order,
 * since the header's length is known before its tags are; the header comes last.
 */
#ifndef CT_WRITE_H
#define CT_WRITE_H

#include "format/base/arena.h"
#include "format/base/sha256.h"
#include "format/canon.h"
#include "format/writer.h"

enum { CT_SPAN = 2097152 }; /* bytes of the body that a thread holds at once */

/* ---- plan.c ---- */

/* What becomes of one tensor. It is cut into messages of `unit` bytes, the last one shorter:
 * chunks, the whole of it (version 1), or pieces to be digested. */
struct ct_part {
    uint64_t unit;                 /* at least 1 */
    uint8_t *tags;                 /* encrypted: what enc.entries[i].tags points to */
    uint8_t (*digests)[CT_DIGEST]; /* not encrypted, and asked for: a piece's each */
};

struct ct_plan {
    const struct ct_header *header; /* of the source; borrowed */
    struct ct_keys_field keys;      /* its spans are the caller's */
    struct ct_encryption_field enc; /* in `arena` */
    struct ct_part *parts;          /* one a tensor, in `arena` */
    struct ct_secret *deks;         /* one a tensor, back to back */
    struct ct_digests *plain;       /* what a manifest wants of unencrypted tensors */
    size_t plain_count;
    struct ct_arena arena;
};

/* `digests`, if not NULL, is where `plain` is allocated; otherwise nothing is digested. To be freed
 * with ct_plan_free(), also on failure. */
int ct_plan_make(struct ct_plan *p, const struct ct_header *header,
                 const struct ct_write_keys *keys, const struct ct_write_options *opt,
                 struct ct_arena *digests, struct ct_err *err);
void ct_plan_free(struct ct_plan *p);
const uint8_t *ct_plan_dek(const struct ct_plan *p, size_t tensor);
/* The IV of message `index` of tensor `i`. */
void ct_plan_iv(const struct ct_plan *p, size_t i, uint64_t index, uint8_t iv[static CT_IV_LEN]);

/* Checks what a caller gave, and fills what `__crypto_keys__` says. */
int ct_write_keys_check(const struct ct_write_keys *keys, struct ct_err *err);
void ct_write_keys_field(const struct ct_write_keys *keys, int version, uint64_t chunk_size,
                         struct ct_keys_field *out);
/* Wraps one DEK with a fresh IV: fills wrapped_key, key_iv and key_tag. */
int ct_wrap_dek(struct ct_aead *master, const uint8_t *dek, size_t len, struct ct_encrypted *e,
                struct ct_err *err);

/* ---- header_out.c ---- */

struct ct_header_out {
    const struct ct_header *src; /* tensors and metadata; reserved fields in it are left out */
    const struct ct_keys_field *keys;
    const struct ct_encryption_field *enc;
    struct ct_span policy; /* the JSON text of `__policy__` */
    const struct ct_secret *seed;
};

/* `{"local":…,"remote":…}`; NULL is the default, which allows. */
int ct_policy_text(const char *local, const char *remote, struct ct_buf *out, struct ct_err *err);
/* How many bytes ct_header_out() will give. Tags and wrapped keys need not be known yet. */
int ct_header_out_len(const struct ct_header_out *h, uint64_t *len, struct ct_err *err);
/* Appends bytes 0..8+N-1: prefix, signed header, padding. Reads back what it wrote before it
 * signs. `immutable`, if not NULL, receives the digest of the immutable part. */
int ct_header_out(const struct ct_header_out *h, struct ct_buf *out, uint8_t *immutable,
                  struct ct_err *err);
int ct_immutable_digest(const struct ct_header *h, const struct ct_keys_field *keys,
                        const struct ct_encryption_field *enc, uint8_t digest[static CT_DIGEST],
                        struct ct_err *err);

/* ---- workers.c ---- */

struct ct_workers;

struct ct_worker {
    struct ct_workers *all;
    uint8_t *buf;         /* CT_SPAN bytes */
    struct ct_aead *aead; /* the job's; freed with the worker */
    size_t keyed;         /* whose DEK it holds: tensor + 1 */
};

struct ct_span_of { /* a part of the body to be done by one thread */
    uint64_t begin, len;
    size_t tensor; /* that `begin` lies in */
};

struct ct_job {
    void *ctx;
    uint64_t len;                                     /* of the body */
    bool (*next)(void *ctx, struct ct_span_of *span); /* false at the end; one thread at a time */
    int (*run)(void *ctx, struct ct_worker *w, const struct ct_span_of *span, struct ct_err *err);
};

/* Runs the job on `opt->threads` threads, the caller being one. The first error ends it. */
int ct_workers_run(const struct ct_job *job, const struct ct_write_options *opt,
                   struct ct_err *err);
unsigned ct_workers_count(const struct ct_write_options *opt);
/* To be called by `run` as bytes get done; -1 when the work was cancelled or failed elsewhere. */
int ct_worker_done(struct ct_worker *w, uint64_t bytes, struct ct_err *err);

/* ---- body.c ---- */

struct ct_body { /* from where to where */
    struct ct_source *in;
    const struct ct_version *version;
    uint64_t in_base; /* where the body begins */
    int out;
    uint64_t out_base;
    uint64_t len;
};

/* Encrypts and digests as the plan says, and fills its tags and digests. */
int ct_body_encrypt(const struct ct_body *b, struct ct_plan *p, const struct ct_write_options *opt,
                    struct ct_err *err);
int ct_body_copy(const struct ct_body *b, const struct ct_write_options *opt, struct ct_err *err);

/* ---- output.c ---- */

struct ct_output {
    struct ct_newfile file;
    struct ct_body body;
};

/* Refuses a name that is taken, creates the temporary file and reserves `len` bytes for it. */
int ct_output_create(struct ct_output *o, uint64_t len, int dirfd, const char *name, mode_t mode,
                     struct ct_err *err);
/* The same for a header of `header_len` bytes and the body that `src` describes. */
int ct_output_open(struct ct_output *o, struct ct_source *in, const struct ct_version *v,
                   const struct ct_header *src, uint64_t header_len, int dirfd, const char *name,
                   struct ct_err *err);
/* Writes the header, compares the source's version, and gives the file its name. */
int ct_output_commit(struct ct_output *o, const struct ct_buf *header, struct ct_err *err);
void ct_output_abort(struct ct_output *o); /* harmless after commit */

/* ---- encrypt.c ---- */

/* Encrypts what is parsed already. `policy` is the text of `__policy__`. */
int ct_encrypt_parsed(struct ct_source *in, const struct ct_version *v, const struct ct_header *h,
                      const struct ct_write_keys *keys, const struct ct_write_options *opt,
                      struct ct_span policy, int dirfd, const char *name, struct ct_entry *entry,
                      struct ct_entry_arena **arena, struct ct_err *err);

/* ---- old.c ---- */

/* An encrypted file's header, its signature checked. */
struct ct_old {
    struct ct_header *header;
    struct ct_keys_field keys;
    struct ct_encryption_field enc;
};

int ct_old_parse(struct ct_old *o, const uint8_t *json, size_t n, uint64_t body_len,
                 struct ct_keysource *keys, struct ct_err *err);
int ct_old_read(struct ct_old *o, struct ct_source *in, const struct ct_version *v,
                struct ct_keysource *keys, struct ct_err *err);
void ct_old_free(struct ct_old *o);

/* ---- entry.c ---- */

struct ct_entry_arena {
    struct ct_arena arena;
};

struct ct_entry_arena *ct_entry_arena_new(struct ct_err *err);
/* One ct_digests for each non-empty tensor that `enc` leaves unencrypted, with room for its
 * digests, in *plain, by begin. */
int ct_plain_ranges(const struct ct_header *h, const struct ct_encryption_field *enc,
                    struct ct_arena *arena, struct ct_digests **plain, size_t *count,
                    struct ct_err *err);

#endif
