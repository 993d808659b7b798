#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kvfs/serve/serve.h"

/* user.kvfs.*, one function each: the value in `out`, "" where there is none. */
struct attribute {
    const char *name;
    void (*value)(const struct kvfs_node *n, const struct ct_model_info *m, char *out, size_t cap);
};

static void put_state(const struct kvfs_node *n, const struct ct_model_info *m, char *out,
                      size_t cap)
{
    static const char *const states[] = {"encrypted", "vouched for", "passed on", "refused"};
    (void)m;
    (void)snprintf(out, cap, "%s", states[n->verdict.kind]);
}

/* Whether something vouches for every byte: yes, no, or partly (tensors that are not encrypted). */
static void put_authenticated(const struct kvfs_node *n, const struct ct_model_info *m, char *out,
                              size_t cap)
{
    const char *value = "no";
    if (n->verdict.kind == KVFS_VERDICT_VOUCHED ||
        (n->verdict.kind == KVFS_VERDICT_MODEL && n->verdict.entry)) {
        value = "yes";
    } else if (n->verdict.kind == KVFS_VERDICT_MODEL && m) {
        value = m->unauthenticated_bytes ? "partly" : "yes";
    } else if (n->verdict.kind == KVFS_VERDICT_MODEL) {
        value = ""; /* known once it was opened */
    }
    (void)snprintf(out, cap, "%s", value);
}

static void put_error(const struct kvfs_node *n, const struct ct_model_info *m, char *out,
                      size_t cap)
{
    (void)m;
    const struct ct_err *why =
        n->verdict.kind == KVFS_VERDICT_REFUSED ? &n->verdict.why : &n->last_error;
    if (why->code != CT_OK) {
        (void)snprintf(out, cap, "%s: %s", ct_errno_name(ct_err_errno(why)), why->msg);
    }
}

static void put_kid(const struct kvfs_node *n, const struct ct_model_info *m, char *out, size_t cap)
{
    (void)m;
    (void)snprintf(out, cap, "%s", n->measure.enc_kid);
}

static void put_sign_kid(const struct kvfs_node *n, const struct ct_model_info *m, char *out,
                         size_t cap)
{
    (void)m;
    (void)snprintf(out, cap, "%s", n->measure.sign_kid);
}

static void put_version(const struct kvfs_node *n, const struct ct_model_info *m, char *out,
                        size_t cap)
{
    (void)n;
    if (m) {
        (void)snprintf(out, cap, "%d", m->version);
    }
}

static void put_alg(const struct kvfs_node *n, const struct ct_model_info *m, char *out, size_t cap)
{
    (void)n;
    if (m) {
        (void)snprintf(out, cap, "%s", ct_alg_name(m->alg));
    }
}

static void put_header(const struct kvfs_node *n, const struct ct_model_info *m, char *out,
                       size_t cap)
{
    (void)n;
    if (m) {
        (void)snprintf(out, cap, "%s", m->header_sha256);
    }
}

static void put_generation(const struct kvfs_node *n, const struct ct_model_info *m, char *out,
                           size_t cap)
{
    (void)m;
    if (n->verdict.manifest) {
        (void)snprintf(out, cap, "%llu",
                       (unsigned long long)ct_manifest_generation(n->verdict.manifest));
    }
}

static const struct attribute attributes[] = {
    {"user.kvfs.state", put_state},
    {"user.kvfs.authenticated", put_authenticated},
    {"user.kvfs.error", put_error},
    {"user.kvfs.kid", put_kid},
    {"user.kvfs.sign_kid", put_sign_kid},
    {"user.kvfs.version", put_version},
    {"user.kvfs.alg", put_alg},
    {"user.kvfs.header_sha256", put_header},
    {"user.kvfs.generation", put_generation},
};
enum { COUNT = sizeof(attributes) / sizeof(attributes[0]) };

static void value_of(struct kvfs_node *n, const struct attribute *a, char *out, size_t cap)
{
    struct ct_model_info info;
    const struct ct_model_info *m = NULL;
    out[0] = '\0';
    pthread_mutex_lock(&n->lock);
    if (n->content && kvfs_content_as_model(n->content)) {
        ct_model_info(kvfs_content_as_model(n->content), &info);
        m = &info;
    }
    a->value(n, m, out, cap);
    pthread_mutex_unlock(&n->lock);
}

static struct kvfs_node *file_of(fuse_req_t req, fuse_ino_t ino)
{
    struct kvfs_serve *s = fuse_req_userdata(req);
    struct kvfs_node *n = kvfs_status_is(ino) ? NULL : kvfs_table_get(s->table, ino);
    return n && n->kind == KVFS_NODE_FILE ? n : NULL;
}

static void reply(fuse_req_t req, const char *value, size_t n, size_t size)
{
    kvfs_hand_over(fuse_req_userdata(req));
    if (size == 0) {
        fuse_reply_xattr(req, n);
    } else if (size < n) {
        fuse_reply_err(req, ERANGE);
    } else {
        fuse_reply_buf(req, value, n);
    }
}

void kvfs_op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    struct kvfs_node *n = file_of(req, ino);
    for (unsigned i = 0; n && i < COUNT; i++) {
        if (strcmp(name, attributes[i].name) == 0) {
            char value[1024];
            value_of(n, &attributes[i], value, sizeof(value));
            if (value[0]) {
                reply(req, value, strlen(value), size);
                return;
            }
        }
    }
    fuse_reply_err(req, ENODATA);
}

void kvfs_op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    struct kvfs_node *n = file_of(req, ino);
    char list[1024];
    size_t used = 0;
    for (unsigned i = 0; n && i < COUNT; i++) {
        char value[1024];
        value_of(n, &attributes[i], value, sizeof(value));
        if (value[0]) {
            size_t len = strlen(attributes[i].name) + 1;
            memcpy(list + used, attributes[i].name, len);
            used += len;
        }
    }
    reply(req, list, used, size);
}
