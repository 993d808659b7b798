#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kvfs/serve/audit.h"
#include "kvfs/serve/guarded.h"
#include "kvfs/serve/leases.h"
#include "kvfs/serve/resident.h"

/* ---- the policy ---- */

/* The name of the model that a file belongs to: the path of its directory in the mount. */
static json_t *input_of(const struct kvfs_serve *s, const char *path, unsigned uid,
                        struct ct_err *err)
{
    char shown[PATH_MAX + 1];
    char model[PATH_MAX];
    (void)snprintf(shown, sizeof(shown), "/%s", path);
    (void)snprintf(model, sizeof(model), "%s", path);
    char *slash = strrchr(model, '/');
    *(slash ? slash : model) = '\0';
    json_t *input = ct_policy_input(
        &(struct ct_policy_context){.uid = uid,
                                    .unix_time = time(NULL),
                                    .path = shown,
                                    .model = model,
                                    .guard = s->guarded ? s->config.profile : NULL});
    if (!input) {
        ct_err_set(err, CT_POLICY, "no policy input can be made: the path is not UTF-8");
    }
    return input;
}

/* A file with several names is opened only when the policy allows each of them: the kernel does not
 * say which one was used. */
static int ask_policy(struct kvfs_serve *s, const struct kvfs_node *node, const struct ct_model *m,
                      unsigned uid, struct ct_err *err)
{
    size_t n = 0;
    char **paths = kvfs_table_paths(s->table, node, &n);
    if (!paths) {
        return ct_err_set(err, CT_NOMEM, "no memory for a path");
    }
    int r = 0;
    for (size_t i = 0; r == 0 && i < n; i++) {
        json_t *input = input_of(s, paths[i], uid, err);
        r = input ? ct_model_allow(m, input, err) : -1;
        json_decref(input);
    }
    kvfs_paths_free(paths, n);
    return r;
}

/* ---- memory for parsing ---- */

/* Bytes that a header takes, for each of its own, until it is verified: measured, the worst case.
 * Before that it may be anybody's, so that all who open files share what there is for it. */
enum { PARSING_COST = 5, PARSING_LEAST = 64 << 20, LARGE = 1 << 20 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t used;
} parsing = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* Waits for others. CT_NOMEM if it can never be. */
static int parsing_begin(const struct kvfs_serve *s, uint64_t header, struct ct_err *err)
{
    uint64_t twice = 2 * s->config.memory;
    uint64_t most = twice < PARSING_LEAST ? PARSING_LEAST : twice;
    if (header > most / PARSING_COST) {
        return ct_err_set(err, CT_NOMEM,
                          "a header of %llu bytes takes more memory than memory= provides for",
                          (unsigned long long)header);
    }
    pthread_mutex_lock(&parsing.lock);
    while (parsing.used + header * PARSING_COST > most) {
        pthread_cond_wait(&parsing.changed, &parsing.lock);
    }
    parsing.used += header * PARSING_COST;
    pthread_mutex_unlock(&parsing.lock);
    return 0;
}

static void parsing_end(uint64_t header)
{
    if (header >= LARGE) {
        (void)malloc_trim(0); /* it would stay with this thread's arena */
    }
    pthread_mutex_lock(&parsing.lock);
    parsing.used -= header * PARSING_COST;
    pthread_cond_broadcast(&parsing.changed);
    pthread_mutex_unlock(&parsing.lock);
}

/* ---- making the content ---- */

static struct kvfs_content *open_model(struct kvfs_serve *s, const struct kvfs_found *f,
                                       struct ct_source *source, const char *path, unsigned uid,
                                       struct ct_err *err)
{
    struct ct_model *m = NULL;
    uint64_t header = f->measure.json_len;
    json_t *input = input_of(s, path, uid, err);
    if (!input || parsing_begin(s, header, err)) {
        json_decref(input);
        ct_source_close(source);
        return NULL;
    }
    ct_autobuf released = {0};
    struct ct_open how = {
        .source = source,
        .version = f->version,
        .keys = s->keys,
        .manifest = f->verdict.manifest,
        .path = f->verdict.entry ? f->verdict.entry->path : "",
        .refuse_unencrypted = s->config.plain == KVFS_PLAIN_NONE,
        .policy_input = input,
    };
    int r = s->leases ? kvfs_leases_use(s->leases, source, &how, &released, err) : 0;
    if (r) {
        ct_source_close(source);
    } else {
        r = ct_model_open(&how, &m, err);
    }
    parsing_end(header);
    json_decref(input);
    if (r) {
        return NULL;
    }
    if (ct_model_view_size(m) != f->measure.view_size) {
        ct_model_unref(m);
        ct_err_set(err, CT_MALFORMED, "the header's size is not what it seemed");
        return NULL;
    }
    return kvfs_content_model(m, err);
}

