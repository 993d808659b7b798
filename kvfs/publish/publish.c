#include "kvfs/publish/publish.h"

#include <stdio.h>
#include <string.h>

int kvfs_publish_call(struct kvfs_publish *p, const char *method, const char *rest,
                      const struct ct_buf *body, bool once, struct kvfs_api_answer *out,
                      struct ct_err *err)
{
    enum { SECONDS = 600 }; /* checking many headers, or personalising them, takes long */
    char path[320];
    (void)snprintf(path, sizeof(path), "/api/resources/%s/models/%s%s", p->owner, p->name, rest);
    struct kvfs_api_request q = {
        .method = method, .path = path, .body = body, .once = once, .seconds = SECONDS};
    return kvfs_session_call(&p->session, &q, out, err);
}

/* ---- the model ---- */

static int take_model(struct kvfs_publish *p, const json_t *data, struct ct_err *err)
{
    return kvfs_api_number(data, "generation", &p->generation, err) ||
                   kvfs_api_number(data, "next_generation", &p->next, err) ||
                   kvfs_api_number(data, "max_header_bytes", &p->max_header, err)
               ? -1
               : 0;
}

int kvfs_publish_look(struct kvfs_publish *p, struct ct_err *err)
{
    struct kvfs_api_answer answer = {0};
    int rc = kvfs_publish_call(p, "GET", "", NULL, false, &answer, err);
    rc = rc ? rc : take_model(p, answer.data, err);
    json_decref(answer.data);
    return rc;
}

static int create(struct kvfs_publish *p, struct ct_err *err)
{
    char path[128];
    ct_autobuf body = {0};
    struct kvfs_api_answer answer = {0};
    kvfs_api_put(&body, "{", "name", p->name);
    ct_buf_putc(&body, '}');
    if (ct_buf_ok(&body, err)) {
        return -1;
    }
    (void)snprintf(path, sizeof(path), "/api/resources/%s/models", p->owner);
    struct kvfs_api_request q = {.method = "POST", .path = path, .body = &body};
    int rc = kvfs_session_call(&p->session, &q, &answer, err);
    p->made = rc == 0;
    if (rc == 0) {
        rc = take_model(p, answer.data, err);
    } else if (strcmp(answer.code, "exists") == 0) {
        rc = kvfs_publish_look(p, err); /* by an attempt of which no answer came, or another's */
    }
    json_decref(answer.data);
    return rc;
}

int kvfs_publish_model(struct kvfs_publish *p, struct ct_err *err)
{
    struct ct_err why = CT_ERR_INIT;
    if (kvfs_publish_look(p, &why) == 0) {
        return 0;
    }
    if (why.code != CT_NOTFOUND) {
        *err = why;
        return -1;
    }
    return create(p, err);
}

/* ---- keys: in memory that is wiped, then in the ring's secrets ---- */

static int dump(const char *text, size_t n, void *ctx)
{
    ct_buf_put(ctx, text, n);
    return 0;
}

static int add_key(struct ct_keyring *ring, const json_t *data, const char *name,
                   struct ct_err *err)
{
    ct_autobuf text = {0};
    const json_t *jwk = json_object_get(data, name);
    size_t before = ct_keyring_count(ring);
    if (!json_is_object(jwk) || json_dump_callback(jwk, dump, &text, JSON_COMPACT)) {
        return ct_err_set(err, CT_MALFORMED, "the server's answer has no %s", name);
    }
    if (ct_buf_ok(&text, err) || ct_keyring_add(ring, text.data, text.len, name, err)) {
        return -1;
    }
    return ct_keyring_count(ring) == before + 1
               ? 0
               : ct_err_set(err, CT_MALFORMED, "the server's %s is of no use", name);
}

