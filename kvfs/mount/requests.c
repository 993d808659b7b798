#include "kvfs/mount/requests.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "format/protocol/digest.h"
#include "kvfs/mount/openat.h"
#include "kvfs/mount/seen.h"

bool kvfs_request_is_sound(const struct kvfs_request *q)
{
    char owner[65];
    char name[65];
    return q->size == sizeof(*q) && memchr(q->path, '\0', sizeof(q->path)) &&
           memchr(q->text, '\0', sizeof(q->text)) &&
           (q->type != KVFS_REQ_OPEN || kvfs_path_is_plain(q->path)) &&
           (q->type != KVFS_REQ_SEEN ||
            (kx_split_model(q->text, owner, name) && q->bytes <= INT64_MAX));
}

/* ---- each: 0 with what the reply has to say, or -1 ---- */

static int open_key(struct kvfs_requests *r, const struct kvfs_request *q, int *fd,
                    struct ct_err *err)
{
    if (r->job->key_dir_fd < 0) {
        return ct_err_set(err, CT_NOKEY,
                          "the key is in %.400s, and there is no --key-dir to look in", q->path);
    }
    *fd = kvfs_key_dir_open(r->job->key_dir_fd, r->job->options->keys.key_dir, q->path, err);
    if (*fd >= 0 && (fstat(*fd, &r->reply.st) || !S_ISREG(r->reply.st.st_mode))) {
        close(*fd);
        *fd = -1;
        return ct_err_set(err, CT_NOKEY, "the key file %.400s is no regular file", q->path);
    }
    return *fd < 0 ? -1 : 0;
}

/* *kept: the descriptor that goes along stays ours. */
static int serve_resident(struct kvfs_requests *r, const struct kvfs_request *q, int *kept,
                          struct ct_err *err)
{
    if (!r->tmpfs) {
        return ct_err_set(err, CT_UNSUPPORTED, "no resident mode here");
    }
    switch (q->type) {
    case KVFS_REQ_RESIDENT:
        return kvfs_tmpfs_add(r->tmpfs, q->bytes, &r->reply.number, &r->reply.backing, kept, err);
    case KVFS_REQ_RESIDENT_MORE:
        return kvfs_tmpfs_more(r->tmpfs, err);
    default:
        return kvfs_tmpfs_remove(r->tmpfs, q->number, err);
    }
}

static int start_courier(struct kvfs_requests *r, int *fd, struct ct_err *err)
{
    if (!*r->job->options->config.server) {
        return ct_err_set(err, CT_USAGE, "there is no key server");
    }
    *fd = kvfs_courier_start(&r->couriers, err);
    return *fd < 0 ? -1 : 0;
}

static int look_up_seen(struct kvfs_requests *r, const struct kvfs_request *q, struct ct_err *err)
{
    return r->job->state_fd < 0 ? 0
                                : kvfs_seen(r->job->state_fd, r->job->options->config.server_key,
                                            q->text, (int64_t)q->bytes, &r->reply.value, err);
}

static int record(struct kvfs_requests *r, const struct kvfs_request *q, struct ct_err *err)
{
    return r->job->audit ? kvfs_audit_file_take(r->job->audit, q->text, q->path, r->reply.text,
                                                sizeof(r->reply.text), err)
                         : ct_err_set(err, CT_USAGE, "nobody wants an audit");
}

int kvfs_request_answer(struct kvfs_requests *r, const struct kvfs_request *q, int control,
                        struct ct_err *err)
{
    struct ct_err why = CT_ERR_INIT;
    int rc = 0;
    int fd = -1;
    int kept = -1;
    memset(&r->reply, 0, sizeof(r->reply));
    switch (q->type) {
    case KVFS_REQ_OPEN:
        kvfs_open_source(r->job->source_fd, r->job->options->config.source, q->path, &r->reply,
                         &fd);
        break;
    case KVFS_REQ_OPEN_KEY:
        rc = open_key(r, q, &fd, &why);
        break;
    case KVFS_REQ_RESIDENT:
    case KVFS_REQ_RESIDENT_MORE:
    case KVFS_REQ_RESIDENT_END:
        rc = serve_resident(r, q, &kept, &why);
        break;
    case KVFS_REQ_COURIER:
        rc = start_courier(r, &fd, &why);
        break;
    case KVFS_REQ_SEEN:
        rc = look_up_seen(r, q, &why);
        break;
    case KVFS_REQ_AUDIT:
        rc = record(r, q, &why);
        break;
    default:
        return ct_err_set(err, CT_MALFORMED, "the worker asks for something unknown");
    }
    if (rc) {
        r->reply.error = why.sys ? why.sys : ct_err_errno(&why);
        (void)snprintf(r->reply.text, sizeof(r->reply.text), "%s", why.msg);
    }
    rc = kvfs_control_send(control, &r->reply, sizeof(r->reply), fd >= 0 ? fd : kept, true, err);
    if (fd >= 0) {
        close(fd);
    }
    return rc;
}
