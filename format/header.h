/*
 * A safetensors header, parsed strictly (format/README.md section 1): offsets contiguous from 0,
 * shapes and sizes agreeing, no duplicates, UTF-8, nothing after the object but blanks, the file
 * ending with the last tensor. Every violation is CT_MALFORMED with a sentence.
 */
#ifndef CT_HEADER_H
#define CT_HEADER_H

#include "format/scan.h"

enum {
    CT_HEADER_MAX = 100000000, /* bytes of JSON at most */
    CT_PREFIX = 8,             /* the length field before it */
};

/* For who has a header and not the file: the body is as long as the tensors say. */
#define CT_BODY_UNKNOWN UINT64_MAX

struct ct_tensor {
    struct ct_span name;  /* decoded UTF-8; may hold any character, NUL included */
    struct ct_span dtype; /* as the file says */
    uint32_t bits;        /* of one element; 0 for a dtype that is not known here */
    uint32_t rank;
    const uint64_t *shape;
    uint64_t begin, end; /* in the body */
};

struct ct_meta {
    struct ct_span key, value; /* decoded */
};

struct ct_header {
    uint64_t json_len; /* N: the body starts at CT_PREFIX + json_len in the file */
    uint64_t body_len;
    bool has_metadata;
    size_t tensor_count, meta_count;
    struct ct_tensor *tensors; /* by (begin, end), file order where both are equal */
    struct ct_meta *meta;      /* by bytes of the key */
    struct ct_name_index *names;
    void *arena; /* what the spans point into */
};

/* Parses the n bytes of JSON (padding included) of a file whose body has `body_len` bytes (or
 * CT_BODY_UNKNOWN). The result copies what it needs. */
int ct_header_parse(const uint8_t *json, size_t n, uint64_t body_len, struct ct_header **out,
                    struct ct_err *err);
void ct_header_free(struct ct_header *h); /* NULL is allowed */

/* Reads prefix and JSON from a source of `version->size` bytes and parses them. `raw`, if not
 * NULL, receives bytes 0..8+N-1 as they are. */
int ct_header_read(struct ct_source *s, const struct ct_version *version, struct ct_buf *raw,
                   struct ct_header **out, struct ct_err *err);

const struct ct_span *ct_header_meta(const struct ct_header *h, const char *key);
/* Index into h->tensors, or -1. Constant time on average, safe against chosen names. */
ptrdiff_t ct_header_find(const struct ct_header *h, struct ct_span name);

/* Bytes held. */
size_t ct_header_memory(const struct ct_header *h);
/* Frees the metadata: what is left of a header once everything was taken from it. */
void ct_header_forget_meta(struct ct_header *h);

/* What `ls` needs, read in blocks with O(1) memory. */
enum ct_kind {
    CT_KIND_OTHER,     /* no safetensors file at all */
    CT_KIND_PLAIN,     /* safetensors without __encryption__ */
    CT_KIND_ENCRYPTED, /* has __encryption__: a model for kvfs */
};

struct ct_measure {
    enum ct_kind kind;
    uint64_t json_len;
    uint64_t view_size; /* ENCRYPTED: size of the plain view; otherwise the source's size */
    uint64_t tensor_count;
    bool reserved; /* PLAIN, but with reserved CryptoTensors fields: no honest plain file */
    char enc_kid[256], sign_kid[256]; /* "" where absent, too long, or not understood */
};

/* Tells by content. A file that is no safetensors at all is CT_KIND_OTHER and 0; one that begins
 * as a safetensors header (a length below 2^32, `{`) and then breaks a rule is -1 with kind
 * CT_KIND_ENCRYPTED or CT_KIND_PLAIN as far as could be seen. Checks what a single pass can
 * (syntax, not order and duplicates); ct_header_read() has the last word, and its view must have
 * the size announced here. */
int ct_header_measure(struct ct_source *s, const struct ct_version *version, struct ct_measure *out,
                      struct ct_err *err);

#endif
