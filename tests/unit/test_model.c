/* Every reference vector through ct_model_open() and ct_model_read(): what must come out, and what
 * must be refused by which error. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "format/base/sha256.h"
#include "format/model.h"
#include "format/policy/policy.h"

static json_t *manifest;
static json_t *input;

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
    manifest = json_load_file(TEST_VECTORS "/manifest.json", 0, NULL);
    cr_assert(manifest);
    input = ct_policy_input(&(struct ct_policy_context){
        .host = "test", .uid = 1000, .unix_time = 1795428000, .path = "/x", .model = ""});
}

TestSuite(model, .init = setup);

static struct ct_keyring *ring_of(const char *name)
{
    char path[512];
    struct ct_err err = CT_ERR_INIT;
    ct_autobuf text = {0};
    (void)snprintf(path, sizeof(path), TEST_VECTORS "/keys/%s", name);
    struct ct_keyring *ring = ct_keyring_new(&err);
    cr_assert(ring);
    cr_assert_eq(ct_read_file(AT_FDCWD, path, 1 << 20, &text, &err), 0, "%s", err.msg);
    cr_assert_eq(ct_keyring_add(ring, text.data, text.len, name, &err), 0, "%s", err.msg);
    return ring;
}

static struct ct_source *source_of(const char *file, struct ct_version *v)
{
    char path[512];
    struct ct_err err = CT_ERR_INIT;
    (void)snprintf(path, sizeof(path), TEST_VECTORS "/%s", file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    cr_assert(fd >= 0, "%s", path);
    struct ct_source *s = ct_source_fd(fd, &err);
    cr_assert(s && s->ops->version(s, v, &err) == 0);
    return s;
}

static int open_vector(const char *file, const char *keys, struct ct_model **out,
                       struct ct_err *err)
{
    struct ct_keyring *ring = ring_of(keys);
    struct ct_open how = {.keys = ct_keyring_source(ring), .path = file, .policy_input = input};
    how.source = source_of(file, &how.version);
    int r = ct_model_open(&how, out, err);
    ct_keyring_free(ring);
    return r;
}

static const char *text(const json_t *entry, const char *name)
{
    return json_string_value(json_object_get(entry, name));
}

/* Verifying without decrypting has to come to what reading came to. */
static void expect_same_verdict(struct ct_model *m, uint32_t x, const struct ct_damages *read,
                                const char *file)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_damages d = {0};
    uint8_t *buf = malloc(CT_EXTENT_MAX);
    cr_expect_eq(ct_model_verify(m, x, buf, &d, &err), 0, "%s: %s", file, err.msg);
    cr_assert_eq(d.count, read->count, "%s", file);
    for (size_t i = 0; i < d.count; i++) {
        const struct ct_damage *is = &d.items[i];
        const struct ct_damage *was = &read->items[i];
        cr_expect(is->begin == was->begin && is->end == was->end && is->code == was->code);
        cr_expect_str_eq(is->what, was->what, "%s", file);
    }
    ct_damages_free(&d);
    free(buf);
}

