#include "kvfs/verify.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "format/policy/parse.h"
#include "format/policy/policy.h"
#include "format/writer.h"
#include "kvfs/progress.h"

enum { THREADS_MAX = 256 };

/* What the threads that read one model share. */
struct readers {
    struct ct_model *model;
    struct kvfs_verified *out;
    pthread_mutex_t lock; /* out */
    atomic_uint next;
    atomic_bool stop;
};

static void note_damages(struct readers *r, const struct ct_damages *found)
{
    pthread_mutex_lock(&r->lock);
    struct ct_damages *kept = &r->out->damages;
    for (size_t i = 0; i < found->count; i++) {
        r->out->wrong = true;
        r->out->damage_count++;
        if (kept->count < KVFS_VERIFY_DAMAGES) {
            kept->items[kept->count++] = found->items[i];
        }
    }
    pthread_mutex_unlock(&r->lock);
}

static void note_failure(struct readers *r, const struct ct_err *err)
{
    pthread_mutex_lock(&r->lock);
    r->out->wrong = true;
    r->out->why = *err;
    pthread_mutex_unlock(&r->lock);
    atomic_store(&r->stop, true);
}

static void *read_extents(void *arg)
{
    struct readers *r = arg;
    uint8_t *buf = malloc(CT_EXTENT_MAX);
    uint32_t count = ct_model_extent_count(r->model);
    struct ct_err err = CT_ERR_INIT;
    if (!buf) {
        ct_err_set(&err, CT_NOMEM, "no memory to read into");
        note_failure(r, &err);
        return NULL;
    }
    for (uint32_t i; !atomic_load(&r->stop) && (i = atomic_fetch_add(&r->next, 1)) < count;) {
        struct ct_extent extent;
        struct ct_damages damages = {0};
        ct_model_extent(r->model, i, &extent);
        if (ct_model_verify(r->model, i, buf, &damages, &err)) {
            note_failure(r, &err);
        } else {
            note_damages(r, &damages);
        }
        ct_damages_free(&damages);
        if (kvfs_progress_add(NULL, extent.len)) {
            atomic_store(&r->stop, true);
        }
    }
    free(buf); /* ciphertext, and what is not encrypted */
    return NULL;
}

static unsigned thread_count(unsigned wanted, uint32_t extents)
{
    cpu_set_t set;
    unsigned n = wanted;
    if (n == 0) {
        n = sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
    }
    n = n > THREADS_MAX ? THREADS_MAX : n;
    return n > extents ? extents : n;
}

static void read_all(struct readers *r, unsigned threads)
{
    pthread_t ids[THREADS_MAX];
    unsigned started = 0;
    unsigned wanted = thread_count(threads, ct_model_extent_count(r->model));
    while (started + 1 < wanted && pthread_create(&ids[started], NULL, read_extents, r) == 0) {
        started++;
    }
    (void)read_extents(r);
    while (started > 0) {
        (void)pthread_join(ids[--started], NULL);
    }
}

/* A policy that can't be parsed refuses everywhere: that is wrong with the file itself. Said after
 * the signature, which says whether it is the file's own. */
static int parse_policy(struct ct_source *in, const struct ct_version *v, struct ct_err *err)
{
    struct ct_header *h = NULL;
    struct ct_policy_field field = {0};
    struct ct_policy parsed;
    if (ct_header_read(in, v, NULL, &h, err)) {
        return -1;
    }
    int rc = ct_meta_policy(h, &field, err);
    if (rc == 0) {
        rc = ct_policy_parse(&parsed, field.local, field.local_len, err);
        ct_policy_free(&parsed);
    }
    ct_policy_field_free(&field);
    ct_header_free(h);
    return rc;
}

/* The policy is for readers; what it says here and now is told, and does not count. */
static void ask_policy(const struct ct_model *m, const char *path, struct kvfs_verified *out)
{
    char slashed[PATH_MAX];
    const char *base = kvfs_base_name(path);
    ct_autofree char *dir = strndup(path, base > path ? (size_t)(base - path - 1) : 0);
    (void)snprintf(slashed, sizeof(slashed), "/%s", path);
    const struct ct_policy_context context = {
        .uid = getuid(),
        .unix_time = time(NULL),
        .path = slashed,
        .model = dir ? dir : "",
    };
    json_t *input = ct_policy_input(&context);
    (void)ct_model_allow(m, input, &out->policy);
    json_decref(input);
}

static int by_begin(const void *a, const void *b)
{
    const struct ct_damage *x = a;
    const struct ct_damage *y = b;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

int kvfs_verify_model(const struct kvfs_verify *how, struct ct_source *in,
                      const struct ct_version *v, const struct ct_manifest *manifest,
                      const char *path, struct kvfs_verified *out)
{
    struct ct_model *model = NULL;
    const struct ct_open open = {
        .source = in,
        .version = *v,
        .keys = how->keys,
        .manifest = manifest,
        .path = path,
    };
    *out = (struct kvfs_verified){.model = true};
    out->damages.items = calloc(KVFS_VERIFY_DAMAGES, sizeof(*out->damages.items));
    if (!out->damages.items) {
        out->wrong = true;
        ct_err_set(&out->why, CT_NOMEM, "no memory for a list of damages");
        ct_source_close(in);
        return 0;
    }
    struct ct_err policy = CT_ERR_INIT;
    int parsed = parse_policy(in, v, &policy);
    if (ct_model_open(&open, &model, &out->why)) {
        out->wrong = true;
        return kvfs_progress_add(NULL, v->size) ? -1 : 0;
    }
    if (parsed) {
        out->wrong = true;
        out->why = policy;
    } else {
        ask_policy(model, path, out);
    }
    struct readers r = {.model = model, .out = out, .lock = PTHREAD_MUTEX_INITIALIZER};
    ct_model_info(model, &out->info);
    read_all(&r, how->threads);
    if (out->damages.count) {
        qsort(out->damages.items, out->damages.count, sizeof(*out->damages.items), by_begin);
    }
    out->bytes = ct_model_body_len(model);
    ct_model_unref(model);
    return kvfs_interrupted() ? -1 : 0;
}

int kvfs_verify_plain(struct ct_source *in, const struct ct_version *v,
                      const struct ct_entry *entry, struct kvfs_verified *out)
{
    struct ct_entry is = {0};
    struct ct_entry_arena *arena = NULL;
    const struct ct_write_options opt = {.progress = kvfs_progress_add};
    *out = (struct kvfs_verified){.bytes = v->size};
    if (v->size != entry->size) {
        out->wrong = true;
        ct_err_set(&out->why, CT_TAG, "%llu bytes, the manifest says %llu",
                   (unsigned long long)v->size, (unsigned long long)entry->size);
    } else if (ct_copy_file(in, v, &opt, -1, NULL, 0, &is, &arena, &out->why)) {
        out->wrong = true;
    } else if (memcmp(is.sha256, entry->sha256, sizeof(is.sha256)) != 0) {
        out->wrong = true;
        ct_err_set(&out->why, CT_TAG, "SHA-256 is not what the manifest says");
    }
    ct_entry_arena_free(arena);
    ct_source_close(in);
    return kvfs_interrupted() ? -1 : 0;
}

void kvfs_verified_release(struct kvfs_verified *v)
{
    ct_damages_free(&v->damages);
}
