#include "kvfs/serve/node.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "kvfs/mount/control.h"
#include "kvfs/serve/damage.h"

struct name { /* a pinned name */
    char *path;
    struct kvfs_node *node;
};

struct kvfs_table {
    pthread_mutex_t lock;
    struct kvfs_shared *shared;
    uint64_t next_id;
    /* Chains of nodes, by id and by what they stand for; `cap` of each, a power of two. Only what
     * the kernel knows is here: a directory of 100,000 files costs each name the same. */
    struct kvfs_node **by_id, **by_what;
    size_t cap, count;
    struct name *pins; /* open addressing by hash of the path; tombstones have node NULL */
    size_t pin_cap, pin_used;
    unsigned char seed[crypto_shorthash_KEYBYTES]; /* names are chosen by others */
};

static uint64_t hash_bytes(const struct kvfs_table *t, const void *p, size_t n)
{
    unsigned char hash[crypto_shorthash_BYTES];
    uint64_t v = 0;
    crypto_shorthash(hash, p, n, t->seed);
    memcpy(&v, hash, sizeof(v));
    return v;
}

static uint64_t hash_text(const struct kvfs_table *t, const char *text)
{
    return hash_bytes(t, text, strlen(text));
}

struct kvfs_table *kvfs_table_new(struct kvfs_shared *shared, struct ct_err *err)
{
    struct kvfs_table *t = calloc(1, sizeof(*t));
    if (t) {
        t->cap = 1024;
        t->by_id = calloc(t->cap, sizeof(struct kvfs_node *));
        t->by_what = calloc(t->cap, sizeof(struct kvfs_node *));
    }
    if (!t || !t->by_id || !t->by_what) {
        if (t) {
            free(t->by_id);
            free(t->by_what);
        }
        free(t);
        ct_err_set(err, CT_NOMEM, "no memory for the tree");
        return NULL;
    }
    pthread_mutex_init(&t->lock, NULL);
    crypto_shorthash_keygen(t->seed);
    t->shared = shared;
    t->next_id = 1;
    return t;
}

/* With the lock held. */
static struct kvfs_node *get(const struct kvfs_table *t, uint64_t id)
{
    struct kvfs_node *n = t->by_id[id & (t->cap - 1)];
    while (n && n->id != id) {
        n = n->next_by_id;
    }
    return n;
}

struct kvfs_node *kvfs_table_get(struct kvfs_table *t, uint64_t id)
{
    pthread_mutex_lock(&t->lock);
    struct kvfs_node *n = get(t, id);
    pthread_mutex_unlock(&t->lock);
    return n;
}

uint64_t kvfs_table_size(struct kvfs_table *t, uint64_t id)
{
    pthread_mutex_lock(&t->lock);
    const struct kvfs_node *n = get(t, id);
    uint64_t size = n ? n->measure.view_size : 0;
    pthread_mutex_unlock(&t->lock);
    return size;
}

static void link_node(struct kvfs_table *t, struct kvfs_node *n)
{
    struct kvfs_node **id = &t->by_id[n->id & (t->cap - 1)];
    struct kvfs_node **what = &t->by_what[n->what & (t->cap - 1)];
    n->next_by_id = *id;
    n->next_by_what = *what;
    *id = *what = n;
    t->count++;
}

static void unlink_node(struct kvfs_table *t, const struct kvfs_node *n)
{
    struct kvfs_node **at = &t->by_id[n->id & (t->cap - 1)];
    while (*at != n) {
        at = &(*at)->next_by_id;
    }
    *at = n->next_by_id;
    at = &t->by_what[n->what & (t->cap - 1)];
    while (*at != n) {
        at = &(*at)->next_by_what;
    }
    *at = n->next_by_what;
    t->count--;
}

