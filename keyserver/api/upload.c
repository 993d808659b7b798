#include <string.h>

#include "keyserver/api/api.h"

enum { FILES_MAX = 100, HEADER_MAX = 10 * KS_MIB };

/* One header, decoded and checked; then everything is written in one transaction. */
struct upload {
    const char *path;
    struct ct_buf header;
    struct ct_header_facts facts;
};

static void uploads_free(struct upload *u, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        ct_buf_free(&u[i].header);
        ct_header_facts_free(&u[i].facts);
    }
    free(u);
}

static int decode(struct ks_request *r, const json_t *file, struct upload *u)
{
    int rc = ks_members(r, file, "a file", "filename file_header");
    if (rc) {
        return rc;
    }
    const json_t *header = json_object_get(file, "file_header");
    const char *text = json_string_value(header);
    size_t n = json_string_length(header);
    u->path = json_string_value(json_object_get(file, "filename"));
    if (!u->path || !text) {
        return ks_refuse(r, KS_MALFORMED, "filename and file_header are strings");
    }
    if (!kx_is_path(u->path)) {
        return ks_refuse(r, KS_NAME, "a filename");
    }
    if (n > (size_t)HEADER_MAX / 3 * 4 + 4) {
        return ks_refuse(r, KS_HEADER_LARGE, "%s", u->path);
    }
    uint8_t *to = ct_buf_reserve(&u->header, n);
    ssize_t len = to ? ct_base64_decode(text, n, to, n) : -1;
    if (len < 0) {
        return ks_refuse(r, KS_MALFORMED, "file_header is not base64");
    }
    u->header.len = (size_t)len;
    return len > HEADER_MAX ? ks_refuse(r, KS_HEADER_LARGE, "%s", u->path) : 0;
}

static int check(struct ks_request *r, struct ks_keys *keys, struct upload *u, struct ct_err *err)
{
    if (ks_header_check(keys, u->header.data, u->header.len, &u->facts, err) == 0) {
        return 0;
    }
    if (err->code == CT_NOMEM || err->code == CT_IO) {
        return -1;
    }
    ct_err_wrap(err, "%s", u->path);
    return ks_refuse_err(r, err->code == CT_POLICY ? KS_POLICY_SYNTAX : KS_HEADER, err);
}

static int check_all(struct ks_request *r, struct ks_keys *keys, const json_t *files,
                     struct upload *u, struct ct_err *err)
{
    size_t i = 0;
    const json_t *file = NULL;
    json_array_foreach(files, i, file)
    {
        int rc = decode(r, file, &u[i]);
        for (size_t k = 0; rc == 0 && k < i; k++) {
            if (strcmp(u[k].path, u[i].path) == 0) {
                rc = ks_refuse(r, KS_MALFORMED, "%s twice", u[i].path);
            }
        }
        rc = rc ? rc : check(r, keys, &u[i], err);
        if (rc) {
            return rc;
        }
    }
    return 0;
}

static int store(struct ks_request *r, const struct ks_model *m, const char *stage,
                 const struct upload *u, size_t n, struct ct_err *err)
{
    if (ks_begin(r->ctx.db, KS_WRITE, err)) {
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        if (ks_stage_put(&r->ctx, m, stage, u[i].path, u[i].header.data, u[i].header.len,
                         &u[i].facts, err)) {
            return -1;
        }
    }
    return ks_record(r, "uploaded", NULL, err) || ks_commit(r->ctx.db, err) ? -1 : 0;
}

static int find(struct ks_request *r, struct ks_model *m, struct ks_keys *keys, struct ct_err *err)
{
    if (ks_begin(r->ctx.db, KS_READ, err)) {
        return -1;
    }
    int rc = ks_own_model(r, m, err);
    rc = rc ? rc : ks_keys_of_owner(&r->ctx, m, keys, err);
    ks_rollback(r->ctx.db);
    return rc;
}

static int check_form(struct ks_request *r, const char **stage, const json_t **files)
{
    int rc = ks_body_members(r, "files stage?");
    if (rc) {
        return rc;
    }
    const json_t *named = json_object_get(r->body, "stage");
    *files = json_object_get(r->body, "files");
    *stage = named ? json_string_value(named) : "";
    if (!*stage || (named && !kx_is_name(*stage))) {
        return ks_refuse(r, KS_NAME, "the stage");
    }
    size_t n = json_array_size(*files);
    return json_is_array(*files) && n >= 1 && n <= FILES_MAX
               ? 0
               : ks_refuse(r, KS_MALFORMED, "1 to %d files", FILES_MAX);
}

int ks_post_files(struct ks_request *r, struct ct_err *err)
{
    const char *stage = NULL;
    const json_t *files = NULL;
    struct ks_model m;
    ks_autokeys keys = {0};
    int rc = check_form(r, &stage, &files);
    rc = rc ? rc : find(r, &m, &keys, err);
    if (rc) {
        return rc;
    }
    const size_t n = json_array_size(files);
    struct upload *u = calloc(n, sizeof(*u));
    if (!u) {
        return ct_err_set(err, CT_NOMEM, "no memory for an upload");
    }
    rc = check_all(r, &keys, files, u, err);
    rc = rc ? rc : store(r, &m, stage, u, n, err);
    uploads_free(u, n);
    if (rc == 0) {
        r->data = json_pack("{s:I}", "total_uploaded", (json_int_t)n);
        rc = r->data ? 0 : ct_err_set(err, CT_NOMEM, "no memory for an answer");
    }
    return rc;
}
