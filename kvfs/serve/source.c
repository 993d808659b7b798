#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvfs/serve/serve.h"

/* One request at a time: a round trip costs some 20 µs, and replies carry no number. */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static struct kvfs_request request_of(enum kvfs_request_type type, const char *path,
                                      const char *text)
{
    struct kvfs_request q;
    memset(&q, 0, sizeof(q));
    q.type = type;
    q.size = sizeof(q);
    (void)snprintf(q.path, sizeof(q.path), "%s", path);
    (void)snprintf(q.text, sizeof(q.text), "%s", text);
    return q;
}

static int exchange(struct kvfs_serve *s, const struct kvfs_request *q, struct kvfs_reply *reply,
                    int *fd, struct ct_err *err)
{
    *fd = -1;
    pthread_mutex_lock(&turn);
    int r = kvfs_control_send(s->control, q, sizeof(*q), -1, false, err);
    if (r == 0) {
        r = kvfs_control_recv(s->control, reply, sizeof(*reply), fd, err);
        r = r == 1 ? 0 : r == 0 ? ct_err_set(err, CT_IO, "the supervisor is gone") : -1;
    }
    pthread_mutex_unlock(&turn);
    if (r) {
        return -1;
    }
    reply->target[sizeof(reply->target) - 1] = '\0';
    reply->text[sizeof(reply->text) - 1] = '\0';
    return 0;
}

/* Where no descriptor comes with the answer. */
static int exchange_words(struct kvfs_serve *s, const struct kvfs_request *q,
                          struct kvfs_reply *reply, struct ct_err *err)
{
    int fd = -1;
    int r = exchange(s, q, reply, &fd, err);
    if (fd >= 0) {
        close(fd);
    }
    return r;
}

static int ask(struct kvfs_serve *s, enum kvfs_request_type type, const char *path,
               struct kvfs_reply *reply, int *fd, struct ct_err *err)
{
    *fd = -1;
    if (strlen(path) >= PATH_MAX) {
        ct_err_set(err, CT_NOTFOUND, "the path is too long");
        return -1;
    }
    struct kvfs_request q = request_of(type, path, "");
    return exchange(s, &q, reply, fd, err);
}

static int refusal(const struct kvfs_reply *reply, struct ct_err *err)
{
    switch (reply->error) {
    case ENOENT:
    case ENOTDIR:
    case ENAMETOOLONG: /* such as the other name of x.safetensors, which is two bytes longer */
        return ct_err_set(err, CT_NOTFOUND, "no such file");
    case EXDEV:
        return ct_err_set(err, CT_LEAVES, "%s", reply->text);
    case ELOOP:
        return ct_err_set(err, CT_LEAVES,
                          "too many links, or one that leads nowhere in the source");
    default:
        return ct_err_sys(err, reply->error, "open");
    }
}

int kvfs_source_open(struct kvfs_serve *s, const char *path, struct kvfs_opened *out,
                     struct ct_err *err)
{
    struct kvfs_reply reply;
    *out = (struct kvfs_opened){.fd = -1};
    if (ask(s, KVFS_REQ_OPEN, path, &reply, &out->fd, err)) {
        return -1;
    }
    out->st = reply.st;
    out->is_link = reply.is_link;
    if (reply.is_link && !(out->target = strdup(reply.target))) {
        kvfs_opened_release(out);
        return ct_err_set(err, CT_NOMEM, "no memory for a link");
    }
    if (reply.error) {
        if (out->fd >= 0) {
            close(out->fd);
            out->fd = -1;
        }
        return refusal(&reply, err);
    }
    return 0;
}

void kvfs_opened_release(struct kvfs_opened *o)
{
    if (o->fd >= 0) {
        close(o->fd);
    }
    free(o->target);
    *o = (struct kvfs_opened){.fd = -1};
}

int kvfs_source_open_key(void *serve, const char *path, struct ct_err *err)
{
    struct kvfs_reply reply;
    int fd = -1;
    if (ask(serve, KVFS_REQ_OPEN_KEY, path, &reply, &fd, err)) {
        return -1;
    }
    if (reply.error) {
        if (fd >= 0) {
            close(fd);
        }
        return refusal(&reply, err);
    }
    return fd >= 0 ? fd : ct_err_set(err, CT_NOTFOUND, "no such key file");
}