static int fetch_key(struct kvfs_publish *p, struct ct_keyring *ring, bool sign, struct ct_err *err)
{
    struct kvfs_api_answer answer = {0};
    struct kvfs_api_request q = {.method = "GET", .path = "/api/users/sign-key"};
    int rc = sign ? kvfs_session_call(&p->session, &q, &answer, err)
                  : kvfs_publish_call(p, "GET", "/master-key", NULL, false, &answer, err);
    rc = rc ? rc : add_key(ring, answer.data, sign ? "private_key_jwk" : "master_key_jwk", err);
    json_decref(answer.data);
    return rc;
}

struct ct_keyring *kvfs_publish_keys(struct kvfs_publish *p, struct ct_err *err)
{
    struct ct_keyring *ring = ct_keyring_new(err);
    if (ring && (fetch_key(p, ring, false, err) || fetch_key(p, ring, true, err))) {
        ct_keyring_free(ring);
        ring = NULL;
    }
    return ring;
}

/* ---- headers ---- */

int kvfs_publish_header(int dirfd, const char *path, uint64_t max, struct ct_buf *out,
                        struct ct_err *err)
{
    struct stat st;
    uint8_t prefix[CT_PREFIX];
    uint64_t n = 0;
    int fd = kvfs_open_regular(dirfd, path, &st, err);
    struct ct_source *in = fd >= 0 ? ct_source_fd(fd, err) : NULL;
    if (!in) {
        return -1;
    }
    int rc = ct_source_read(in, prefix, sizeof(prefix), 0, NULL, err);
    if (rc == 0 && (!ct_add_u64(ct_le64(prefix), CT_PREFIX, &n) || n > max)) {
        rc = ct_err_set(err, CT_USAGE, "its header is larger than the server takes");
    }
    if (rc == 0) {
        uint8_t *to = ct_buf_reserve(out, n);
        rc = to ? ct_source_read(in, to, n, 0, NULL, err)
                : ct_err_set(err, CT_NOMEM, "no memory for a header");
        out->len += rc ? 0 : n;
    }
    ct_source_close(in);
    return rc ? ct_err_wrap(err, "%s", path) : 0;
}

int kvfs_publish_note(json_t *headers, int dirfd, const char *path, uint64_t max,
                      struct ct_err *err)
{
    char sha256[KX_HEX + 1];
    ct_autobuf header = {0};
    if (kvfs_publish_header(dirfd, path, max, &header, err) ||
        kx_hex_sha256(header.data, header.len, sha256, err)) {
        return -1;
    }
    json_t *one =
        json_pack("{s:s,s:s,s:I}", "path", path, "sha256", sha256, "size", (json_int_t)header.len);
    return json_array_append_new(headers, one)
               ? ct_err_set(err, CT_NOMEM, "no memory for a list of headers")
               : 0;
}

/* ---- what the server has ---- */

json_t *kvfs_publish_files(const json_t *data, struct ct_err *err)
{
    json_t *files = json_object();
    size_t i = 0;
    const json_t *f = NULL;
    json_array_foreach(json_object_get(data, "files"), i, f)
    {
        const char *path = json_string_value(json_object_get(f, "filename"));
        if (path) {
            (void)json_object_set(files, path, json_object_get(f, "header_sha256"));
        }
    }
    if (!files) {
        ct_err_set(err, CT_NOMEM, "no memory for a list of files");
    }
    return files;
}

static bool same_files(const json_t *files, const json_t *headers)
{
    size_t i = 0;
    const json_t *h = NULL;
    if (json_object_size(files) != json_array_size(headers)) {
        return false;
    }
    json_array_foreach(headers, i, h)
    {
        const char *path = json_string_value(json_object_get(h, "path"));
        if (!json_equal(json_object_get(files, path), json_object_get(h, "sha256"))) {
            return false;
        }
    }
    return true;
}

int kvfs_publish_same(struct kvfs_publish *p, const json_t *headers, bool *same, struct ct_err *err)
{
    struct kvfs_api_answer answer = {0};
    if (kvfs_publish_call(p, "GET", "/files", NULL, false, &answer, err)) {
        return -1;
    }
    json_t *files = kvfs_publish_files(answer.data, err);
    *same = same_files(files, headers);
    json_decref(answer.data);
    json_decref(files);
    return files ? 0 : -1;
}