static struct kvfs_content *make_content(struct kvfs_serve *s, struct kvfs_found *f,
                                         struct kvfs_opened *opened, const char *path, unsigned uid,
                                         struct ct_err *err)
{
    if (f->verdict.kind == KVFS_VERDICT_REFUSED) {
        *err = f->verdict.why;
        return NULL;
    }
    int fd = opened->fd;
    opened->fd = -1;
    struct ct_source *source = ct_source_fd(fd, err);
    if (!source) {
        return NULL;
    }
    return f->verdict.kind == KVFS_VERDICT_MODEL
               ? open_model(s, f, source, path, uid, err)
               : kvfs_content_file(source, &f->version, f->verdict.manifest, f->verdict.entry, err);
}

static bool same_file(const struct kvfs_node *n, const struct kvfs_found *f)
{
    return f->kind == KVFS_NODE_FILE && ct_version_same(&n->version, &f->version) &&
           n->verdict.kind == f->verdict.kind && n->verdict.entry == f->verdict.entry;
}

/* With node->opening held. The source is judged again, since time has passed since the lookup. */
static int first_open(struct kvfs_serve *s, struct kvfs_node *node, unsigned uid,
                      struct ct_err *err)
{
    struct kvfs_found f;
    struct kvfs_opened opened;
    size_t n = 0;
    char **paths = kvfs_table_paths(s->table, node, &n);
    if (!paths || n == 0) {
        return ct_err_set(err, CT_NOMEM, "no memory for a path");
    }
    struct kvfs_content *c = NULL;
    if (kvfs_judge_path(s, paths[0], &f, &opened, err) == 0) {
        if (same_file(node, &f)) {
            c = make_content(s, &f, &opened, paths[0], uid, err);
        } else {
            ct_err_set(err, CT_STALE, "the source changed since it was looked up");
        }
        kvfs_found_release(&f);
        kvfs_opened_release(&opened);
    }
    kvfs_paths_free(paths, n);
    if (!c) {
        return -1;
    }
    pthread_mutex_lock(&node->lock);
    node->content = c;
    pthread_mutex_unlock(&node->lock);
    return 0;
}

/* The node's content, referenced; made if need be, and the policy asked in any case. */
static struct kvfs_content *content_of(struct kvfs_serve *s, struct kvfs_node *node, unsigned uid,
                                       struct ct_err *err)
{
    if (node->verdict.kind == KVFS_VERDICT_REFUSED) {
        *err = node->verdict.why;
        return NULL;
    }
    pthread_mutex_lock(&node->opening);
    pthread_mutex_lock(&node->lock);
    struct kvfs_content *c = node->content ? kvfs_content_ref(node->content) : NULL;
    bool stale = node->stale;
    pthread_mutex_unlock(&node->lock);
    int r = stale ? ct_err_set(err, CT_STALE, "the source changed since it was opened") : 0;
    if (r == 0 && c) {
        r = kvfs_content_check(c, err);
    } else if (r == 0 && (r = first_open(s, node, uid, err)) == 0) {
        c = kvfs_content_ref(node->content);
    }
    pthread_mutex_unlock(&node->opening);
    struct ct_model *m = c ? kvfs_content_as_model(c) : NULL;
    if (r == 0 && m) {
        r = ask_policy(s, node, m, uid, err);
    }
    if (r) {
        kvfs_content_unref(c);
        return NULL;
    }
    return c;
}

/* ---- the node's life around opens ---- */

static void begin(struct kvfs_node *node)
{
    pthread_mutex_lock(&node->lock);
    node->busy++;
    pthread_mutex_unlock(&node->lock);
}

/* The last one that has a node open, not pinned, takes its content with it. What decrypts ahead for
 * the node is waited for before anybody may free it. */
