#include "kvfs/serve/audit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "format/header.h"

enum { STUCK_MS = 10000 };

struct kvfs_leases *kvfs_leases_new(const void *deploy_key, size_t n, const char *pin,
                                    json_t *measurements, struct ct_err *err)
{
    char host[KC_HOST_MAX + 1] = "";
    struct kvfs_leases *l = calloc(1, sizeof(*l));
    if (!l) {
        json_decref(measurements);
        ct_err_set(err, CT_NOMEM, "no memory for leases");
        return NULL;
    }
    (void)gethostname(host, sizeof(host) - 1);
    pthread_mutex_init(&l->runtime_lock, NULL);
    if (kc_runtime_init(&l->runtime, pin, host, deploy_key, n, measurements, err)) {
        kc_runtime_free(&l->runtime);
        free(l);
        return NULL;
    }
    return l;
}

/* ---- the seam ---- */

static int give_master(struct ct_keysource *ks, const struct ct_keyref *ref, struct ct_secret **out,
                       struct ct_err *err)
{
    struct kvfs_lease *l = (struct kvfs_lease *)ks;
    pthread_mutex_lock(&l->lock);
    struct ct_keysource *keys = kc_exchange_keys(l->exchange);
    int r = l->state == KVFS_LEASE_HELD ? keys->master(keys, ref, out, err)
                                        : ct_err_set(err, CT_EXPIRED, "the lease is over");
    pthread_mutex_unlock(&l->lock);
    return r;
}

static int give_verify(struct ct_keysource *ks, const struct ct_keyref *ref,
                       uint8_t pub[static CT_ED25519_PUB], struct ct_err *err)
{
    struct kvfs_lease *l = (struct kvfs_lease *)ks;
    pthread_mutex_lock(&l->lock);
    struct ct_keysource *keys = kc_exchange_keys(l->exchange);
    int r = l->state == KVFS_LEASE_HELD ? keys->verify(keys, ref, pub, err)
                                        : ct_err_set(err, CT_EXPIRED, "the lease is over");
    pthread_mutex_unlock(&l->lock);
    return r;
}

/* ---- life ---- */

/* The mount comes up if anything can be read; what can't is told by the scan. */
static int judge_start(struct kvfs_leases *l, struct ct_err *err)
{
    struct ct_err why = CT_ERR_INIT;
    for (size_t i = 0; i < l->count; i++) {
        struct kvfs_lease *one = &l->items[i];
        pthread_mutex_lock(&one->lock);
        bool held = one->state == KVFS_LEASE_HELD;
        if (!held && why.code == CT_OK) {
            why = one->why;
            ct_err_wrap(&why, "%s", one->model);
        }
        pthread_mutex_unlock(&one->lock);
        if (held) {
            return 0;
        }
    }
    return ct_err_set(err, why.code ? why.code : CT_IO, "%s",
                      why.code ? why.msg : "the key server does not answer");
}

int kvfs_leases_start(struct kvfs_serve *s, struct ct_err *err)
{
    struct kvfs_leases *l = s->leases;
    const int64_t until = kvfs_lease_now() + (int64_t)s->config.wait * 1000;
    if (kvfs_gather(s, l, err)) {
        return -1;
    }
    for (size_t i = 0; i < l->count; i++) {
        kvfs_lease_init(&l->items[i]);
    }
    atomic_store(&l->gathered, true);
    for (size_t i = 0; i < l->count; i++) {
        l->items[i].keys = (struct ct_keysource){.master = give_master, .verify = give_verify};
        if (kvfs_lease_start(&l->items[i], err)) {
            return -1;
        }
    }
    for (size_t i = 0; i < l->count; i++) {
        kvfs_lease_wait(&l->items[i], until);
    }
    return l->count ? judge_start(l, err) : 0; /* nothing is encrypted: the scan explains */
}

void kvfs_leases_stop(struct kvfs_leases *l)
{
    for (size_t i = 0; l && i < l->count; i++) {
        kvfs_lease_stop(&l->items[i]);
    }
    for (size_t i = 0; l && i < l->count; i++) {
        kvfs_lease_join(&l->items[i]);
    }
}

void kvfs_leases_free(struct kvfs_leases *l)
{
    for (size_t i = 0; l && i < l->count; i++) {
        struct kvfs_lease *one = &l->items[i];
        kc_exchange_free(one->exchange);
        kc_shards_free(&one->shards);
        for (size_t k = 0; k < one->file_count; k++) {
            free(one->files[k].path);
        }
        free(one->files);
    }
    if (l) {
        kc_runtime_free(&l->runtime);
        free(l->items);
        free(l);
    }
}

void kvfs_leases_part(struct kvfs_leases *l, const struct ct_err *why)
{
    const size_t count = l && atomic_load(&l->gathered) ? l->count : 0;
    for (size_t i = 0; i < count; i++) {
        kvfs_lease_part(&l->items[i], why);
    }
}

/* ---- what the clock ends ---- */

