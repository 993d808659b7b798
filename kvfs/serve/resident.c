#include "kvfs/serve/resident_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "format/base/clock.h"
#include "format/base/spread.h"
#include "kvfs/serve/fetch.h"

/* Smaller files gain nothing from it. */
#define AUTO_LEAST (UINT64_C(256) * 1000 * 1000)
#define RESERVE_PART (UINT64_C(64) << 20)

struct kvfs_resident_set *kvfs_resident_start(struct kvfs_serve *s, struct ct_err *err)
{
    struct kvfs_resident_set *r = calloc(1, sizeof(*r));
    if (!r) {
        ct_err_set(err, CT_NOMEM, "no memory");
        return NULL;
    }
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    r->off = s->config.resident == 0;
    return r;
}

/* ---- the end of one ---- */

/* With the lock held: it is in no list any more, its node is free to be served anew. */
static void unlink_resident(struct kvfs_resident_set *set, struct kvfs_resident *r)
{
    struct kvfs_resident **at = &set->list;
    while (*at != r) {
        at = &(*at)->next;
    }
    *at = r->next;
    set->used -= r->size;
    r->node->resident = NULL;
}

static void resident_free(struct kvfs_serve *s, struct kvfs_resident *r)
{
    struct kvfs_node *node = r->node;
    if (r->fd >= 0) {
        close(r->fd);
    }
    kvfs_content_unref(r->content);
    free(r);
    kvfs_node_end(s, node);
}

/* Gives an unused one back. With the lock held, which is given up meanwhile. */
static bool end_unused(struct kvfs_serve *s, struct kvfs_resident *r)
{
    struct kvfs_resident_set *set = s->residents;
    struct ct_err err = CT_ERR_INIT;
    r->state = ENDING;
    pthread_mutex_unlock(&set->lock);
    bool gone = kvfs_source_resident_end(s, r->number, &err) == 0;
    pthread_mutex_lock(&set->lock);
    gone = gone && !set->sealed; /* then it may be taken back just now, and stays */
    r->state = READY;
    r->idle_since = ct_now_seconds();
    if (gone) {
        unlink_resident(set, r);
        r->node->cache = KVFS_SERVED_NOT;
    }
    pthread_cond_broadcast(&set->changed);
    if (gone) {
        pthread_mutex_unlock(&set->lock);
        resident_free(s, r);
        pthread_mutex_lock(&set->lock);
    }
    return gone;
}

static bool is_unused(const struct kvfs_resident_set *set, const struct kvfs_resident *r)
{
    return r->state == READY && r->users == 0 && !set->sealed;
}

/* With the lock held, which is given up meanwhile. Takes `size` bytes of the budget. */
static bool make_room(struct kvfs_serve *s, uint64_t size)
{
    struct kvfs_resident_set *set = s->residents;
    uint64_t search = ++set->searches;
    while (size <= s->config.resident && set->used + size > s->config.resident) {
        struct kvfs_resident *oldest = NULL;
        for (struct kvfs_resident *r = set->list; r; r = r->next) {
            if (is_unused(set, r) && r->tried < search &&
                (!oldest || r->idle_since < oldest->idle_since)) {
                oldest = r;
            }
        }
        if (!oldest) {
            return false;
        }
        oldest->tried = search; /* if it is mapped, it is not tried again */
        (void)end_unused(s, oldest);
    }
    return size <= s->config.resident;
}

/* ---- the beginning of one ---- */

/* A page that can't be had while it is written to would be SIGBUS: all are taken before. In parts,
 * each asked for: others take memory too, and a cgroup that has none left kills. */
static int reserve(struct kvfs_serve *s, const struct kvfs_resident *r, struct ct_err *err)
{
    for (uint64_t at = 0; at < r->size; at += RESERVE_PART) {
        uint64_t n = r->size - at < RESERVE_PART ? r->size - at : RESERVE_PART;
        if (kvfs_source_resident_more(s, err)) {
            return -1;
        }
        if (fallocate(r->fd, 0, (off_t)at, (off_t)n)) {
            return ct_err_sys(err, errno, "memory for a resident file");
        }
    }
    return 0;
}