int kvfs_source_resident(struct kvfs_serve *s, uint64_t bytes, uint32_t *number, int32_t *backing,
                         struct ct_err *err)
{
    struct kvfs_reply reply;
    int fd = -1;
    struct kvfs_request q = request_of(KVFS_REQ_RESIDENT, "", "");
    q.bytes = bytes;
    if (exchange(s, &q, &reply, &fd, err)) {
        return -1;
    }
    if (reply.error || fd < 0) {
        if (fd >= 0) {
            close(fd);
        }
        return ct_err_set(err, CT_NOMEM, "%s", reply.text);
    }
    *number = reply.number;
    *backing = reply.backing;
    return fd;
}

int kvfs_source_resident_more(struct kvfs_serve *s, struct ct_err *err)
{
    struct kvfs_reply reply;
    struct kvfs_request q = request_of(KVFS_REQ_RESIDENT_MORE, "", "");
    if (exchange_words(s, &q, &reply, err)) {
        return -1;
    }
    return reply.error ? ct_err_set(err, CT_NOMEM, "%s", reply.text) : 0;
}

int kvfs_source_resident_end(struct kvfs_serve *s, uint32_t number, struct ct_err *err)
{
    struct kvfs_reply reply;
    struct kvfs_request q = request_of(KVFS_REQ_RESIDENT_END, "", "");
    q.number = number;
    if (exchange_words(s, &q, &reply, err)) {
        return -1;
    }
    return reply.error ? ct_err_set(err, reply.error == EBUSY ? CT_BUSY : CT_IO, "%s", reply.text)
                       : 0;
}

int kvfs_source_courier(struct kvfs_serve *s, struct ct_err *err)
{
    struct kvfs_reply reply;
    int fd = -1;
    struct kvfs_request q = request_of(KVFS_REQ_COURIER, "", "");
    if (exchange(s, &q, &reply, &fd, err)) {
        return -1;
    }
    if (reply.error && fd >= 0) {
        close(fd);
        fd = -1;
    }
    return fd >= 0 ? fd : ct_err_set(err, CT_IO, "%s", reply.text);
}

int kvfs_source_seen(struct kvfs_serve *s, const char *model, int64_t generation, int64_t *highest,
                     struct ct_err *err)
{
    struct kvfs_reply reply;
    struct kvfs_request q = request_of(KVFS_REQ_SEEN, "", model);
    q.bytes = (uint64_t)generation;
    if (exchange_words(s, &q, &reply, err)) {
        return -1;
    }
    *highest = reply.value;
    return reply.error ? ct_err_set(err, CT_IO, "%s", reply.text) : 0;
}

int kvfs_source_audit(struct kvfs_serve *s, const char *chain, const char *body,
                      char note[static KVFS_TEXT_MAX], struct ct_err *err)
{
    struct kvfs_reply reply;
    struct kvfs_request q = request_of(KVFS_REQ_AUDIT, body, chain);
    if (exchange_words(s, &q, &reply, err)) {
        return -1;
    }
    memcpy(note, reply.text, KVFS_TEXT_MAX);
    return reply.error ? ct_err_set(err, reply.error == EBUSY ? CT_BUSY : CT_IO, "%s", reply.text)
                       : 0;
}

static int tell(struct kvfs_serve *s, enum kvfs_request_type type, const char *text)
{
    struct kvfs_request q = request_of(type, "", text);
    return kvfs_control_send(s->control, &q, sizeof(q), -1, false, NULL); /* out of turn */
}

int kvfs_source_sealed(struct kvfs_serve *s, const char *text)
{
    return tell(s, KVFS_REQ_SEALED, text);
}

int kvfs_source_ready(struct kvfs_serve *s, const char *text)
{
    return tell(s, KVFS_REQ_READY, text);
}

int kvfs_source_failed(struct kvfs_serve *s, const char *text)
{
    return tell(s, KVFS_REQ_FAILED, text);
}