void kvfs_node_end(void *serve, struct kvfs_node *node)
{
    struct kvfs_serve *s = serve;
    struct kvfs_content *drop = NULL;
    pthread_mutex_lock(&node->lock);
    node->held++;
    node->busy--;
    /* Of a sealed mount, whose source may hang, nothing is waited for: it goes with the process. */
    if (!node->open_count && !node->busy && !node->pinned && !atomic_load(&s->sealed)) {
        drop = node->content;
        node->content = NULL;
    }
    pthread_mutex_unlock(&node->lock);
    if (drop) {
        kvfs_chunks_drop(s->chunks, node);
        kvfs_content_unref(drop);
    }
    kvfs_table_release(s->table, node);
}

static void close_node(struct kvfs_serve *s, struct kvfs_node *node)
{
    kvfs_resident_close(s, node);
    pthread_mutex_lock(&node->lock);
    node->open_count--;
    node->busy++;
    pthread_mutex_unlock(&node->lock);
    kvfs_node_end(s, node);
}

/* ---- handles ---- */

/* All that are open. After a lazy unmount the connection may end before the last release comes;
 * such a handle goes with the process. */
static struct {
    pthread_mutex_t lock;
    struct kvfs_handle *first;
} handles = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* With the kernel's reference. */
struct kvfs_handle *kvfs_handle_new(void)
{
    struct kvfs_handle *h = calloc(1, sizeof(*h));
    if (h) {
        atomic_init(&h->refs, 1);
        pthread_mutex_lock(&handles.lock);
        h->next = handles.first;
        h->link = &handles.first;
        if (h->next) {
            h->next->link = &h->next;
        }
        handles.first = h;
        pthread_mutex_unlock(&handles.lock);
    }
    return h;
}

static void unlink_handle(struct kvfs_handle *h)
{
    pthread_mutex_lock(&handles.lock);
    *h->link = h->next;
    if (h->next) {
        h->next->link = h->link;
    }
    pthread_mutex_unlock(&handles.lock);
}

static struct kvfs_handle *handle_of(const struct fuse_file_info *fi)
{
    /* NOLINTNEXTLINE(performance-no-int-to-ptr): libfuse keeps handles as integers */
    return (struct kvfs_handle *)(uintptr_t)fi->fh;
}

struct kvfs_handle *kvfs_handle_ref(struct kvfs_serve *s, const struct fuse_file_info *fi)
{
    struct kvfs_handle *h = handle_of(fi);
    kvfs_take_over(s);
    atomic_fetch_add_explicit(&h->refs, 1, memory_order_relaxed);
    return h;
}

