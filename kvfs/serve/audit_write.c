#include <stdlib.h>
#include <string.h>

#include "format/base/log.h"
#include "kvfs/serve/audit_parts.h"

enum { FOLD_MS = 10000, SIGN_MS = 10000, POLL_MS = 1000, RETRY_MS = 1000 };

enum put { PUT_DONE, PUT_LATER, PUT_NEVER };

/* ---- what the supervisor has for us ---- */

static void take_note(struct kvfs_audit *a, char *note)
{
    size_t n = strspn(note, "abcdefghijklmnopqrstuvwxyz-");
    if (n && note[n] == ' ') {
        note[n] = '\0';
        kvfs_audit_event_everywhere(
            a->s, note,
            json_pack("{s:s,s:o}", "by", "supervisor", "detail", kvfs_audit_text(note + n + 1)));
    }
}

static enum put ask(struct kvfs_audit *a, const char *chain, const char *body)
{
    char note[KVFS_TEXT_MAX];
    struct ct_err err = CT_ERR_INIT;
    if (kvfs_source_audit(a->s, chain, body, note, &err) == 0) {
        take_note(a, note);
        return PUT_DONE;
    }
    if (err.code == CT_BUSY) {
        return PUT_LATER;
    }
    ct_log(CT_LOG_ERROR, "audit: nothing more is recorded: %s", err.msg);
    return PUT_NEVER;
}

/* ---- records ---- */

/* For the server. Without memory the lease's chain stays here. */
static void keep(struct kvfs_audit *a, struct kvfs_audit_own *own, const struct ct_buf *record)
{
    struct kvfs_audit_record *r = own->forked ? NULL : malloc(sizeof(*r) + record->len + 1);
    if (!r) {
        own->forked = true;
        return;
    }
    r->next = NULL;
    memcpy(r->text, record->data, record->len + 1);
    a->held += record->len;
    *(own->last ? &own->last->next : &own->first) = r;
    own->last = r;
}

/* The chain moves once the supervisor has moved its own. */
static enum put put(struct kvfs_audit *a, unsigned i, const char *body)
{
    ct_autobuf record = {0};
    struct kvfs_audit_own *own = &a->own[i];
    struct kvfs_audit_chain next = own->chain;
    if (kvfs_audit_extend(&next, body, &record, NULL)) {
        return PUT_LATER;
    }
    enum put r = ask(a, own->chain.id, body);
    pthread_mutex_lock(&a->lock);
    if (r == PUT_DONE) {
        own->chain.count = next.count;
        memcpy(own->chain.head, next.head, sizeof(next.head));
        own->fresh_since = own->fresh++ ? own->fresh_since : kvfs_lease_now();
        if (own->lease) {
            keep(a, own, &record);
        }
    }
    a->gone = a->gone || r == PUT_NEVER;
    pthread_mutex_unlock(&a->lock);
    return r;
}

/* An event of this thread's, which need not be queued. */
static enum put put_event(struct kvfs_audit *a, unsigned i, const char *event, json_t *details)
{
    ct_autobuf body = {0};
    if (kvfs_audit_body(event, details, &body, NULL)) {
        return PUT_LATER;
    }
    ct_buf_putc(&body, '\0');
    return body.failed ? PUT_LATER : put(a, i, (char *)body.data);
}

/* ---- signatures ---- */

static bool is_due(const struct kvfs_audit_own *own, int64_t now)
{
    return own->fresh && (own->urgent || own->fresh >= KVFS_AUDIT_SIGN_EVERY ||
                          now - own->fresh_since >= SIGN_MS);
}

static enum put sign(struct kvfs_audit *a, unsigned i)
{
    struct kvfs_audit_own *own = &a->own[i];
    const struct kvfs_audit_chain *c = &own->chain;
    kx_autojson payload = json_pack("{s:i,s:s,s:I,s:s}", "version", 1, "chain", c->id, "sequence",
                                    (json_int_t)c->count, "head", c->head);
    json_t *jws = payload ? kvfs_audit_sign(a, KVFS_AUDIT_TYP, payload, NULL) : NULL;
    if (!jws) {
        return PUT_LATER;
    }
    enum put r = put_event(a, i, "signature", json_pack("{s:o}", "signed", jws));
    if (r == PUT_DONE) {
        pthread_mutex_lock(&a->lock);
        own->fresh = 0;
        own->urgent = false;
        a->to_post = true;
        pthread_cond_broadcast(&a->changed);
        pthread_mutex_unlock(&a->lock);
    }
    return r;
}