static int get_memory(struct kvfs_serve *s, struct kvfs_resident *r, struct ct_err *err)
{
    size_t head_len = 0;
    const uint8_t *head = kvfs_content_head(r->content, &head_len);
    r->fd = kvfs_source_resident(s, r->size, &r->number, &r->backing, err);
    if (r->fd < 0) {
        return -1;
    }
    if (reserve(s, r, err)) {
        return -1;
    }
    void *map = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
    if (map == MAP_FAILED) {
        return ct_err_sys(err, errno, "memory for a resident file");
    }
    (void)madvise(map, r->size, MADV_DONTDUMP);
    r->map = map;
    memcpy(map, head, head_len);
    r->load = ct_load_new(kvfs_content_as_model(r->content), r->map + head_len, err);
    return r->load ? 0 : -1;
}

static void leave(struct kvfs_serve *s, const struct kvfs_resident *r)
{
    char name[256];
    struct ct_err ignored = CT_ERR_INIT;
    kvfs_node_name(s, r->node, name, sizeof(name));
    ct_log(CT_LOG_INFO, "%s is left to the page cache: %s", name, r->why.msg);
    if (r->fd >= 0) {
        (void)kvfs_source_resident_end(s, r->number, &ignored);
    }
}

/* All threads are done with it, or it never began: READY, or back to the page cache. Once all is
 * sealed, it stays: whoever seals may be looking at it. */
static void settle(struct kvfs_serve *s, struct kvfs_resident *r)
{
    struct kvfs_resident_set *set = s->residents;
    struct ct_err err = CT_ERR_INIT;
    if (r->map) {
        munmap(r->map, r->size);
        r->map = NULL;
    }
    ct_load_free(r->load);
    r->load = NULL;
    if (!r->failed && kvfs_content_check(r->content, &r->why)) {
        r->failed = true;
    }
    bool sealed = atomic_load(&s->sealed);
    if (r->failed && !sealed) {
        leave(s, r);
    }
    pthread_mutex_lock(&set->lock);
    sealed = sealed || set->sealed;
    bool failed = r->failed && !sealed;
    bool to_take = sealed && !r->taken_back && r->fd >= 0;
    struct kvfs_opening *waiters = r->waiters;
    r->waiters = NULL;
    r->state = READY;
    r->taken_back = r->taken_back || to_take;
    r->idle_since = ct_now_seconds();
    if (failed) {
        unlink_resident(set, r);
        r->node->cache = r->node->cache_users ? KVFS_SERVED_PAGE : KVFS_SERVED_NOT;
    }
    int32_t backing = r->failed ? 0 : r->backing;
    pthread_cond_broadcast(&set->changed);
    pthread_mutex_unlock(&set->lock);
    if (failed) {
        resident_free(s, r);
    } else if (to_take) {
        kvfs_resident_take_back(s, r);
    }
    while (waiters) {
        struct kvfs_opening *o = waiters;
        waiters = o->next;
        if (sealed) {
            (void)kvfs_seal_why(s, &err);
            kvfs_open_fail(o, &err);
        } else {
            kvfs_open_answer(o, backing);
        }
    }
}

static struct kvfs_resident *resident_new(struct kvfs_serve *s, const struct kvfs_opening *o)
{
    struct kvfs_resident *r = calloc(1, sizeof(*r));
    if (r) {
        r->fd = -1;
        r->node = o->node;
        r->content = kvfs_content_ref(o->handle->content);
        r->size = kvfs_content_size(r->content);
        r->extents = kvfs_content_extents(r->content);
        r->next = s->residents->list;
        s->residents->list = r;
        s->residents->used += r->size;
        o->node->resident = r;
        o->node->cache = KVFS_SERVED_RESIDENT;
        pthread_mutex_lock(&o->node->lock);
        o->node->busy++;
        pthread_mutex_unlock(&o->node->lock);
    }
    return r;
}

static void begin(struct kvfs_serve *s, struct kvfs_resident *r)
{
    struct kvfs_resident_set *set = s->residents;
    if (get_memory(s, r, &r->why)) {
        r->failed = true;
        settle(s, r);
        return;
    }
    if (r->extents == 0) {
        settle(s, r);
        return;
    }
    pthread_mutex_lock(&set->lock);
    bool sealed = set->sealed;
    if (!sealed) {
        r->state = POPULATING;
        atomic_fetch_add(&set->populating, 1);
    }
    pthread_mutex_unlock(&set->lock);
    if (sealed) {
        r->failed = true;
        settle(s, r);
    }
    kvfs_chunks_wake(s->chunks);
}

/* ---- opens ---- */

