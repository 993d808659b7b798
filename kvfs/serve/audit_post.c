#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "format/base/log.h"
#include "kvfs/serve/audit_parts.h"

/* Records in JSON in base64, within what the server takes of a request. */
enum { BATCH_BYTES = 1 << 20, CALL_SECONDS = 30, END_SECONDS = 2 };
enum { IDLE_MS = 60000, PAUSE_MS = 2000, PAUSE_MAX_MS = 30000 };

json_t *kvfs_audit_sign(struct kvfs_audit *a, const char *typ, const json_t *payload,
                        struct ct_err *err)
{
    pthread_mutex_lock(&a->key_lock);
    kx_autojson pair = kc_key_pair(&a->key, err);
    json_t *jws = pair ? kx_jws_sign(pair, typ, payload, err) : NULL;
    json_decref(pair);
    pair = NULL;
    pthread_mutex_unlock(&a->key_lock);
    return jws;
}

/* With the lock held: the next records for the server, NULL for none. */
static json_t *next_records(const struct kvfs_audit_own *own)
{
    size_t bytes = 0;
    json_t *all = own->first && !own->forked ? json_array() : NULL;
    for (const struct kvfs_audit_record *r = own->first;
         all && r && json_array_size(all) < KC_AUDIT_RECORDS && bytes < BATCH_BYTES; r = r->next) {
        bytes += strlen(r->text);
        json_array_append_new(all, json_string(r->text));
    }
    return all;
}

static void drop_first(struct kvfs_audit *a, struct kvfs_audit_own *own)
{
    struct kvfs_audit_record *r = own->first;
    a->held -= strlen(r->text);
    own->first = r->next;
    own->last = own->first ? own->last : NULL;
    free(r);
}

/* With the lock held: the server's head has to be one of ours. It may be an old one, that somebody
 * in between sends again: that is no news. */
static void settle(struct kvfs_audit *a, struct kvfs_audit_own *own, const struct kc_audit *has)
{
    struct kc_audit at = own->sent;
    const struct kvfs_audit_record *r = own->first;
    for (; r && at.count < has->count; r = r->next) {
        if (kx_audit_next(at.head, at.count + 1, r->text, NULL)) {
            return;
        }
        at.count++;
    }
    own->forked = own->forked || has->count > at.count ||
                  (has->count == at.count && strcmp(has->head, at.head) != 0);
    if (own->forked) {
        ct_log(CT_LOG_ERROR,
               "%s: the key server has other audit records of lease %s than this mount",
               own->lease->model, has->lease);
    }
    while (!own->forked && own->first && own->sent.count < has->count) {
        drop_first(a, own);
        own->sent.count++;
    }
    while (own->forked && own->first) {
        drop_first(a, own);
    }
    if (!own->forked && has->count == at.count) {
        memcpy(own->sent.head, at.head, sizeof(at.head));
    }
}

/* One request. 1 when there may be more to send, 0 when there is not, -1 when it failed. */
static int post(struct kvfs_audit *a, struct kvfs_audit_own *own, struct kvfs_way *w,
                unsigned seconds, struct ct_err *err)
{
    ct_autobuf answer = {0};
    struct kc_request q = {0};
    unsigned status = 0;
    enum kc_again again = KC_LATER;
    pthread_mutex_lock(&a->lock);
    struct kc_audit has = own->sent;
    json_t *records = next_records(own);
    pthread_mutex_unlock(&a->lock);
    if (!records) {
        return 0;
    }
    pthread_mutex_lock(&a->key_lock);
    int r = kc_audit_request(&has, &a->key, records, &q, err);
    pthread_mutex_unlock(&a->key_lock);
    if (r == 0) {
        w->lease = own->lease;
        kvfs_way_carry(w, &q, seconds, &status, &answer);
        r = kc_audit_take(&has, kc_exchange_identity(own->lease->exchange), status, answer.data,
                          answer.len, &again, err);
    }
    ct_buf_free(&q.body);
    if (r) {
        return -1;
    }
    pthread_mutex_lock(&a->lock);
    const int64_t before = own->sent.count;
    settle(a, own, &has);
    const bool moved = own->sent.count > before || own->forked;
    pthread_mutex_unlock(&a->lock);
    return moved ? 1 : ct_err_set(err, CT_REJECTED, "the head in the answer is an old one");
}

static int post_all(struct kvfs_audit *a, struct kvfs_way *w, unsigned seconds)
{
    int bad = 0;
    for (unsigned i = 1; i < KVFS_AUDIT_CHAINS; i++) {
        struct ct_err err = CT_ERR_INIT;
        int r = 1;
        while (r == 1) {
            r = post(a, &a->own[i], w, seconds, &err);
        }
        if (r) {
            bad = -1;
            ct_log(CT_LOG_WARN, "%s: audit records are not sent: %s", a->own[i].lease->model,
                   err.msg);
        }
        if (r && err.code == CT_IO) {
            break; /* nobody answers: the next would wait as long */
        }
    }
    return bad;
}

void *kvfs_audit_post(void *audit)
{
    struct kvfs_audit *a = audit;
    struct kvfs_way w = {.sock = -1, .stopping = a->s->ended};
    int64_t pause = 0;
    for (bool done = false; !done;) {
        pthread_mutex_lock(&a->lock);
        const int64_t until = kvfs_lease_now() + (pause ? pause : IDLE_MS);
        while (!a->done && (pause || !a->to_post) && kvfs_lease_now() < until) {
            kvfs_audit_wait(a, until - kvfs_lease_now());
        }
        a->to_post = false;
        done = a->done;
        pthread_mutex_unlock(&a->lock);
        w.stopping = done ? -1 : w.stopping; /* `ended` can be read by now */
        if (post_all(a, &w, done ? END_SECONDS : CALL_SECONDS) == 0) {
            pause = 0;
        } else {
            pause = !pause ? PAUSE_MS : 2 * pause < PAUSE_MAX_MS ? 2 * pause : PAUSE_MAX_MS;
        }
    }
    kvfs_way_close(&w);
    return NULL;
}