/* Makes room for one more. */
static int grow(struct kvfs_table *t)
{
    if (t->count < t->cap) {
        return 0;
    }
    struct kvfs_table bigger = {.cap = 2 * t->cap};
    bigger.by_id = calloc(bigger.cap, sizeof(struct kvfs_node *));
    bigger.by_what = calloc(bigger.cap, sizeof(struct kvfs_node *));
    if (!bigger.by_id || !bigger.by_what) {
        free(bigger.by_id);
        free(bigger.by_what);
        return -1;
    }
    for (size_t i = 0; i < t->cap; i++) {
        for (struct kvfs_node *n = t->by_id[i]; n;) {
            struct kvfs_node *next = n->next_by_id;
            link_node(&bigger, n);
            n = next;
        }
    }
    free(t->by_id);
    free(t->by_what);
    t->by_id = bigger.by_id;
    t->by_what = bigger.by_what;
    t->cap = bigger.cap;
    return 0;
}

/* ---- nodes ---- */

static void verdict_release(struct kvfs_verdict *v)
{
    ct_manifest_unref(v->manifest);
    v->manifest = NULL;
}

void kvfs_paths_free(char **paths, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(paths[i]);
    }
    free(paths);
}

static void node_free(struct kvfs_node *n)
{
    kvfs_paths_free(n->paths, n->path_count);
    free(n->target);
    verdict_release(&n->verdict);
    kvfs_content_unref(n->content);
    kvfs_damage_memo_free(n->damage);
    pthread_mutex_destroy(&n->lock);
    pthread_mutex_destroy(&n->opening);
    free(n);
}

static bool has_path(const struct kvfs_node *n, const char *path)
{
    for (size_t i = 0; i < n->path_count; i++) {
        if (strcmp(n->paths[i], path) == 0) {
            return true;
        }
    }
    return false;
}

static int add_path(struct kvfs_node *n, const char *path)
{
    if (has_path(n, path)) {
        return 0;
    }
    char **paths = realloc(n->paths, (n->path_count + 1) * sizeof(char *));
    if (!paths) {
        return -1;
    }
    n->paths = paths;
    n->paths[n->path_count] = strdup(path);
    if (!n->paths[n->path_count]) {
        return -1;
    }
    n->path_count++;
    return 0;
}

static bool same_verdict(const struct kvfs_verdict *a, const struct kvfs_verdict *b)
{
    return a->kind == b->kind && a->entry == b->entry && a->why.code == b->why.code;
}

static bool is_it(const struct kvfs_node *n, const char *path, const struct kvfs_found *f)
{
    if (n->kind != f->kind) {
        return false;
    }
    if (f->kind == KVFS_NODE_LINK) {
        return has_path(n, path) && strcmp(n->target, f->target) == 0;
    }
    if (f->kind != KVFS_NODE_FILE || f->version.ino == 0) {
        return has_path(n, path) && (f->kind != KVFS_NODE_FILE || n->version.ino == 0);
    }
    return ct_version_same(&n->version, &f->version) && same_verdict(&n->verdict, &f->verdict);
}

/* What a node stands for, as far as it takes to find it: is_it() has the last word. */
static uint64_t what_of(const struct kvfs_table *t, const char *path, const struct kvfs_found *f)
{
    const struct ct_version *v = &f->version;
    const uint64_t file[] = {v->dev, v->ino, v->size, (uint64_t)v->mtime_ns};
    return f->kind == KVFS_NODE_FILE && v->ino ? hash_bytes(t, file, sizeof(file))
                                               : hash_text(t, path);
}

/* With the lock held. */
static struct kvfs_node *find(const struct kvfs_table *t, const char *path,
                              const struct kvfs_found *f)
{
    uint64_t what = what_of(t, path, f);
    struct kvfs_node *n = t->by_what[what & (t->cap - 1)];
    while (n && (n->what != what || !is_it(n, path, f))) {
        n = n->next_by_what;
    }
    return n;
}

static struct kvfs_node *new_node(struct kvfs_table *t, const char *path, struct kvfs_found *f)
{
    struct kvfs_node *n = grow(t) ? NULL : calloc(1, sizeof(*n));
    if (!n || add_path(n, path)) {
        free(n);
        return NULL;
    }
    n->id = t->next_id++;
    n->kind = f->kind;
    n->what = what_of(t, path, f);
    n->st = f->st;
    n->version = f->version;
    n->verdict = f->verdict;
    n->measure = f->measure;
    n->target = f->target;
    f->verdict.manifest = NULL;
    f->target = NULL;
    pthread_mutex_init(&n->lock, NULL);
    pthread_mutex_init(&n->opening, NULL);
    link_node(t, n);
    /* Before the kernel hears of it: whoever must invalidate all nodes reads this. */
    __atomic_store_n(&t->shared->highest_node, n->id, __ATOMIC_RELAXED);
    return n;
}

