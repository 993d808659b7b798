#include "kvfs/inspect.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/file.h"
#include "format/jws.h"
#include "format/manifest.h"
#include "kvfs/domains.h"
#include "kvfs/weights.h"

#define MANIFEST_TYP "kvfs-manifest+json"

const char *kvfs_inspected_name(enum kvfs_inspected_kind kind)
{
    static const char *const names[] = {
        [KVFS_IS_ENCRYPTED] = "encrypted", [KVFS_IS_PLAIN] = "plain",
        [KVFS_IS_WEIGHTS] = "weights",     [KVFS_IS_SIDE] = "side",
        [KVFS_IS_MANIFEST] = "manifest",   [KVFS_IS_LINK] = "link",
        [KVFS_IS_SPECIAL] = "special",     [KVFS_IS_BROKEN] = "malformed",
    };
    return names[kind];
}

bool kvfs_policy_is_default(const char *text, size_t n)
{
    static const char usual[] = "package model\nallow = true";
    while (n && (text[n - 1] == '\n' || text[n - 1] == ' ')) {
        n--;
    }
    return n == sizeof(usual) - 1 && memcmp(text, usual, n) == 0;
}

static void broken(struct kvfs_inspected *out, const char *why)
{
    out->kind = KVFS_IS_BROKEN;
    (void)snprintf(out->why, sizeof(out->why), "%s", why);
}

static void copy_span(char *out, size_t cap, struct ct_span s)
{
    size_t n = s.n < cap - 1 ? s.n : cap - 1;
    if (n) {
        memcpy(out, s.p, n);
    }
    out[n] = '\0';
}

static void note_dtype(struct kvfs_inspected *out, struct ct_span dtype)
{
    char name[32];
    copy_span(name, sizeof(name), dtype);
    size_t have = strlen(out->unknown);
    if (!strstr(out->unknown, name) && have + strlen(name) + 3 < sizeof(out->unknown)) {
        (void)snprintf(out->unknown + have, sizeof(out->unknown) - have, "%s%s", have ? ", " : "",
                       name);
    }
}

static void count_tensors(const struct ct_header *h, const struct ct_encryption_field *enc,
                          struct kvfs_inspected *out)
{
    out->tensors = h->tensor_count;
    for (size_t i = 0; i < h->tensor_count; i++) {
        const struct ct_tensor *t = &h->tensors[i];
        if (t->bits == 0) {
            note_dtype(out, t->dtype);
        }
        if (enc && enc->entries[i].encrypted) {
            out->encrypted++;
        } else {
            out->plain_bytes += t->end - t->begin;
            if (!*out->plain_first) {
                copy_span(out->plain_first, sizeof(out->plain_first), t->name);
            }
        }
    }
}

static int look_at_fields(const struct ct_header *h, struct kvfs_inspected *out, struct ct_err *err)
{
    uint8_t signature[CT_SIG_LEN];
    struct ct_keys_field keys = {0};
    struct ct_encryption_field enc = {0};
    if (ct_meta_keys(h, &keys, err)) {
        return -1;
    }
    out->version = keys.version;
    out->alg = keys.enc.alg;
    out->chunk_size = keys.chunk_size;
    copy_span(out->enc_kid, sizeof(out->enc_kid), keys.enc.kid);
    copy_span(out->sign_kid, sizeof(out->sign_kid), keys.sign.kid);
    copy_span(out->jku, sizeof(out->jku), keys.enc.jku);
    int rc = ct_meta_encryption(h, &keys, &enc, err) || ct_meta_policy(h, &out->policy, err) ||
             ct_meta_signature(h, signature, err);
    if (rc == 0) {
        count_tensors(h, &enc, out);
    }
    ct_encryption_field_free(&enc);
    ct_keys_field_free(&keys);
    return rc;
}

static void look_at_header(struct ct_source *in, const struct ct_version *v,
                           struct kvfs_inspected *out)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_header *h = NULL;
    if (ct_header_read(in, v, NULL, &h, &err)) {
        broken(out, err.msg);
        return;
    }
    if (!ct_meta_is_encrypted(h)) {
        out->kind = KVFS_IS_PLAIN;
        count_tensors(h, NULL, out);
    } else {
        out->kind = KVFS_IS_ENCRYPTED;
        if (look_at_fields(h, out, &err)) {
            broken(out, err.msg);
        }
    }
    ct_header_free(h);
}

