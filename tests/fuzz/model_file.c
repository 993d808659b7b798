#include "tests/fuzz/model_file.h"

#include <jansson.h>

#include "format/model.h"

void model_file_read(const struct model_file *f, uint64_t at, uint8_t *buf, size_t n)
{
    size_t have = at < f->n ? f->n - (size_t)at : 0;
    have = have < n ? have : n;
    if (have) {
        memcpy(buf, f->p + at, have);
    }
    memset(buf + have, 0, n - have);
    if (f->flip_at >= at && f->flip_at - at < n) {
        buf[f->flip_at - at] ^= 0x40;
    }
}

static ssize_t file_pread(struct ct_source *s, void *buf, size_t n, uint64_t offset,
                          struct ct_err *err)
{
    const struct model_file *f = (const struct model_file *)s;
    if (offset >= f->size) {
        return 0;
    }
    size_t got = f->size - offset < n ? (size_t)(f->size - offset) : n;
    got = got > 4096 ? got - got / 4 : got; /* as network file systems may */
    if (offset + got > f->fail_at) {
        return ct_err_set(err, CT_IO, "the disk is broken");
    }
    model_file_read(f, offset, buf, got);
    return (ssize_t)got;
}

static int file_version(struct ct_source *s, struct ct_version *v, struct ct_err *err)
{
    (void)err;
    *v = model_file_version((const struct model_file *)s);
    return 0;
}

static void file_close(struct ct_source *s)
{
    (void)s;
}

static const struct ct_source_ops ops = {
    .pread = file_pread, .version = file_version, .close = file_close};

struct ct_version model_file_version(const struct model_file *f)
{
    return (struct ct_version){.dev = 1, .ino = 1, .size = f->size, .mtime_ns = f->mtime_ns};
}

uint64_t body_of(const uint8_t *json, size_t n)
{
    json_t *root = json_loadb((const char *)json, n, JSON_ALLOW_NUL, NULL);
    const char *name = NULL;
    json_t *t = NULL;
    json_int_t last = 0;
    json_object_foreach(root, name, t)
    {
        json_int_t end = json_integer_value(json_array_get(json_object_get(t, "data_offsets"), 1));
        last = end > last ? end : last;
    }
    json_decref(root);
    return (uint64_t)last;
}

void model_file_init(struct model_file *f, const uint8_t *p, size_t n)
{
    *f = (struct model_file){.source = {&ops}, .p = p, .n = n, .size = n};
    f->fail_at = f->flip_at = UINT64_MAX;
    uint64_t json_len = n < CT_PREFIX ? UINT64_MAX : ct_le64(p);
    if (json_len <= n - CT_PREFIX) {
        uint64_t body = body_of(p + CT_PREFIX, json_len);
        bool sparse = body > CT_BODY_MAX; /* which is refused at once */
        if ((body <= BODY_MAX || sparse) && CT_PREFIX + json_len + body > n) {
            f->size = CT_PREFIX + json_len + body;
        }
    }
}
