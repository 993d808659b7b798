#include <stdlib.h>
#include <string.h>

#include "kvfs/serve/damage.h"

struct kvfs_damage_memo {
    size_t count, cap;
    struct ct_damage *items;
};

void kvfs_damage_remember(struct kvfs_node *node, const struct ct_damages *d)
{
    pthread_mutex_lock(&node->lock);
    struct kvfs_damage_memo *m = node->damage;
    if (!m) {
        m = node->damage = calloc(1, sizeof(*m));
    }
    for (size_t i = 0; m && i < d->count; i++) {
        bool known = false;
        for (size_t k = 0; k < m->count && !known; k++) {
            known = m->items[k].begin == d->items[i].begin;
        }
        if (known) {
            continue;
        }
        if (m->count == m->cap) {
            size_t cap = m->cap ? 2 * m->cap : 8;
            struct ct_damage *items = realloc(m->items, cap * sizeof(*items));
            if (!items) {
                break; /* it will be found again */
            }
            m->items = items;
            m->cap = cap;
        }
        m->items[m->count++] = d->items[i];
    }
    pthread_mutex_unlock(&node->lock);
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