void kvfs_handle_unref(struct kvfs_serve *s, struct kvfs_handle *h)
{
    if (atomic_fetch_sub_explicit(&h->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    struct kvfs_node *node = h->node;
    unlink_handle(h);
    kvfs_content_unref(h->content);
    ct_buf_free(&h->snapshot);
    kvfs_listing_free(h->listing);
    free(h);
    if (node) {
        close_node(s, node);
    }
}

/* ---- open ---- */

void kvfs_open_fail(struct kvfs_opening *o, const struct ct_err *err)
{
    struct kvfs_serve *s = o->s;
    kvfs_reply_error(s, o->req, o->node, err);
    if (o->handle) {
        kvfs_handle_unref(s, o->handle);
    }
    kvfs_node_end(s, o->node);
    free(o);
}

/* Side files stay as they are with cache=direct: programs map them as they like. */
static bool is_bulk(const struct kvfs_serve *s, const struct kvfs_content *c)
{
    return s->config.cache == KVFS_CACHE_DIRECT && kvfs_content_as_model(c);
}

void kvfs_open_answer(struct kvfs_opening *o, int32_t backing)
{
    struct kvfs_serve *s = o->s;
    struct kvfs_handle *h = o->handle;
    o->fi.fh = (uintptr_t)h;
    o->fi.keep_cache = 1; /* a node is one version: its pages stay true */
    o->fi.direct_io = is_bulk(s, h->content);
    o->fi.noflush = 1;
    kvfs_audit_reader(s, o->node, fuse_req_ctx(o->req), o->exe, NULL);
    kvfs_hand_over(s);
    if (backing ? kvfs_passthrough_reply(o->req, o->fi.fh, backing)
                : fuse_reply_open(o->req, &o->fi)) {
        kvfs_handle_unref(s, h); /* the opener is gone */
    }
    kvfs_node_end(s, o->node);
    free(o);
}

/* Takes the content over, unless NULL comes back. */
static struct kvfs_handle *file_handle(const struct kvfs_opening *o, struct kvfs_content *c)
{
    struct kvfs_handle *h = kvfs_handle_new();
    if (!h) {
        return NULL;
    }
    h->node = o->node;
    h->content = c;
    h->direct = (o->fi.flags & O_DIRECT) != 0 || is_bulk(o->s, c);
    pthread_mutex_lock(&o->node->lock);
    o->node->open_count++;
    pthread_mutex_unlock(&o->node->lock);
    return h;
}

static int check_lease(const struct kvfs_serve *s, const struct kvfs_content *c, struct ct_err *err)
{
    const struct ct_model *m = kvfs_content_as_model(c);
    return s->leases && m ? kvfs_leases_check(s->leases, ct_model_version(m), err) : 0;
}

static void do_open(void *arg)
{
    struct kvfs_opening *o = arg;
    struct kvfs_serve *s = o->s;
    struct ct_err err = CT_ERR_INIT;
    bool admitted = !s->config.admits || kvfs_guarded_admit(s->guarded, o->pid, o->exe, &err) == 0;
    struct kvfs_content *c = admitted ? content_of(s, o->node, o->uid, &err) : NULL;
    /* Meanwhile: its keys may be younger than the wiping. */
    if (c && (atomic_load(&s->sealed) ? kvfs_seal_why(s, &err) : check_lease(s, c, &err))) {
        kvfs_content_unref(c);
        c = NULL;
    }
    if (c && !(o->handle = file_handle(o, c))) {
        ct_err_set(&err, CT_NOMEM, "no memory to open a file");
        kvfs_content_unref(c);
    }
    if (!o->handle) {
        kvfs_open_fail(o, &err);
        return;
    }
    __atomic_fetch_add(&o->node->stats.opens, 1, __ATOMIC_RELAXED);
    if (s->config.update == KVFS_UPDATE_PIN) {
        kvfs_table_pin(s->table, o->node);
    }
    kvfs_resident_open(s, o);
}

static void open_status(struct kvfs_serve *s, fuse_req_t req, fuse_ino_t ino,
                        struct fuse_file_info *fi)
{
    struct ct_err err = CT_ERR_INIT;
    struct kvfs_handle *h = kvfs_handle_new();
    if (!h || kvfs_status_content(s, ino, &h->snapshot, &err)) {
        if (h) {
            kvfs_handle_unref(s, h);
        }
        fuse_reply_err(req, ENOMEM);
        return;
    }
    fi->fh = (uintptr_t)h;
    fi->direct_io = 1; /* its size is not known before */
    kvfs_hand_over(s);
    if (fuse_reply_open(req, fi)) {
        kvfs_handle_unref(s, h);
    }
}

void kvfs_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct kvfs_serve *s = fuse_req_userdata(req);
    struct ct_err err = CT_ERR_INIT;
    if ((fi->flags & O_ACCMODE) != O_RDONLY || fi->flags & O_TRUNC) {
        fuse_reply_err(req, EROFS);
        return;
    }
    if (kvfs_status_is(ino)) {
        open_status(s, req, ino, fi);
        return;
    }
    struct kvfs_node *node = kvfs_table_get(s->table, ino);
    if (!node || node->kind != KVFS_NODE_FILE) {
        fuse_reply_err(req, ESTALE);
        return;
    }
    if (atomic_load(&s->sealed)) {
        (void)kvfs_seal_why(s, &err);
        kvfs_reply_error(s, req, node, &err);
        return;
    }
    struct kvfs_opening *o = malloc(sizeof(*o));
    if (!o) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    *o = (struct kvfs_opening){.s = s,
                               .req = req,
                               .node = node,
                               .fi = *fi,
                               .uid = fuse_req_ctx(req)->uid,
                               .pid = fuse_req_ctx(req)->pid};
    begin(node);
    kvfs_chunks_run(s->chunks, do_open, o);
}

void kvfs_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    struct kvfs_serve *s = fuse_req_userdata(req);
    kvfs_take_over(s);
    kvfs_handle_unref(s, handle_of(fi));
    fuse_reply_err(req, 0);
}

int kvfs_try_open(struct kvfs_serve *s, const char *path, struct ct_err *err)
{
    struct kvfs_found f;
    struct kvfs_opened opened;
    if (kvfs_judge_path(s, path, &f, &opened, err)) {
        return -1;
    }
    struct kvfs_content *c = make_content(s, &f, &opened, path, s->config.uid, err);
    kvfs_found_release(&f);
    kvfs_opened_release(&opened);
    kvfs_content_unref(c);
    return c ? 0 : -1;
}
