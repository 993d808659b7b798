/* What the tests of the writer share: keys, a directory of their own, generated files, views. */
#ifndef WRITER_FIXTURE_H
#define WRITER_FIXTURE_H

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "format/base/sha256.h"
#include "format/model.h"
#include "format/writer.h"

#define KEYS TEST_VECTORS "/keys/"

/* A directory that is gone, with all in it, at the end. */
struct dir {
    char path[64];
    int fd;
};

static inline struct dir dir_new(void)
{
    struct dir d = {.path = "/tmp/kvfs-test-XXXXXX"};
    cr_assert(mkdtemp(d.path));
    d.fd = open(d.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    cr_assert_geq(d.fd, 0);
    return d;
}

/* How many files there are; removes them. */
static inline int dir_clear(const struct dir *d)
{
    int n = 0;
    DIR *dir = opendir(d->path);
    cr_assert(dir);
    for (const struct dirent *e = readdir(dir); e; e = readdir(dir)) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            unlinkat(d->fd, e->d_name, 0);
            n++;
        }
    }
    closedir(dir);
    return n;
}

static inline void dir_free(const struct dir *d)
{
    dir_clear(d);
    close(d->fd);
    rmdir(d->path);
}

static inline struct ct_keyring *ring_of(const char *path)
{
    struct ct_err err = CT_ERR_INIT;
    ct_autobuf json = {0};
    struct ct_keyring *r = ct_keyring_new(&err);
    cr_assert(r, "%s", err.msg);
    cr_assert_eq(ct_read_file(AT_FDCWD, path, 1 << 20, &json, &err), 0, "%s", err.msg);
    cr_assert_eq(ct_keyring_add(r, json.data, json.len, path, &err), 0, "%s", err.msg);
    return r;
}

static inline struct ct_write_keys keys_of(struct ct_keyring *r, const char *kid,
                                           const char *sign_kid)
{
    struct ct_err err = CT_ERR_INIT;
    uint8_t pub[CT_ED25519_PUB];
    struct ct_write_keys k = {0};
    cr_assert_eq(ct_keyring_master(r, kid, &k.master, &k.alg, &k.master_kid, &err), 0, "%s",
                 err.msg);
    cr_assert_eq(ct_keyring_signer(r, sign_kid, &k.seed, &k.sign_kid, pub, &err), 0, "%s", err.msg);
    return k;
}

static inline struct ct_source *source_of(int dirfd, const char *name, struct ct_version *v)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_source *s = ct_source_fd(openat(dirfd, name, O_RDONLY | O_CLOEXEC), &err);
    cr_assert(s && s->ops->version(s, v, &err) == 0, "%s: %s", name, err.msg);
    return s;
}

static inline void put_file(int dirfd, const char *name, const struct ct_buf *b)
{
    ct_autofd fd = openat(dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    cr_assert_geq(fd, 0);
    cr_assert_eq(ct_write_full(fd, b->data, b->len, NULL), 0);
}

/* The whole view of an encrypted file; the error's code, and an empty view, if it has none. */
static inline enum ct_code view_of(int dirfd, const char *name, struct ct_keysource *keys,
                                   struct ct_buf *out, struct ct_err *err)
{
    struct ct_model *m = NULL;
    struct ct_open how = {.keys = keys, .path = name};
    *err = (struct ct_err)CT_ERR_INIT;
    out->len = 0;
    how.source = source_of(dirfd, name, &how.version);
    if (ct_model_open(&how, &m, err)) {
        return err->code;
    }
    size_t n = 0;
    const uint8_t *head = ct_model_header(m, &n);
    ct_buf_put(out, head, n);
    for (uint32_t i = 0; i < ct_model_extent_count(m) && err->code == CT_OK; i++) {
        struct ct_extent e;
        struct ct_damages damages = {0};
        ct_model_extent(m, i, &e);
        if (ct_model_read(m, i, ct_buf_reserve(out, e.len), &damages, err) == 0 && damages.count) {
            ct_err_set(err, damages.items[0].code, "%s", damages.items[0].what);
        }
        ct_damages_free(&damages);
        out->len += e.len;
    }
    cr_assert(err->code != CT_OK || out->len == ct_model_view_size(m));
    ct_model_unref(m);
    return err->code;
}

/* ---- generated files, as safetensors' own serialiser writes them ---- */

struct gen {
    const char *name; /* as JSON, without quotes */
    const char *dtype;
    const char *shape;
    size_t len;
};

static inline void gen_file(const struct gen *tensors, size_t count, const char *metadata,
                            struct ct_buf *out)
{
    ct_autobuf json = {0};
    uint8_t prefix[8];
    size_t at = 0;
    ct_buf_putc(&json, '{');
    if (metadata) {
        ct_buf_printf(&json, "\"__metadata__\":%s%s", metadata, count ? "," : "");
    }
    for (size_t i = 0; i < count; i++) {
        ct_buf_printf(&json, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                      i ? "," : "", tensors[i].name, tensors[i].dtype, tensors[i].shape, at,
                      at + tensors[i].len);
        at += tensors[i].len;
    }
    ct_buf_putc(&json, '}');
    while (json.len % 8) {
        ct_buf_putc(&json, ' ');
    }
    ct_put_le64(prefix, json.len);
    ct_buf_put(out, prefix, sizeof(prefix));
    ct_buf_put(out, json.data, json.len);
    uint8_t *body = ct_buf_reserve(out, at);
    uint32_t x = 12345;
    for (size_t i = 0; i < at; i++) {
        x = x * 1664525 + 1013904223;
        body[i] = (uint8_t)(x >> 24);
    }
    out->len += at;
}

#endif
