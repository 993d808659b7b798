#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvfs/serve/damage.h"

struct kvfs_damage_memo {
    size_t count, cap;
    struct ct_damage *items; /* ascending, none overlaps another */
};

/* The first that ends behind `at`, or `count`. */
static size_t find(const struct kvfs_damage_memo *m, uint64_t at)
{
    size_t from = 0;
    size_t to = m->count;
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        if (m->items[middle].end <= at) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    return from;
}

/* Makes one of items [from, to), not none, and d. */
static void join(struct kvfs_damage_memo *m, size_t from, size_t to, const struct ct_damage *d)
{
    struct ct_damage *one = &m->items[from];
    uint64_t end = m->items[to - 1].end;
    one->begin = d->begin < one->begin ? d->begin : one->begin;
    one->end = d->end > end ? d->end : end;
    memmove(one + 1, m->items + to, (m->count - to) * sizeof(*one));
    m->count -= to - from - 1;
}

/* Without room for one more: it and its nearest neighbour, with all that lies between them. */
static void join_nearest(struct kvfs_damage_memo *m, size_t at, const struct ct_damage *d)
{
    bool before =
        at == m->count || (at > 0 && d->begin - m->items[at - 1].end < m->items[at].begin - d->end);
    size_t i = before ? at - 1 : at;
    join(m, i, i + 1, d);
    (void)snprintf(m->items[i].what, sizeof(m->items[i].what),
                   "damaged in more than %d places, here or close by", KVFS_DAMAGES_MAX);
}

static int add(struct kvfs_damage_memo *m, const struct ct_damage *d)
{
    size_t at = find(m, d->begin);
    size_t to = at;
    while (to < m->count && m->items[to].begin < d->end) {
        to++;
    }
    if (to > at) {
        join(m, at, to, d);
        return 0;
    }
    if (m->count == KVFS_DAMAGES_MAX) {
        join_nearest(m, at, d);
        return 0;
    }
    if (m->count == m->cap) {
        size_t cap = m->cap ? 2 * m->cap : 8;
        struct ct_damage *items = realloc(m->items, cap * sizeof(*items));
        if (!items) {
            return -1;
        }
        m->items = items;
        m->cap = cap;
    }
    memmove(m->items + at + 1, m->items + at, (m->count - at) * sizeof(*m->items));
    m->items[at] = *d;
    m->count++;
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
        r = add(node->damage, &d->items[i]);
    }
    pthread_mutex_unlock(&node->lock);
    return r ? ct_err_set(err, CT_NOMEM, "no memory to remember what is damaged") : 0;
}

int kvfs_damage_check(struct kvfs_node *node, uint64_t begin, uint64_t end, struct ct_err *err)
{
    int r = 0;
    pthread_mutex_lock(&node->lock);
    const struct kvfs_damage_memo *m = node->damage;
    size_t at = m ? find(m, begin) : 0;
    if (m && at < m->count && m->items[at].begin < end) {
        r = ct_err_set(err, m->items[at].code, "%s", m->items[at].what);
    } else if (node->stale) {
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
