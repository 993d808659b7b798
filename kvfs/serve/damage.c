#include <stdlib.h>

#include "kvfs/serve/damage.h"

struct kvfs_damage_memo {
    size_t count, cap;
    struct ct_damage *items;
};

static bool is_known(const struct kvfs_damage_memo *m, uint64_t begin)
{
    for (size_t i = 0; i < m->count; i++) {
        if (m->items[i].begin == begin) {
            return true;
        }
    }
    return false;
}

static int add(struct kvfs_damage_memo *m, const struct ct_damage *d)
{
    if (m->count == m->cap) {
        size_t cap = m->cap ? 2 * m->cap : 8;
        struct ct_damage *items = realloc(m->items, cap * sizeof(*items));
        if (!items) {
            return -1;
        }
        m->items = items;
        m->cap = cap;
    }
    m->items[m->count++] = *d;
    return 0;
}

int kvfs_damage_remember(struct kvfs_node *node, const struct ct_damages *d, struct ct_err *err)
{
    pthread_mutex_lock(&node->lock);
    if (!node->damage) {
        node->damage = calloc(1, sizeof(*node->damage));
    }
    int r = node->damage ? 0 : -1;
    for (size_t i = 0; r == 0 && i < d->count; i++) {
        if (!is_known(node->damage, d->items[i].begin)) {
            r = add(node->damage, &d->items[i]);
        }
    }
    pthread_mutex_unlock(&node->lock);
    return r ? ct_err_set(err, CT_NOMEM, "no memory to remember what is damaged") : 0;
}

int kvfs_damage_check(struct kvfs_node *node, uint64_t begin, uint64_t end, struct ct_err *err)
{
    int r = 0;
    pthread_mutex_lock(&node->lock);
    const struct kvfs_damage_memo *m = node->damage;
    for (size_t i = 0; m && i < m->count && r == 0; i++) {
        if (m->items[i].begin < end && begin < m->items[i].end) {
            r = ct_err_set(err, m->items[i].code, "%s", m->items[i].what);
        }
    }
    if (r == 0 && node->stale) {
        r = ct_err_set(err, CT_STALE, "the source changed since it was opened");
    }
    pthread_mutex_unlock(&node->lock);
    return r;
}

void kvfs_damage_memo_free(struct kvfs_damage_memo *m)
{
    if (m) {
        free(m->items);
        free(m);
    }
}
