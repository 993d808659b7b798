#include "kvfs/serve/audit.h"

#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "format/base/clock.h"
#include "format/base/secret.h"
#include "kvfs/serve/audit_parts.h"

enum { PER_SECOND = 1000 };

/* ---- the queue ---- */

void kvfs_audit_wait(struct kvfs_audit *a, int64_t ms)
{
    struct timespec ts = ct_after_ms(ms);
    (void)pthread_cond_timedwait(&a->changed, &a->lock, &ts);
}

void kvfs_audit_queue(struct kvfs_audit *a, unsigned chain, const char *event, json_t *details,
                      bool urgent)
{
    ct_autobuf body = {0};
    struct kvfs_audit_entry *e = NULL;
    int r = kvfs_audit_body(event, details, &body, NULL);
    ct_buf_putc(&body, '\0');
    body.len -= body.failed ? 0 : 1;
    if (r == 0 && !body.failed && kvfs_audit_body_is_sound((char *)body.data) &&
        a->held + body.len <= KVFS_AUDIT_HELD) {
        e = malloc(sizeof(*e) + body.len + 1);
    }
    if (!e || a->gone) {
        free(e);
        a->own[chain].lost++;
        return;
    }
    *e = (struct kvfs_audit_entry){.chain = chain, .urgent = urgent};
    memcpy(e->body, body.data, body.len + 1);
    a->held += body.len;
    *(a->last ? &a->last->next : &a->first) = e;
    a->last = e;
    pthread_cond_broadcast(&a->changed);
}

/* ---- folding ---- */

static void end_fold(struct kvfs_audit *a, struct kvfs_audit_fold *f)
{
    if (f->more) {
        json_object_set_new(f->details, "repeated", json_integer(f->more));
        kvfs_audit_queue(a, f->chain, f->event, f->details, false);
    } else {
        json_decref(f->details);
    }
    f->details = NULL;
}

void kvfs_audit_unfold(struct kvfs_audit *a, int64_t until)
{
    for (unsigned i = 0; i < KVFS_AUDIT_FOLDS; i++) {
        if (a->folds[i].details && a->folds[i].since < until) {
            end_fold(a, &a->folds[i]);
        }
    }
}

/* `event` is a literal. */
static void fold(struct kvfs_audit *a, unsigned chain, const char *event, json_t *details,
                 struct ct_ratelimit *rate)
{
    unsigned missed = 0;
    struct kvfs_audit_fold *place = &a->folds[0];
    for (unsigned i = 0; i < KVFS_AUDIT_FOLDS; i++) {
        struct kvfs_audit_fold *f = &a->folds[i];
        if (f->details && f->chain == chain && strcmp(f->event, event) == 0 &&
            json_equal(f->details, details)) {
            f->more++;
            json_decref(details);
            return;
        }
        place = !place->details || (f->details && f->since >= place->since) ? place : f;
    }
    if (rate && !ct_ratelimit_take(rate, PER_SECOND, &missed)) {
        a->own[chain].lost++;
        json_decref(details);
        return;
    }
    if (place->details) {
        end_fold(a, place);
    }
    *place = (struct kvfs_audit_fold){
        .details = details, .event = event, .chain = chain, .since = kvfs_lease_now()};
    kvfs_audit_queue(a, chain, event, json_deep_copy(details), false);
}

/* ---- what happens ---- */

static unsigned chain_of(const struct kvfs_audit *a, const struct kvfs_lease *l)
{
    unsigned i = l ? 1 + (unsigned)(l - a->s->leases->items) : 0;
    return a->own[i].begun ? i : 0;
}

void kvfs_audit_event(struct kvfs_serve *s, const struct kvfs_lease *l, const char *event,
                      json_t *details)
{
    struct kvfs_audit *a = s->audit;
    if (!a) {
        json_decref(details);
        return;
    }
    pthread_mutex_lock(&a->lock);
    kvfs_audit_queue(a, chain_of(a, l), event, details, true);
    pthread_mutex_unlock(&a->lock);
}