static int read_listed(const json_t *payload, struct kvfs_inspected *out)
{
    const json_t *generation = json_object_get(payload, "generation");
    const json_t *entries = json_object_get(payload, "entries");
    size_t i = 0;
    const json_t *e = NULL;
    out->listed = json_object();
    if (!json_is_integer(generation) || !json_is_array(entries) || !out->listed) {
        return -1;
    }
    out->generation = (uint64_t)json_integer_value(generation);
    json_array_foreach(entries, i, e)
    {
        const char *path = json_string_value(json_object_get(e, "path"));
        if (!path || json_object_set_new(out->listed, path, json_true())) {
            return -1;
        }
    }
    return 0;
}

/* What a manifest claims; the library itself gives out nothing of one that was not checked. */
static void look_at_manifest(int fd, struct kvfs_inspected *out)
{
    ct_autobuf text = {0};
    ct_autobuf payload = {0};
    struct ct_jws jws;
    struct ct_err err = CT_ERR_INIT;
    out->kind = KVFS_IS_MANIFEST;
    if (ct_read_fd(fd, CT_MANIFEST_MAX, &text, &err) ||
        ct_jws_parse(text.data, text.len, MANIFEST_TYP, &jws, &err) ||
        ct_jws_payload(&jws, &payload, &err)) {
        broken(out, err.msg);
        return;
    }
    copy_span(out->sign_kid, sizeof(out->sign_kid), (struct ct_span){jws.kid, jws.kid_len});
    json_t *top = json_loadb((const char *)payload.data, payload.len, 0, NULL);
    if (read_listed(top, out)) {
        broken(out, "the payload is no manifest");
    }
    json_decref(top);
}

static void look_at_content(struct ct_source *in, const struct ct_version *v,
                            struct kvfs_inspected *out)
{
    struct ct_err err = CT_ERR_INIT;
    struct kvfs_recognised r;
    if (kvfs_recognise(in, v, out->path, &r, &err)) {
        broken(out, err.msg);
        return;
    }
    switch (r.what) {
    case KVFS_WHAT_SIDE:
        out->kind = KVFS_IS_SIDE;
        break;
    case KVFS_WHAT_WEIGHTS:
        out->kind = KVFS_IS_WEIGHTS;
        memcpy(out->why, r.why, sizeof(out->why));
        break;
    case KVFS_WHAT_PLAIN:
    case KVFS_WHAT_ENCRYPTED:
        look_at_header(in, v, out);
        break;
    case KVFS_WHAT_BROKEN:
        broken(out, r.why);
        break;
    }
}

void kvfs_inspect(int fd, const struct kvfs_item *item, struct kvfs_inspected *out)
{
    struct ct_version v;
    struct ct_err err = CT_ERR_INIT;
    *out = (struct kvfs_inspected){.kind = KVFS_IS_SPECIAL, .path = strdup(item->path)};
    if (item->kind == KVFS_ITEM_LINK) {
        out->kind = KVFS_IS_LINK;
        (void)snprintf(out->why, sizeof(out->why), "%s", item->target);
    }
    if (fd < 0 || !out->path) {
        return;
    }
    out->size = (uint64_t)item->st.st_size;
    if (kvfs_is_manifest(item)) {
        look_at_manifest(fd, out);
        close(fd);
        return;
    }
    ct_version_of(&item->st, &v);
    struct ct_source *in = ct_source_fd(fd, &err);
    if (in) {
        look_at_content(in, &v, out);
    } else {
        broken(out, err.msg);
    }
    ct_source_close(in);
}

void kvfs_inspect_unreadable(const struct kvfs_item *item, const char *why,
                             struct kvfs_inspected *out)
{
    *out = (struct kvfs_inspected){.path = strdup(item->path)};
    broken(out, why);
}

void kvfs_inspected_release(struct kvfs_inspected *i)
{
    ct_policy_field_free(&i->policy);
    free(i->path);
    json_decref(i->listed);
    *i = (struct kvfs_inspected){0};
}
