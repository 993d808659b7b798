#include <stdio.h>
#include <string.h>

#include "keyserver/api/api.h"

static int no_memory(struct ct_err *err)
{
    return ct_err_set(err, CT_NOMEM, "no memory for an answer");
}

static json_t *file_json(struct ks_rows *rows)
{
    return json_pack("{s:s,s:s,s:I,s:I}", "filename", ks_text(rows, 0), "header_sha256",
                     ks_text(rows, 1), "header_size", (json_int_t)ks_int(rows, 2), "body_size",
                     (json_int_t)ks_int(rows, 3));
}

/* Frees `rows`. */
static json_t *files_json(struct ks_rows *rows, struct ct_err *err)
{
    ks_autorows mine = rows;
    kx_autojson files = json_array();
    int rc = mine ? 1 : -1;
    while (rc == 1 && (rc = ks_next(mine, err)) == 1) {
        json_t *one = file_json(mine);
        if (!one || json_array_append_new(files, one)) {
            no_memory(err);
            rc = -1;
        }
    }
    return rc ? NULL : json_incref(files);
}

int ks_get_files(struct ks_request *r, struct ct_err *err)
{
    struct ks_model m;
    int rc = ks_own_model(r, &m, err);
    if (rc) {
        return rc;
    }
    json_t *files =
        files_json(ks_query(r->ctx.db, err,
                            "SELECT path, sha256, size, body FROM files WHERE model_id = $1 AND"
                            " generation = $2 ORDER BY path",
                            "si", m.id, m.generation),
                   err);
    if (!files) {
        return -1;
    }
    r->data = json_pack("{s:s,s:s,s:I,s:o,s:I}", "model_id", m.id, "model_name", m.name,
                        "generation", (json_int_t)m.generation, "files", files, "total_count",
                        (json_int_t)json_array_size(files));
    return r->data ? 0 : no_memory(err);
}

int ks_get_file(struct ks_request *r, struct ct_err *err)
{
    struct ks_model m;
    ks_autorows rows = NULL;
    ct_autobuf header = {0};
    size_t n = 0;
    int rc = ks_own_model(r, &m, err);
    if (rc) {
        return rc;
    }
    rc = ks_one(r->ctx.db, &rows, err,
                "SELECT path, sha256, size, body, header FROM files WHERE model_id = $1 AND"
                " generation = $2 AND path = $3",
                "sis", m.id, m.generation, r->params[2]);
    if (rc != 1) {
        return rc < 0 ? -1 : ks_refuse(r, KS_NOT_FOUND, NULL);
    }
    const uint8_t *p = ks_blob(rows, 4, &n);
    ct_base64_put(&header, p, n);
    r->data = file_json(rows);
    if (ct_buf_ok(&header, err) ||
        json_object_set_new(r->data, "file_header",
                            json_stringn((char *)header.data, header.len))) {
        return no_memory(err);
    }
    return 0;
}

int ks_delete_files(struct ks_request *r, struct ct_err *err)
{
    struct ks_model m;
    int64_t leases = 0;
    int rc = ks_own_model(r, &m, err);
    rc = rc ? rc : ks_model_lock(&r->ctx, m.id, err);
    if (rc) {
        return rc;
    }
    int64_t n = ks_exec(r->ctx.db, err, "DELETE FROM files WHERE model_id = $1", "s", m.id);
    if (n < 0 ||
        ks_exec(r->ctx.db, err, "DELETE FROM policies WHERE model_id = $1", "s", m.id) < 0 ||
        ks_exec(r->ctx.db, err, "DELETE FROM staged WHERE model_id = $1 AND stage = ''", "s",
                m.id) < 0 ||
        ks_exec(r->ctx.db, err, "DELETE FROM stages WHERE model_id = $1 AND stage = ''", "s",
                m.id) < 0 ||
        ks_exec(r->ctx.db, err, "UPDATE models SET generation = 0 WHERE id = $1", "s", m.id) < 0 ||
        ks_revoke(&r->ctx, KS_MODEL_ID, m.id, "model_empty", &leases, err) < 0) {
        return -1;
    }
    r->data = json_pack("{s:I}", "total_deleted", (json_int_t)n);
    return r->data ? ks_record(r, "files-deleted", NULL, err) : no_memory(err);
}

/* ---- stages ---- */

int ks_get_stage(struct ks_request *r, struct ct_err *err)
{
    struct ks_model m;
    int rc = ks_own_model(r, &m, err);
    if (rc) {
        return rc;
    }
    json_t *files =
        files_json(ks_query(r->ctx.db, err,
                            "SELECT path, sha256, size, body FROM staged WHERE model_id = $1 AND"
                            " stage = $2 ORDER BY path",
                            "ss", m.id, r->params[2]),
                   err);
    if (!files) {
        return -1;
    }
    r->data = json_pack("{s:s,s:o}", "stage", r->params[2], "files", files);
    return r->data ? 0 : no_memory(err);
}

int ks_delete_stage(struct ks_request *r, struct ct_err *err)
{
    struct ks_model m;
    int rc = ks_own_model(r, &m, err);
    if (rc) {
        return rc;
    }
    int64_t n = ks_exec(r->ctx.db, err, "DELETE FROM staged WHERE model_id = $1 AND stage = $2",
                        "ss", m.id, r->params[2]);
    if (n < 0 || ks_exec(r->ctx.db, err, "DELETE FROM stages WHERE model_id = $1 AND stage = $2",
                         "ss", m.id, r->params[2]) < 0) {
        return -1;
    }
    r->data = json_pack("{s:I}", "total_deleted", (json_int_t)n);
    return r->data ? 0 : no_memory(err);
}