struct kvfs_node *kvfs_table_put(struct kvfs_table *t, const char *path, struct kvfs_found *found,
                                 struct ct_err *err)
{
    pthread_mutex_lock(&t->lock);
    struct kvfs_node *n = find(t, path, found);
    if (n && add_path(n, path)) {
        n = NULL;
    } else if (n && n->kind != KVFS_NODE_FILE) {
        n->st = found->st;
    } else if (!n) {
        n = new_node(t, path, found);
    }
    if (n) {
        n->lookups++;
    } else {
        ct_err_set(err, CT_NOMEM, "no memory for a file");
    }
    pthread_mutex_unlock(&t->lock);
    verdict_release(&found->verdict);
    free(found->target);
    found->target = NULL;
    return n;
}

/* ---- pins ---- */

static size_t pin_slot(const struct kvfs_table *t, const char *path)
{
    size_t at = hash_text(t, path) & (t->pin_cap - 1);
    while (t->pins[at].path && strcmp(t->pins[at].path, path) != 0) {
        at = (at + 1) & (t->pin_cap - 1);
    }
    return at;
}

struct kvfs_node *kvfs_table_pinned(struct kvfs_table *t, const char *path)
{
    pthread_mutex_lock(&t->lock);
    struct kvfs_node *n = t->pin_cap ? t->pins[pin_slot(t, path)].node : NULL;
    if (n) {
        n->lookups++;
    }
    pthread_mutex_unlock(&t->lock);
    return n;
}

static int grow_pins(struct kvfs_table *t)
{
    if (t->pin_used * 2 < t->pin_cap) {
        return 0;
    }
    struct kvfs_table bigger = {.pin_cap = t->pin_cap ? 2 * t->pin_cap : 64};
    memcpy(bigger.seed, t->seed, sizeof(bigger.seed));
    bigger.pins = calloc(bigger.pin_cap, sizeof(struct name));
    if (!bigger.pins) {
        return -1;
    }
    for (size_t i = 0; i < t->pin_cap; i++) {
        if (t->pins[i].path) {
            bigger.pins[pin_slot(&bigger, t->pins[i].path)] = t->pins[i];
        }
    }
    free(t->pins);
    t->pins = bigger.pins;
    t->pin_cap = bigger.pin_cap;
    return 0;
}

static void pin_name(struct kvfs_table *t, const char *path, struct kvfs_node *node)
{
    if (grow_pins(t)) {
        return; /* without memory the name follows its source: a stale open is still refused */
    }
    struct name *at = &t->pins[pin_slot(t, path)];
    if (!at->path) {
        if (!(at->path = strdup(path))) {
            return;
        }
        at->node = node;
        t->pin_used++;
    } else if (!at->node) {
        at->node = node;
    }
}

void kvfs_table_pin(struct kvfs_table *t, struct kvfs_node *node)
{
    pthread_mutex_lock(&t->lock);
    for (size_t i = 0; i < node->path_count; i++) {
        pin_name(t, node->paths[i], node);
    }
    pthread_mutex_lock(&node->lock);
    node->pinned = true;
    pthread_mutex_unlock(&node->lock);
    pthread_mutex_unlock(&t->lock);
}

/* With the lock held. */
static void free_if_unused(struct kvfs_table *t, struct kvfs_node *n)
{
    pthread_mutex_lock(&n->lock);
    bool used = n->lookups || n->pinned || n->open_count || n->busy || n->held || n->content;
    pthread_mutex_unlock(&n->lock);
    if (!used && n->id != 1) {
        unlink_node(t, n);
        node_free(n);
    }
}