Test(model, good)
{
    size_t i = 0;
    json_t *entry = NULL;
    int models = 0;
    json_array_foreach(json_object_get(manifest, "good"), i, entry)
    {
        const char *file = text(entry, "file");
        struct ct_err err = CT_ERR_INIT;
        struct ct_model *m = NULL;
        struct ct_measure measure;
        struct ct_version v;
        if (!json_object_get(entry, "data_start")) {
            continue;
        }
        models++;
        cr_expect_eq(open_vector(file, text(entry, "keys"), &m, &err), 0, "%s: %s", file, err.msg);
        if (!m) {
            continue;
        }
        uint64_t size = (uint64_t)json_integer_value(json_object_get(entry, "size"));
        size_t head = 0;
        const uint8_t *view = ct_model_header(m, &head);
        cr_expect_eq(ct_model_view_size(m), size, "%s", file);
        cr_expect_eq(head, (size_t)json_integer_value(json_object_get(entry, "data_start")), "%s",
                     file);
        struct ct_source *s = source_of(file, &v);
        cr_expect_eq(ct_header_measure(s, &v, &measure, &err), 0, "%s: %s", file, err.msg);
        cr_expect_eq(measure.kind, CT_KIND_ENCRYPTED);
        cr_expect_eq(measure.view_size, size, "%s: measured %llu", file,
                     (unsigned long long)measure.view_size);
        ct_source_close(s);

        ct_autosha256 *sha = ct_sha256_new(&err);
        uint8_t digest[32];
        char hex[65];
        uint8_t *buf = malloc(CT_EXTENT_MAX);
        ct_sha256_update(sha, view, head, &err);
        uint64_t at = 0;
        for (uint32_t x = 0; x < ct_model_extent_count(m); x++) {
            struct ct_extent e;
            struct ct_damages damages = {0};
            ct_model_extent(m, x, &e);
            cr_expect_eq(e.begin, at);
            cr_expect_eq(ct_model_extent_at(m, e.begin), x);
            cr_expect_eq(ct_model_extent_at(m, e.begin + e.len - 1), x);
            expect_same_verdict(m, x, &damages, file); /* none; and of long messages the first */
            cr_expect_eq(ct_model_read(m, x, buf, &damages, &err), 0, "%s: %s", file, err.msg);
            cr_expect_eq(damages.count, 0, "%s: %s", file,
                         damages.count ? damages.items[0].what : "");
            ct_damages_free(&damages);
            ct_sha256_update(sha, buf, e.len, &err);
            at += e.len;
        }
        free(buf);
        cr_expect_eq(at, ct_model_body_len(m));
        ct_sha256_take(sha, digest, &err);
        ct_hex(hex, digest, 32);
        cr_expect_str_eq(hex, text(entry, "sha256"), "%s", file);
        struct ct_model_info info;
        ct_model_info(m, &info);
        cr_expect_str_eq(info.header_sha256, text(entry, "header_sha256"), "%s", file);
        ct_model_unref(m);
    }
    cr_expect_eq(models, 34);
}

/* The first thing that goes wrong, and whether everything outside the named tensors is intact. */
static int read_all(struct ct_model *m, const json_t *entry, uint64_t *damaged)
{
    uint8_t *buf = malloc(CT_EXTENT_MAX);
    int code = 0;
    for (uint32_t x = 0; x < ct_model_extent_count(m); x++) {
        struct ct_err err = CT_ERR_INIT;
        struct ct_damages damages = {0};
        cr_expect_eq(ct_model_read(m, x, buf, &damages, &err), 0, "%s: %s", text(entry, "file"),
                     err.msg);
        expect_same_verdict(m, x, &damages, text(entry, "file"));
        for (size_t i = 0; i < damages.count; i++) {
            code = ct_code_errno(damages.items[i].code);
            *damaged += damages.items[i].end - damages.items[i].begin;
            size_t k = 0;
            json_t *tensor = NULL;
            bool named = false;
            json_array_foreach(json_object_get(entry, "tensors"), k, tensor)
            {
                named |= strstr(damages.items[i].what, json_string_value(tensor)) != NULL;
            }
            cr_expect(named, "%s: %s", text(entry, "file"), damages.items[i].what);
        }
        ct_damages_free(&damages);
    }
    free(buf);
    return code;
}

Test(model, must_fail)
{
    size_t i = 0;
    json_t *entry = NULL;
    json_array_foreach(json_object_get(manifest, "must_fail"), i, entry)
    {
        const char *file = text(entry, "file");
        struct ct_err err = CT_ERR_INIT;
        struct ct_model *m = NULL;
        int r = open_vector(file, text(entry, "keys"), &m, &err);
        int got = r ? ct_err_errno(&err) : 0;
        uint64_t damaged = 0;
        if (strcmp(text(entry, "when"), "open") == 0) {
            cr_expect_eq(r, -1, "%s opens", file);
        } else {
            cr_expect_eq(r, 0, "%s: %s", file, err.msg);
            if (m) {
                got = read_all(m, entry, &damaged);
                cr_expect(damaged > 0, "%s", file);
            }
        }
        cr_expect_str_eq(ct_errno_name(got), text(entry, "errno"), "%s (%s): %s", file,
                         text(entry, "why"), err.msg);
        ct_model_unref(m);
    }
}

Test(model, what_is_refused_is_named)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_model *m = NULL;
    cr_assert_eq(open_vector("must-fail/master-kid-unknown.safetensors", "reader.jwks", &m, &err),
                 -1);
    cr_expect(strstr(err.msg, "no master key of kid"), "%s", err.msg);
}
