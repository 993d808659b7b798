/* What the tests and fuzzers of headers share: a source over memory, and small parsers. */
#ifndef HEADER_FIXTURE_H
#define HEADER_FIXTURE_H

#include <string.h>

#include "format/canon.h"
#include "format/header.h"
#include "format/meta.h"

/* A file in memory; reads come short, as those of a network file system may. `fail_at`: reading
 * this byte or one after it fails. */
struct memory_source {
    struct ct_source source;
    const uint8_t *p;
    size_t n, fail_at;
};

static inline ssize_t memory_pread(struct ct_source *s, void *buf, size_t n, uint64_t offset,
                                   struct ct_err *err)
{
    const struct memory_source *m = (const struct memory_source *)(const void *)s;
    if (offset >= m->n) {
        return 0;
    }
    size_t got = m->n - offset < n ? m->n - offset : n;
    got = got > 4096 ? got - got / 4 : got;
    if (offset + got > m->fail_at) {
        return ct_err_set(err, CT_IO, "the disk is broken");
    }
    memcpy(buf, m->p + offset, got);
    return (ssize_t)got;
}

static inline int memory_version(struct ct_source *s, struct ct_version *v, struct ct_err *err)
{
    (void)err;
    *v = (struct ct_version){.size = ((const struct memory_source *)(const void *)s)->n};
    return 0;
}

static const struct ct_source_ops memory_ops = {.pread = memory_pread, .version = memory_version};

static inline struct memory_source memory_source(const void *p, size_t n)
{
    return (struct memory_source){.source = {.ops = &memory_ops}, .p = p, .n = n, .fail_at = n};
}

/* The measure of a file of this JSON and a body of `body_len` bytes, which isn't there. */
static inline int measure_json(const void *json, size_t n, uint64_t body_len,
                               struct ct_measure *out, struct ct_err *err)
{
    ct_autobuf file = {0};
    uint8_t prefix[CT_PREFIX];
    ct_put_le64(prefix, n);
    ct_buf_put(&file, prefix, sizeof(prefix));
    ct_buf_put(&file, json, n);
    struct memory_source m = memory_source(file.data, file.len);
    struct ct_version v = {.size = CT_PREFIX + n + body_len};
    return ct_header_measure(&m.source, &v, out, err);
}

static inline int parse_text(const char *json, uint64_t body_len, struct ct_header **out,
                             struct ct_err *err)
{
    return ct_header_parse((const uint8_t *)json, strlen(json), body_len, out, err);
}

static inline void header_freep(struct ct_header **h)
{
    ct_header_free(*h);
}
#define autoheader __attribute__((cleanup(header_freep))) struct ct_header

#endif