/* With the lock held. Those with content are counted as busy; how many they are. */
static size_t unpin_nodes(struct kvfs_table *t, struct kvfs_node **files)
{
    size_t count = 0;
    for (size_t i = 0; i < t->cap; i++) {
        for (struct kvfs_node *n = t->by_id[i]; n; n = n->next_by_id) {
            pthread_mutex_lock(&n->lock);
            n->pinned = false;
            if (n->content) {
                n->busy++;
                files[count++] = n;
            }
            pthread_mutex_unlock(&n->lock);
        }
    }
    return count;
}

static void forget_names(struct kvfs_table *t, struct name *pins, size_t cap,
                         const struct kvfs_unpin *u)
{
    for (size_t i = 0; i < cap; i++) {
        if (!pins[i].path) {
            continue;
        }
        char *slash = strrchr(pins[i].path, '/');
        uint64_t parent = 1;
        if (slash) {
            struct kvfs_found dir = {.kind = KVFS_NODE_DIR};
            *slash = '\0';
            pthread_mutex_lock(&t->lock);
            const struct kvfs_node *n = find(t, pins[i].path, &dir);
            parent = n ? n->id : 0;
            pthread_mutex_unlock(&t->lock);
        }
        if (parent) {
            u->name(u->ctx, parent, slash ? slash + 1 : pins[i].path);
        }
        free(pins[i].path);
    }
    free(pins);
}

int kvfs_table_unpin_all(struct kvfs_table *t, const struct kvfs_unpin *u, struct ct_err *err)
{
    pthread_mutex_lock(&t->lock);
    struct kvfs_node **files = calloc(t->count + 1, sizeof(struct kvfs_node *));
    if (!files) {
        pthread_mutex_unlock(&t->lock);
        return ct_err_set(err, CT_NOMEM, "no memory to forget what is pinned");
    }
    struct name *pins = t->pins;
    size_t cap = t->pin_cap;
    t->pins = NULL;
    t->pin_cap = t->pin_used = 0;
    size_t count = unpin_nodes(t, files);
    pthread_mutex_unlock(&t->lock);
    forget_names(t, pins, cap, u);
    for (size_t i = 0; i < count; i++) {
        u->file(u->ctx, files[i]);
    }
    free(files);
    return 0;
}

/* ---- the rest ---- */

void kvfs_table_forget(struct kvfs_table *t, uint64_t id, uint64_t n)
{
    pthread_mutex_lock(&t->lock);
    struct kvfs_node *node = get(t, id);
    if (node) {
        node->lookups -= n < node->lookups ? n : node->lookups;
        free_if_unused(t, node);
    }
    pthread_mutex_unlock(&t->lock);
}

void kvfs_table_release(struct kvfs_table *t, struct kvfs_node *node)
{
    pthread_mutex_lock(&t->lock);
    pthread_mutex_lock(&node->lock);
    node->held--;
    pthread_mutex_unlock(&node->lock);
    free_if_unused(t, node);
    pthread_mutex_unlock(&t->lock);
}

struct stat kvfs_table_stat(struct kvfs_table *t, const struct kvfs_node *node)
{
    pthread_mutex_lock(&t->lock);
    struct stat st = node->st;
    pthread_mutex_unlock(&t->lock);
    return st;
}

void kvfs_table_each(struct kvfs_table *t, void (*fn)(void *ctx, struct kvfs_node *node), void *ctx)
{
    pthread_mutex_lock(&t->lock);
    for (size_t i = 0; i < t->cap; i++) {
        for (struct kvfs_node *n = t->by_id[i]; n; n = n->next_by_id) {
            fn(ctx, n);
        }
    }
    pthread_mutex_unlock(&t->lock);
}

char **kvfs_table_paths(struct kvfs_table *t, const struct kvfs_node *node, size_t *count)
{
    pthread_mutex_lock(&t->lock);
    char **paths = calloc(node->path_count ? node->path_count : 1, sizeof(char *));
    *count = 0;
    while (paths && *count < node->path_count) {
        paths[*count] = strdup(node->paths[*count]);
        if (!paths[*count]) {
            kvfs_paths_free(paths, *count);
            paths = NULL;
        } else {
            ++*count;
        }
    }
    pthread_mutex_unlock(&t->lock);
    return paths;
}