static bool is_wanted(const struct kvfs_serve *s, const struct kvfs_opening *o)
{
    return !s->residents->off && atomic_load(&s->passthrough.on) &&
           kvfs_content_as_model(o->handle->content) &&
           (s->config.cache == KVFS_CACHE_RESIDENT ||
            (s->config.cache == KVFS_CACHE_AUTO &&
             kvfs_content_size(o->handle->content) >= AUTO_LEAST));
}

/* The opener was killed, or took a signal: nobody waits for the answer but the kernel. Called by
 * libfuse, at any time; `o` may be gone. */
static void interrupted(fuse_req_t req, void *data)
{
    const struct kvfs_opening *o = data;
    struct kvfs_serve *s = fuse_req_userdata(req);
    struct kvfs_opening *found = NULL;
    pthread_mutex_lock(&s->residents->lock);
    for (struct kvfs_resident *r = s->residents->list; r && !found; r = r->next) {
        struct kvfs_opening **at = &r->waiters;
        while (*at && !(*at == o && (*at)->req == req)) {
            at = &(*at)->next;
        }
        found = *at;
        if (found) {
            *at = found->next;
        }
    }
    pthread_mutex_unlock(&s->residents->lock);
    if (found) {
        struct ct_err err = CT_ERR_INIT;
        ct_err_sys(&err, EINTR, "open");
        kvfs_open_fail(found, &err);
    }
}

/* With the lock held: how the node is to be served, decided if it is not yet. */
static struct kvfs_resident *decide(struct kvfs_serve *s, struct kvfs_opening *o, bool *fresh)
{
    struct kvfs_node *node = o->node;
    while (node->resident && node->resident->state == ENDING) {
        pthread_cond_wait(&s->residents->changed, &s->residents->lock);
    }
    if (node->cache == KVFS_SERVED_NOT && is_wanted(s, o) && !s->residents->sealed &&
        make_room(s, kvfs_content_size(o->handle->content)) && node->cache == KVFS_SERVED_NOT) {
        *fresh = resident_new(s, o) != NULL;
    }
    if (node->cache == KVFS_SERVED_NOT) {
        node->cache = KVFS_SERVED_PAGE;
    }
    return node->resident;
}

void kvfs_resident_open(struct kvfs_serve *s, struct kvfs_opening *o)
{
    struct kvfs_resident_set *set = s->residents;
    int32_t backing = 0;
    bool fresh = false;
    bool parked = false;
    fuse_req_interrupt_func(o->req, interrupted, o);
    pthread_mutex_lock(&set->lock);
    struct kvfs_resident *r = decide(s, o, &fresh);
    o->node->cache_users++;
    if (r) {
        r->users++;
        r->kept = false;
        parked = r->state != READY;
        backing = parked ? 0 : r->backing;
    }
    bool killed = parked && fuse_req_interrupted(o->req);
    bool late = parked && set->sealed; /* nobody would settle it any more */
    if (parked && !killed && !late) {
        o->next = r->waiters;
        r->waiters = o;
    }
    pthread_mutex_unlock(&set->lock);
    if (killed || late) {
        struct ct_err err = CT_ERR_INIT;
        (void)(late ? kvfs_seal_why(s, &err) : ct_err_sys(&err, EINTR, "open"));
        kvfs_open_fail(o, &err);
    } else if (!parked) {
        kvfs_open_answer(o, backing);
    }
    if (fresh && r) {
        begin(s, r);
    }
}

void kvfs_resident_close(struct kvfs_serve *s, struct kvfs_node *node)
{
    pthread_mutex_lock(&s->residents->lock);
    node->cache_users--;
    struct kvfs_resident *r = node->resident;
    if (r && --r->users == 0) {
        r->idle_since = ct_now_seconds();
    }
    if (!r && node->cache_users == 0) {
        node->cache = KVFS_SERVED_NOT;
    }
    pthread_mutex_unlock(&s->residents->lock);
}

/* ---- populating ---- */

bool kvfs_resident_pending(struct kvfs_serve *s)
{
    return atomic_load_explicit(&s->residents->populating, memory_order_relaxed) > 0;
}

/* With the lock held. */
static struct kvfs_resident *find_work(struct kvfs_resident_set *set)
{
    struct kvfs_resident *oldest = NULL; /* new ones are put in front */
    for (struct kvfs_resident *r = set->sealed ? NULL : set->list; r; r = r->next) {
        if (r->state == POPULATING && r->taken < r->extents && !r->failed) {
            oldest = r;
        }
    }
    return oldest;
}