static void *end_lease(void *arg)
{
    struct kvfs_lease *l = arg;
    struct ct_err why = CT_ERR_INIT;
    pthread_mutex_lock(&l->lock);
    ct_err_set(&why, CT_EXPIRED, "the lease of %s is over%s%s", l->model,
               l->why.code ? ", and could not be renewed: " : "", l->why.msg);
    pthread_mutex_unlock(&l->lock);
    kvfs_lease_end(l, &why);
    return NULL;
}

void kvfs_leases_announce(struct kvfs_leases *l, struct kvfs_shared *shared)
{
    const size_t count = atomic_load(&l->gathered) ? l->count : 0;
    int64_t first = 0;
    for (size_t i = 0; i < count; i++) {
        struct kvfs_lease *one = &l->items[i];
        pthread_mutex_lock(&one->lock);
        const int64_t ends = one->state == KVFS_LEASE_HELD ? kvfs_lease_deadline(one) : 0;
        pthread_mutex_unlock(&one->lock);
        first = ends && (!first || ends < first) ? ends : first;
    }
    __atomic_store_n(&shared->lease_ends, (uint64_t)first, __ATOMIC_RELAXED);
}

void kvfs_leases_tick(struct kvfs_leases *l, struct kvfs_shared *shared)
{
    const size_t count = atomic_load(&l->gathered) ? l->count : 0;
    const uint64_t progress = __atomic_load_n(&shared->progress, __ATOMIC_RELAXED);
    l->went_on_ms = progress == l->progress ? l->went_on_ms : kvfs_lease_now();
    l->progress = progress;
    for (size_t i = 0; i < count; i++) {
        struct kvfs_lease *one = &l->items[i];
        pthread_mutex_lock(&one->lock);
        const int64_t now = kvfs_lease_now();
        bool over = one->state == KVFS_LEASE_HELD && now >= kvfs_lease_deadline(one);
        bool stuck = one->since && now - one->since >= STUCK_MS && now - l->went_on_ms >= STUCK_MS;
        pthread_mutex_unlock(&one->lock);
        if (over && !one->ending) {
            one->ending = pthread_create(&one->ender, NULL, end_lease, one) == 0;
            if (!one->ending) {
                (void)end_lease(one);
            }
        }
        if (stuck) {
            const struct ct_err why = {.code = CT_SEALED,
                                       .msg = "a lease's files can't be taken back"};
            kvfs_seal(one->s, &why);
        }
    }
    kvfs_leases_announce(l, shared);
}

/* ---- the end of one ---- */

static bool is_of_lease(void *ctx, const struct kvfs_node *node)
{
    return kvfs_lease_has(ctx, node->version.dev, node->version.ino, NULL);
}

static bool is_last(struct kvfs_leases *all, const struct kvfs_lease *l)
{
    bool last = true;
    for (size_t i = 0; i < all->count; i++) {
        struct kvfs_lease *other = &all->items[i];
        pthread_mutex_lock(&other->lock);
        last = last && (other == l || other->state == KVFS_LEASE_OVER ||
                        other->state == KVFS_LEASE_REFUSED);
        pthread_mutex_unlock(&other->lock);
    }
    return last;
}