void kvfs_audit_event_everywhere(struct kvfs_serve *s, const char *event, json_t *details)
{
    struct kvfs_audit *a = s->audit;
    for (unsigned i = 0; a && i < KVFS_AUDIT_CHAINS; i++) {
        pthread_mutex_lock(&a->lock);
        if (a->own[i].begun) {
            kvfs_audit_queue(a, i, event, details ? json_deep_copy(details) : NULL, true);
        }
        pthread_mutex_unlock(&a->lock);
    }
    json_decref(details);
}

json_t *kvfs_audit_why(const struct ct_err *why)
{
    return json_pack("{s:s,s:o}", "code", ct_errno_name(ct_err_errno(why)), "detail",
                     kvfs_audit_text(why->msg));
}

void kvfs_audit_failure(struct kvfs_serve *s, const struct kvfs_lease *l, const char *event,
                        const struct ct_err *why)
{
    struct kvfs_audit *a = s->audit;
    if (a) {
        json_t *details = kvfs_audit_why(why);
        json_object_set_new(details, "model", json_string(l->model));
        pthread_mutex_lock(&a->lock);
        fold(a, chain_of(a, l), event, details, NULL);
        pthread_mutex_unlock(&a->lock);
    }
}

void kvfs_audit_reader(struct kvfs_serve *s, const struct kvfs_node *node,
                       const struct fuse_ctx *reader, const char *exe, const struct ct_err *why)
{
    char name[KVFS_AUDIT_TEXT_MAX];
    struct kvfs_audit *a = s->audit;
    if (!a) {
        return;
    }
    kvfs_node_name(s, node, name, sizeof(name));
    json_t *details = why ? kvfs_audit_why(why) : json_object();
    json_object_set_new(details, "file", kvfs_audit_text(name));
    if (reader) {
        json_object_set_new(details, "pid", json_integer(reader->pid));
        json_object_set_new(details, "uid", json_integer(reader->uid));
    }
    if (exe && *exe) {
        json_object_set_new(details, "exe", kvfs_audit_text(exe));
    }
    const struct kvfs_lease *l =
        s->leases && node ? kvfs_leases_of(s->leases, &node->version) : NULL;
    pthread_mutex_lock(&a->lock);
    fold(a, chain_of(a, l), why ? "refusal" : "open", details, why ? &a->refusals : &a->opens);
    pthread_mutex_unlock(&a->lock);
}

void kvfs_audit_release(struct kvfs_lease *l)
{
    struct kvfs_audit *a = l->s->audit;
    if (!a) {
        return;
    }
    const struct kc_lease *held = kc_lease(l->exchange);
    const unsigned i = 1 + (unsigned)(l - l->s->leases->items);
    struct kvfs_audit_own *own = &a->own[i];
    json_t *first =
        json_pack("{s:s,s:s,s:s,s:I,s:s,s:s,s:s,s:I,s:o}", "lease", held->id, "mount",
                  a->own[0].chain.id, "model", l->model, "generation", (json_int_t)held->generation,
                  "ticket_sha256", kc_ticket_sha256(l->exchange), "measurement",
                  l->s->leases->runtime.measurement, "assurance", held->assurance, "seconds",
                  (json_int_t)held->seconds, "audit_key", json_deep_copy(a->key.public));
    json_t *seen = json_pack("{s:s,s:s,s:I}", "lease", held->id, "model", l->model, "generation",
                             (json_int_t)held->generation);
    pthread_mutex_lock(&a->lock);
    if (own->begun || kvfs_audit_start(&own->chain, held->id, NULL)) {
        a->own[0].lost++; /* a lease is acquired once */
        json_decref(first);
        json_decref(seen);
    } else {
        own->begun = true;
        own->lease = l;
        memcpy(own->sent.lease, held->id, sizeof(own->sent.lease));
        memcpy(own->sent.head, own->chain.head, sizeof(own->sent.head));
        kvfs_audit_queue(a, i, "release", first, true);
        kvfs_audit_queue(a, 0, "release", seen, true);
    }
    pthread_mutex_unlock(&a->lock);
}

/* ---- life ---- */

/* The runtime's key, of which the server knows; with local keys one of its own. */
static int take_key(struct kvfs_audit *a, struct ct_err *err)
{
    const struct kc_key *of = a->s->leases ? &a->s->leases->runtime.keys[KC_AUDIT] : NULL;
    if (!of) {
        int r = kc_key_make(&a->key, err);
        if (r == 0) {
            ct_secret_keep(a->key.d);
        }
        return r;
    }
    a->key = *of;
    a->key.public = json_deep_copy(of->public);
    return a->key.public ? 0 : ct_err_set(err, CT_NOMEM, "no memory for the audit");
}