/* What of the chains is due; with `all`, whatever is not signed. */
static enum put sign_due(struct kvfs_audit *a, bool all)
{
    const int64_t now = kvfs_lease_now();
    for (unsigned i = 0; i < KVFS_AUDIT_CHAINS; i++) {
        struct kvfs_audit_own *own = &a->own[i];
        if (all ? own->fresh > 0 : is_due(own, now)) {
            enum put r = sign(a, i);
            if (r != PUT_DONE) {
                return r;
            }
        }
    }
    return PUT_DONE;
}

/* ---- the queue ---- */

static enum put put_lost(struct kvfs_audit *a, unsigned i)
{
    pthread_mutex_lock(&a->lock);
    /* Not as the first record, which has to name the key. */
    const size_t lost = a->own[i].chain.count ? a->own[i].lost : 0;
    pthread_mutex_unlock(&a->lock);
    enum put r =
        lost ? put_event(a, i, "lost", json_pack("{s:I}", "events", (json_int_t)lost)) : PUT_DONE;
    if (lost && r == PUT_DONE) {
        pthread_mutex_lock(&a->lock);
        a->own[i].lost -= lost;
        pthread_mutex_unlock(&a->lock);
    }
    return r;
}

/* The first of the queue. It stays there until it has been put. */
static enum put put_first(struct kvfs_audit *a)
{
    pthread_mutex_lock(&a->lock);
    struct kvfs_audit_entry *e = a->first; /* only this thread takes any away */
    pthread_mutex_unlock(&a->lock);
    if (!e) {
        return PUT_DONE;
    }
    enum put r = put(a, e->chain, e->body);
    if (r == PUT_DONE) {
        struct kvfs_audit_own *own = &a->own[e->chain];
        pthread_mutex_lock(&a->lock);
        own->urgent = own->urgent || e->urgent;
        a->held -= strlen(e->body);
        a->first = e->next;
        a->last = a->first ? a->last : NULL;
        pthread_mutex_unlock(&a->lock);
        free(e);
    }
    return r;
}

static bool is_empty(struct kvfs_audit *a)
{
    pthread_mutex_lock(&a->lock);
    bool empty = !a->first;
    pthread_mutex_unlock(&a->lock);
    return empty;
}

/* One round. An urgent signature waits a little for what else is queued: one for all. */
static enum put turn(struct kvfs_audit *a, bool ending)
{
    enum put r = PUT_DONE;
    for (unsigned i = 0; r == PUT_DONE && i < KVFS_AUDIT_CHAINS; i++) {
        r = put_lost(a, i);
    }
    for (int n = 0; r == PUT_DONE && n < KVFS_AUDIT_SIGN_EVERY / 2 && !is_empty(a); n++) {
        r = put_first(a);
    }
    return r == PUT_DONE ? sign_due(a, ending && is_empty(a)) : r;
}

/* Without a supervisor there is nothing to do but wait for the end. */
static bool wait_for_stop(struct kvfs_audit *a)
{
    while (a->gone && !a->stop) {
        kvfs_audit_wait(a, POLL_MS);
    }
    return !a->gone;
}

void *kvfs_audit_write(void *audit)
{
    struct kvfs_audit *a = audit;
    int64_t asked = 0;
    for (bool ending = false, more = true; more;) {
        enum put r = turn(a, ending);
        const int64_t now = kvfs_lease_now();
        if (r == PUT_DONE && now - asked >= POLL_MS) {
            asked = now;
            r = ask(a, "", "");
        }
        pthread_mutex_lock(&a->lock);
        a->gone = a->gone || r == PUT_NEVER;
        kvfs_audit_unfold(a, now - FOLD_MS);
        if (!a->gone && !a->stop && (r == PUT_LATER || !a->first)) {
            kvfs_audit_wait(a, r == PUT_LATER ? RETRY_MS : POLL_MS);
        }
        more = wait_for_stop(a) && !(ending && (r == PUT_LATER || !a->first));
        ending = a->stop;
        pthread_mutex_unlock(&a->lock);
    }
    return NULL;
}
