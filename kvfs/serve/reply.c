#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "format/base/log.h"
#include "kvfs/serve/audit.h"

enum { RECENT = 64, LINES_PER_SECOND = 10 };

struct failure {
    time_t when;
    char path[256];
    int err;
    unsigned pid, uid;
    char message[256];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct failure recent[RECENT];
static unsigned recent_first, recent_count;
static struct ct_ratelimit rate;

void kvfs_reply_data(struct kvfs_serve *s, fuse_req_t req, const struct kvfs_content *content,
                     const struct iovec *iov, int count)
{
    struct ct_err why = CT_ERR_INIT;
    if (atomic_load(&s->sealed) ? kvfs_seal_why(s, &why) : kvfs_content_revoked(content, &why)) {
        fuse_reply_err(req, ct_err_errno(&why));
        return;
    }
    kvfs_hand_over(s);
    fuse_reply_iov(req, iov, count);
}

void kvfs_reply_store(struct kvfs_serve *s, const struct kvfs_node *node,
                      const struct kvfs_content *content, uint64_t offset, uint8_t *data, size_t n)
{
    struct fuse_bufvec v = FUSE_BUFVEC_INIT(n);
    v.buf[0].mem = data;
    if (!atomic_load(&s->sealed) && kvfs_content_revoked(content, NULL) == 0) {
        (void)fuse_lowlevel_notify_store(s->session, node->id, (off_t)offset, &v, 0);
    }
}

static void remember(const struct fuse_ctx *ctx, const char *path, int why, const char *message)
{
    pthread_mutex_lock(&lock);
    struct failure *f = &recent[(recent_first + recent_count) % RECENT];
    if (recent_count == RECENT) {
        f = &recent[recent_first];
        recent_first = (recent_first + 1) % RECENT;
    } else {
        recent_count++;
    }
    f->when = time(NULL);
    f->err = why;
    f->pid = ctx ? (unsigned)ctx->pid : 0;
    f->uid = ctx ? ctx->uid : 0;
    ct_utf8_copy(f->path, sizeof(f->path), path);
    ct_utf8_copy(f->message, sizeof(f->message), message);
    pthread_mutex_unlock(&lock);
}

void kvfs_node_name(struct kvfs_serve *s, const struct kvfs_node *node, char *out, size_t cap)
{
    size_t n = 0;
    char **paths = node && s->table ? kvfs_table_paths(s->table, node, &n) : NULL;
    ct_utf8_copy(out, cap, paths && n ? paths[0] : "");
    if (paths) {
        kvfs_paths_free(paths, n);
    }
}

void kvfs_reply_error(struct kvfs_serve *s, fuse_req_t req, struct kvfs_node *node,
                      const struct ct_err *err)
{
    char path[256];
    unsigned missed = 0;
    int why = ct_err_errno(err);
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    kvfs_node_name(s, node, path, sizeof(path));
    if (node) {
        __atomic_fetch_add(&node->stats.errors, 1, __ATOMIC_RELAXED);
        pthread_mutex_lock(&node->lock);
        node->last_error = *err;
        pthread_mutex_unlock(&node->lock);
    }
    remember(ctx, path, why, err->msg);
    kvfs_audit_reader(s, node, ctx, NULL, err);
    if (ct_ratelimit_take(&rate, LINES_PER_SECOND, &missed)) {
        if (missed) {
            ct_log(CT_LOG_WARN, "%u more failures were not logged", missed);
        }
        ct_log(CT_LOG_WARN, "%s: %s: %s (pid %u, uid %u)", path, ct_errno_name(why), err->msg,
               ctx ? (unsigned)ctx->pid : 0, ctx ? ctx->uid : 0);
    }
    kvfs_hand_over(s);
    fuse_reply_err(req, why);
}

json_t *kvfs_reply_recent(void)
{
    json_t *all = json_array();
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < recent_count; i++) {
        const struct failure *f = &recent[(recent_first + i) % RECENT];
        char when[32] = "";
        struct tm utc;
        if (gmtime_r(&f->when, &utc)) {
            (void)strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &utc);
        }
        json_t *path = json_string(f->path);
        json_t *message = json_string(f->message);
        json_array_append_new(all, json_pack("{s:s,s:o,s:s,s:i,s:i,s:i,s:o}", "time", when, "path",
                                             path ? path : json_string("(not UTF-8)"), "error",
                                             ct_errno_name(f->err), "errno", f->err, "pid",
                                             (int)f->pid, "uid", (int)f->uid, "message",
                                             message ? message : json_string("(not UTF-8)")));
    }
    pthread_mutex_unlock(&lock);
    return all;
}

/* ---- the log: standard error, and the latest lines for `.kvfs/log` ---- */

enum { RING = 65536 };
static char ring[RING];
static uint64_t ring_end;

void kvfs_log_sink(void *ctx, enum ct_level level, const char *line)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    char text[1200];
    char when[32] = "";
    struct tm utc;
    time_t now = time(NULL);
    (void)ctx;
    ct_log_to_stderr(level, line);
    if (gmtime_r(&now, &utc)) {
        (void)strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &utc);
    }
    int n = snprintf(text, sizeof(text), "%s %s %s\n", when, names[level], line);
    n = n >= (int)sizeof(text) ? (int)sizeof(text) - 1 : n;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < n; i++) {
        ring[ring_end++ % RING] = text[i];
    }
    pthread_mutex_unlock(&lock);
}

void kvfs_log_recent(struct ct_buf *out)
{
    pthread_mutex_lock(&lock);
    uint64_t from = ring_end > RING ? ring_end - RING : 0;
    /* The oldest line may have lost its beginning. */
    while (from && from < ring_end && ring[(from - 1) % RING] != '\n') {
        from++;
    }
    for (; from < ring_end; from++) {
        ct_buf_putc(out, ring[from % RING]);
    }
    pthread_mutex_unlock(&lock);
}