static int begin_chain(struct kvfs_audit *a, struct ct_err *err)
{
    uint8_t random[KVFS_AUDIT_ID / 2];
    char id[KVFS_AUDIT_ID + 1];
    const struct kvfs_config *c = &a->s->config;
    if (RAND_bytes(random, sizeof(random)) != 1) {
        return ct_err_set(err, CT_IO, "no random numbers");
    }
    ct_hex(id, random, sizeof(random));
    if (kvfs_audit_start(&a->own[0].chain, id, err)) {
        return -1;
    }
    a->own[0].begun = true;
    json_t *first = json_pack("{s:s,s:o,s:o,s:o,s:o}", "kvfs", KVFS_VERSION, "mountpoint",
                              kvfs_audit_text(c->mountpoint), "source", kvfs_audit_text(c->source),
                              "server", c->server[0] ? kvfs_audit_text(c->server) : json_null(),
                              "audit_key", json_deep_copy(a->key.public));
    pthread_mutex_lock(&a->lock);
    kvfs_audit_queue(a, 0, "mount", first, true);
    pthread_mutex_unlock(&a->lock);
    return 0;
}

int kvfs_audit_begin(struct kvfs_serve *s, struct ct_err *err)
{
    if (!s->config.audit) {
        return 0;
    }
    pthread_condattr_t monotonic;
    struct kvfs_audit *a = calloc(1, sizeof(*a));
    if (!a) {
        return ct_err_set(err, CT_NOMEM, "no memory for the audit");
    }
    s->audit = a;
    a->s = s;
    pthread_mutex_init(&a->lock, NULL);
    pthread_mutex_init(&a->key_lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&a->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return take_key(a, err) || begin_chain(a, err) ? -1 : 0;
}

int kvfs_audit_run(struct kvfs_serve *s, struct ct_err *err)
{
    struct kvfs_audit *a = s->audit;
    if (!a) {
        return 0;
    }
    a->writing = pthread_create(&a->writer, NULL, kvfs_audit_write, a) == 0;
    a->posting =
        a->writing && s->leases && pthread_create(&a->poster, NULL, kvfs_audit_post, a) == 0;
    return a->writing && (a->posting || !s->leases)
               ? 0
               : ct_err_set(err, CT_NOMEM, "no thread for the audit");
}

void kvfs_audit_stop(struct kvfs_serve *s)
{
    struct kvfs_audit *a = s->audit;
    if (!a) {
        return;
    }
    pthread_mutex_lock(&a->lock);
    kvfs_audit_unfold(a, INT64_MAX);
    pthread_mutex_unlock(&a->lock);
    kvfs_audit_event_everywhere(s, "end", NULL);
    pthread_mutex_lock(&a->lock);
    a->stop = true;
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->lock);
    if (a->writing) {
        (void)pthread_join(a->writer, NULL);
        a->writing = false;
    }
    pthread_mutex_lock(&a->lock);
    a->done = a->gone = true;
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->lock);
    if (a->posting) {
        (void)pthread_join(a->poster, NULL);
        a->posting = false;
    }
}

void kvfs_audit_free(struct kvfs_serve *s)
{
    struct kvfs_audit *a = s->audit;
    if (!a) {
        return;
    }
    s->audit = NULL;
    for (struct kvfs_audit_entry *e = a->first; e;) {
        struct kvfs_audit_entry *next = e->next;
        free(e);
        e = next;
    }
    for (unsigned i = 0; i < KVFS_AUDIT_CHAINS; i++) {
        for (struct kvfs_audit_record *r = a->own[i].first; r;) {
            struct kvfs_audit_record *next = r->next;
            free(r);
            r = next;
        }
    }
    for (unsigned i = 0; i < KVFS_AUDIT_FOLDS; i++) {
        json_decref(a->folds[i].details);
    }
    json_decref(a->key.public);
    if (!s->leases) {
        ct_secret_free(a->key.d);
    }
    free(a);
}