static int decrypt(struct kvfs_serve *s, struct kvfs_resident *r, uint32_t extent, uint32_t *len,
                   struct ct_err *err)
{
    struct ct_damages damages = {0};
    uint64_t begin = 0;
    struct kvfs_fetch *fetch = kvfs_chunks_fetch(s->chunks);
    uint32_t window = kvfs_fetch_window(fetch);
    /* A window at the beginning, and then one more for each that is taken. */
    kvfs_fetch_ask(fetch, r->content, extent ? extent + window : 1, extent ? 1 : window);
    kvfs_content_extent(r->content, extent, &begin, len);
    int rc = kvfs_content_load(r->content, r->load, extent, &damages, err);
    if (rc == 0 && damages.count) {
        rc = ct_err_set(err, damages.items[0].code, "%s", damages.items[0].what);
    }
    ct_damages_free(&damages);
    return rc;
}

void kvfs_resident_step(struct kvfs_serve *s)
{
    struct kvfs_resident_set *set = s->residents;
    struct ct_err err = CT_ERR_INIT;
    pthread_mutex_lock(&set->lock);
    struct kvfs_resident *r = find_work(set);
    if (!r) {
        pthread_mutex_unlock(&set->lock);
        return;
    }
    uint32_t extent = (uint32_t)ct_spread(r->taken++, r->extents);
    uint32_t len = 0;
    if (r->taken == r->extents) {
        atomic_fetch_sub(&set->populating, 1);
    }
    pthread_mutex_unlock(&set->lock);

    int rc = decrypt(s, r, extent, &len, &err);
    kvfs_chunks_decrypted(s->chunks, r->node, len);

    pthread_mutex_lock(&set->lock);
    r->done++;
    r->bytes_done += len;
    if (rc && !r->failed) {
        r->failed = true;
        r->why = err;
        if (r->taken < r->extents) {
            r->extents = r->taken; /* nothing more is handed out */
            atomic_fetch_sub(&set->populating, 1);
        }
    }
    bool last = r->done == r->extents;
    pthread_mutex_unlock(&set->lock);
    if (last) {
        settle(s, r);
    }
}

/* ---- from time to time ---- */

void kvfs_resident_tick(struct kvfs_serve *s)
{
    struct kvfs_resident_set *set = s->residents;
    pthread_mutex_lock(&set->lock);
    int64_t before = ct_now_seconds() - (int64_t)s->config.linger;
    struct kvfs_resident *r = set->list;
    while (r) {
        if (is_unused(set, r) && !r->kept && r->idle_since <= before) {
            (void)end_unused(s, r); /* the list may be another one now */
            before = ct_now_seconds() - (int64_t)s->config.linger - 1;
            r = set->list;
        } else {
            r = r->next;
        }
    }
    pthread_mutex_unlock(&set->lock);
}

bool kvfs_resident_keep(struct kvfs_serve *s, struct kvfs_node *node)
{
    pthread_mutex_lock(&s->residents->lock);
    bool resident = node->resident && node->resident->state == READY;
    if (resident) {
        node->resident->kept = true;
    }
    pthread_mutex_unlock(&s->residents->lock);
    return resident;
}

/* ---- what status shows ---- */

void kvfs_resident_info(struct kvfs_serve *s, const struct kvfs_node *node,
                        struct kvfs_resident_info *out)
{
    static const char *const modes[] = {"none", "page", "resident"};
    pthread_mutex_lock(&s->residents->lock);
    const struct kvfs_resident *r = node->resident;
    *out = (struct kvfs_resident_info){.mode = modes[node->cache]};
    if (r) {
        out->mode = r->state < READY ? "populating" : "resident";
        out->bytes = r->size;
        out->done = r->state < READY ? r->bytes_done : r->size;
    } else if (node->cache == KVFS_SERVED_PAGE && s->config.cache == KVFS_CACHE_DIRECT &&
               node->verdict.kind == KVFS_VERDICT_MODEL) {
        out->mode = "direct";
    }
    pthread_mutex_unlock(&s->residents->lock);
}

uint64_t kvfs_resident_used(struct kvfs_serve *s, uint64_t *limit)
{
    pthread_mutex_lock(&s->residents->lock);
    uint64_t used = s->residents->used;
    *limit = s->residents->off ? 0 : s->config.resident;
    pthread_mutex_unlock(&s->residents->lock);
    return used;
}
