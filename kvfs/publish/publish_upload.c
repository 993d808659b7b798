#include <stdio.h>
#include <string.h>

#include "format/base/file.h"
#include "format/manifest.h"
#include "kvfs/progress.h"
#include "kvfs/publish/publish.h"

enum {
    BATCH_FILES = 100,     /* the protocol's limit */
    BATCH_BYTES = 8 << 20, /* of headers, unless one is larger: a lost request costs little */
    STAGE_MAX = 64,
    TRIES = 5,
};

/* ---- the stage ---- */

/* It is called by what belongs in it. */
static int stage_name(const struct kvfs_publish *p, char out[static STAGE_MAX], struct ct_err *err)
{
    char digest[KX_HEX + 1];
    if (kx_headers_digest(p->headers, digest, err)) {
        return -1;
    }
    (void)snprintf(out, STAGE_MAX, "publish-%.40s", digest);
    return 0;
}

/* What is there already; owned by the caller. */
static json_t *look_at_stage(struct kvfs_publish *p, const char *stage, struct ct_err *err)
{
    char rest[STAGE_MAX + 16];
    struct kvfs_api_answer answer = {0};
    (void)snprintf(rest, sizeof(rest), "/stages/%s", stage);
    if (kvfs_publish_call(p, "GET", rest, NULL, false, &answer, err)) {
        return NULL;
    }
    json_t *files = kvfs_publish_files(answer.data, err);
    json_decref(answer.data);
    return files;
}

/* ---- batches ---- */

struct batch {
    struct kvfs_publish *p;
    int dirfd;
    const char *stage;
    struct ct_buf body;
    size_t files;
    uint64_t bytes;
};

static int send_batch(struct batch *b, struct ct_err *err)
{
    struct kvfs_api_answer answer = {0};
    if (b->files == 0) {
        return 0;
    }
    kvfs_api_put(&b->body, "],", "stage", b->stage);
    ct_buf_putc(&b->body, '}');
    if (ct_buf_ok(&b->body, err) || kvfs_check_interrupted(err) ||
        kvfs_publish_call(b->p, "POST", "/files", &b->body, false, &answer, err)) {
        return -1;
    }
    json_decref(answer.data);
    (void)kvfs_progress_add(NULL, b->bytes);
    b->p->uploaded += b->files;
    ct_buf_free(&b->body);
    b->files = 0;
    b->bytes = 0;
    return 0;
}

static int add_to_batch(struct batch *b, const json_t *noted, struct ct_err *err)
{
    char sha256[KX_HEX + 1];
    ct_autobuf header = {0};
    const char *path = json_string_value(json_object_get(noted, "path"));
    if (kvfs_publish_header(b->dirfd, path, b->p->max_header, &header, err) ||
        kx_hex_sha256(header.data, header.len, sha256, err)) {
        return -1;
    }
    if (strcmp(sha256, json_string_value(json_object_get(noted, "sha256"))) != 0) {
        return ct_err_set(err, CT_STALE, "%s changed meanwhile", path);
    }
    if (b->files == BATCH_FILES || (b->files && b->bytes + header.len > BATCH_BYTES)) {
        if (send_batch(b, err)) {
            return -1;
        }
    }
    kvfs_api_put(&b->body, b->files++ ? ",{" : "{\"files\":[{", "filename", path);
    ct_buf_puts(&b->body, ",\"file_header\":\"");
    ct_base64_put(&b->body, header.data, header.len);
    ct_buf_puts(&b->body, "\"}");
    b->bytes += header.len;
    return 0;
}

static int upload(struct kvfs_publish *p, int dirfd, const char *stage, struct ct_err *err)
{
    struct batch b = {.p = p, .dirfd = dirfd, .stage = stage};
    size_t i = 0;
    const json_t *h = NULL;
    json_t *have = look_at_stage(p, stage, err);
    int rc = have ? 0 : -1;
    json_array_foreach(p->headers, i, h)
    {
        const char *path = json_string_value(json_object_get(h, "path"));
        if (rc) {
            break;
        }
        if (json_equal(json_object_get(have, path), json_object_get(h, "sha256"))) {
            (void)kvfs_progress_add(NULL, (uint64_t)json_integer_value(json_object_get(h, "size")));
        } else {
            rc = add_to_batch(&b, h, err);
        }
    }
    rc = rc ? rc : send_batch(&b, err);
    ct_buf_free(&b.body);
    json_decref(have);
    return rc;
}

/* ---- the switch ---- */

static int switch_body(const struct kvfs_publish *p, int dirfd, const char *stage,
                       struct ct_buf *body, struct ct_err *err)
{
    ct_autobuf manifest = {0};
    if (ct_read_file(dirfd, CT_MANIFEST_NAME, CT_MANIFEST_MAX, &manifest, err)) {
        return -1;
    }
    ct_buf_putc(&manifest, '\0');
    if (ct_buf_ok(&manifest, err)) {
        return -1;
    }
    kvfs_api_put(body, "{", "stage", stage);
    ct_buf_puts(body, ",\"generation\":");
    ct_buf_u64(body, p->number);
    kvfs_api_put(body, ",", "manifest", (const char *)manifest.data);
    ct_buf_putc(body, '}');
    return ct_buf_ok(body, err);
}

/* After a request without an answer, or one that lost against another: what is so now? 0 when it is
 * done, 1 when it may be tried again, -1. */
static int find_out(struct kvfs_publish *p, bool answered, struct ct_err *err)
{
    bool same = false;
    struct ct_err why = *err;
    if (kvfs_publish_look(p, err) ||
        (p->generation == p->number && kvfs_publish_same(p, p->headers, &same, err))) {
        return -1;
    }
    if (same) {
        return 0;
    }
    if (!answered && p->next == p->number) {
        *err = why;
        return 1;
    }
    return ct_err_set(
        err, CT_STALE,
        "somebody else published generation %llu of %s/%s meanwhile: the same command "
        "with --resume publishes this as the next one",
        (unsigned long long)p->generation, p->owner, p->name);
}

static int make_current(struct kvfs_publish *p, int dirfd, const char *stage, struct ct_err *err)
{
    ct_autobuf body = {0};
    if (switch_body(p, dirfd, stage, &body, err)) {
        return -1;
    }
    for (int i = 0;; i++) {
        struct kvfs_api_answer answer = {0};
        int rc = kvfs_publish_call(p, "POST", "/generations", &body, true, &answer, err);
        json_decref(answer.data);
        if (rc == 0) {
            return 0;
        }
        bool lost = strcmp(answer.code, "generation_mismatch") == 0;
        if ((*answer.code && !lost) || kvfs_interrupted()) {
            return -1;
        }
        rc = find_out(p, lost, err);
        if (rc <= 0 || i == TRIES) {
            return rc > 0 ? -1 : rc;
        }
    }
}

int kvfs_publish_upload(struct kvfs_publish *p, int dirfd, struct ct_err *err)
{
    char stage[STAGE_MAX];
    return stage_name(p, stage, err) || upload(p, dirfd, stage, err) ||
                   make_current(p, dirfd, stage, err)
               ? -1
               : 0;
}