void kvfs_lease_end(struct kvfs_lease *l, const struct ct_err *why)
{
    pthread_mutex_lock(&l->lock);
    bool held = l->state == KVFS_LEASE_HELD;
    if (held) {
        l->state = KVFS_LEASE_OVER;
        l->why = *why;
        l->since = kvfs_lease_now();
        kc_exchange_forget(l->exchange);
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    if (held) {
        kvfs_audit_event(l->s, l, "lease-end", kvfs_audit_why(why));
    }
    if (held && is_last(l->s->leases, l)) {
        kvfs_seal(l->s, why);
    } else if (held) {
        kvfs_revoke(l->s, is_of_lease, l, why);
        pthread_mutex_lock(&l->lock);
        l->since = 0;
        pthread_mutex_unlock(&l->lock);
    }
}

/* ---- what the rest of the worker asks ---- */

static struct kvfs_lease *find_file(const struct kvfs_leases *l, const struct ct_version *v,
                                    size_t *index)
{
    for (size_t i = 0; i < l->count; i++) {
        if (kvfs_lease_has(&l->items[i], v->dev, v->ino, index)) {
            return &l->items[i];
        }
    }
    return NULL;
}

const struct kvfs_lease *kvfs_leases_of(const struct kvfs_leases *l, const struct ct_version *v)
{
    size_t index = 0;
    return find_file(l, v, &index);
}

/* Whether reads may go on now. */
static int check_lease(struct kvfs_lease *l, struct ct_err *err)
{
    pthread_mutex_lock(&l->lock);
    int r = 0;
    if (l->state == KVFS_LEASE_HELD && kvfs_lease_now() >= kvfs_lease_deadline(l)) {
        r = ct_err_set(err, CT_EXPIRED, "the lease is over");
    } else if (l->state != KVFS_LEASE_HELD) {
        r = ct_err_set(err, l->why.code ? l->why.code : CT_IO, "%s",
                       l->why.code ? l->why.msg : "the key server has not answered yet");
    }
    pthread_mutex_unlock(&l->lock);
    return r;
}

static struct kvfs_lease *find_released(struct kvfs_leases *l, const struct ct_version *v,
                                        const struct kc_shard **shard, struct ct_err *err)
{
    size_t i = 0;
    struct kvfs_lease *one = find_file(l, v, &i);
    if (!one) {
        ct_err_set(err, CT_REJECTED,
                   "it is in no release: it came after the mount, or names no model");
        return NULL;
    }
    if (check_lease(one, err)) {
        return NULL;
    }
    *shard = &kc_exchange_shards(one->exchange)->items[i];
    if (!(*shard)->wanted) {
        ct_err_set(err, CT_REJECTED, "the generation that was released has no such file");
        return NULL;
    }
    return one;
}

int kvfs_leases_check(struct kvfs_leases *l, const struct ct_version *v, struct ct_err *err)
{
    const struct kc_shard *shard = NULL;
    return find_released(l, v, &shard, err) ? 0 : -1;
}

int kvfs_leases_use(struct kvfs_leases *l, struct ct_source *source, struct ct_open *how,
                    struct ct_buf *header, struct ct_err *err)
{
    const struct kc_shard *shard = NULL;
    struct ct_header *h = NULL;
    char digest[KX_HEX + 1];
    struct kvfs_lease *one = find_released(l, &how->version, &shard, err);
    if (!one || ct_header_read(source, &how->version, header, &h, err)) {
        return -1;
    }
    ct_header_free(h);
    if (kx_hex_sha256(header->data, header->len, digest, err)) {
        return -1;
    }
    if (strcmp(digest, shard->local) != 0) {
        return ct_err_set(err, CT_REJECTED,
                          "its header is not the one for which keys were released: mount anew");
    }
    const struct ct_buf *used = shard->header.len ? &shard->header : header;
    how->keys = &one->keys;
    how->header = used->data;
    how->header_len = used->len;
    return 0;
}

int kvfs_leases_manifest(struct kvfs_leases *l, const char *dir, struct ct_keysource **keys,
                         const char **sha256, struct ct_err *err)
{
    struct kvfs_lease *nearest = NULL;
    size_t longest = 0;
    for (size_t i = 0; i < l->count; i++) {
        struct kvfs_lease *one = &l->items[i];
        const size_t n = strlen(one->dir);
        if (strncmp(dir, one->dir, n) == 0 && (!n || dir[n] == '/' || dir[n] == '\0') &&
            (!nearest || n > longest)) {
            nearest = one;
            longest = n;
        }
    }
    *sha256 = NULL;
    if (!nearest) {
        return ct_err_set(err, CT_NOKEY, "no model of the key server lies here");
    }
    if (check_lease(nearest, err)) {
        return -1;
    }
    *keys = &nearest->keys;
    *sha256 = strcmp(nearest->dir, dir) == 0 ? kc_manifest_sha256(nearest->exchange) : NULL;
    return 0;
}

/* ---- status ---- */

static json_t *status_of(struct kvfs_lease *l)
{
    static const char *const states[] = {[KVFS_LEASE_ASKING] = "asking",
                                         [KVFS_LEASE_HELD] = "held",
                                         [KVFS_LEASE_REFUSED] = "refused",
                                         [KVFS_LEASE_OVER] = "over"};
    const char *directory = ct_utf8_ok((const uint8_t *)l->dir, strlen(l->dir)) ? l->dir : "?";
    pthread_mutex_lock(&l->lock);
    const int64_t now = kvfs_lease_now();
    json_t *all = json_pack("{s:s,s:s,s:s,s:i}", "model", l->model, "directory", directory, "state",
                            states[l->state], "files", (int)l->file_count);
    if (all && l->held.id[0]) {
        json_t *more = json_pack(
            "{s:s,s:I,s:I,s:I,s:I,s:I,s:s}", "lease", l->held.id, "seconds",
            (json_int_t)((l->held.sent_ms + l->held.seconds * 1000 - now) / 1000), "renew",
            (json_int_t)((l->held.sent_ms + l->held.renew * 1000 - now) / 1000), "grace",
            (json_int_t)l->held.grace, "generation", (json_int_t)l->held.generation, "newest",
            (json_int_t)l->newest, "assurance", l->held.assurance);
        (void)json_object_update(all, more);
        json_decref(more);
    }
    if (all && l->why.code) {
        json_object_set_new(all, "error", json_string(ct_errno_name(ct_err_errno(&l->why))));
        json_object_set_new(all, "why", json_string(l->why.msg));
    }
    pthread_mutex_unlock(&l->lock);
    return all;
}

json_t *kvfs_leases_status(struct kvfs_leases *l)
{
    json_t *all = json_array();
    for (size_t i = 0; l && i < l->count; i++) {
        json_array_append_new(all, status_of(&l->items[i]));
    }
    return all;
}
