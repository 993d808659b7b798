#include "kvfs/serve/rules.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/clock.h"
#include "kvfs/serve/leases.h"
#include "kvfs/serve/paths.h"

enum { ABSENT_SECONDS = 1, BUCKETS = 4096 };

/* What is known of one directory's kvfs.manifest. One that was found stays until a reload, so that
 * taking it away while the mount is up changes nothing; that there is none is asked again. These
 * are never freed: there are as many as directories were looked at. */
struct governed {
    struct governed *next; /* in its bucket */
    char *dir;
    pthread_mutex_t lock;         /* guards what follows; held while the source is read */
    struct ct_manifest *manifest; /* NULL: there is none, or it is refused */
    struct ct_err why;            /* refused */
    bool present;
    bool known;
    int64_t asked; /* ct_now_seconds() */
};

struct kvfs_judge {
    pthread_mutex_t
        lock; /* of the buckets and the count alone: no lookup waits for another's read */
    struct governed *buckets[BUCKETS];
    size_t count;
};

struct kvfs_judge *kvfs_judge_new(struct ct_err *err)
{
    struct kvfs_judge *j = calloc(1, sizeof(*j));
    if (!j) {
        ct_err_set(err, CT_NOMEM, "no memory for manifests");
        return NULL;
    }
    pthread_mutex_init(&j->lock, NULL);
    return j;
}

/* ---- one directory; with its lock held ---- */

static void read_manifest(struct kvfs_serve *s, struct governed *g)
{
    char path[PATH_MAX];
    struct kvfs_opened opened = {.fd = -1};
    struct ct_err err = CT_ERR_INIT;
    struct ct_err why = CT_ERR_INIT;
    struct ct_keysource *keys = s->keys;
    const char *sha256 = NULL; /* that a release names */
    g->known = true;
    g->asked = ct_now_seconds();
    g->present = false;
    int rc = s->leases ? kvfs_leases_manifest(s->leases, g->dir, &keys, &sha256, &why) : 0;
    if (kvfs_path_join(path, g->dir, CT_MANIFEST_NAME) ||
        kvfs_source_open(s, path, &opened, &err)) {
        g->present = err.code != CT_NOTFOUND;
        g->why = err;
        if (sha256 && !g->present) {
            g->present = true;
            ct_err_set(&g->why, CT_REJECTED,
                       "the release names a manifest, and there is no " CT_MANIFEST_NAME);
        }
        kvfs_opened_release(&opened); /* the target of a link that leads nowhere */
        return;
    }
    ct_autobuf text = {0};
    g->present = true;
    if (rc) {
        g->why = why;
    } else if (opened.fd < 0) {
        ct_err_set(&g->why, CT_REJECTED, CT_MANIFEST_NAME " is not a regular file");
    } else if (ct_read_fd(opened.fd, CT_MANIFEST_MAX, &text, &g->why)) {
        ct_err_wrap(&g->why, CT_MANIFEST_NAME);
    } else {
        (void)ct_manifest_parse(text.data, text.len, keys, &g->manifest, &g->why);
    }
    if (g->manifest && sha256 && strcmp(sha256, ct_manifest_digest(g->manifest)) != 0) {
        ct_manifest_unref(g->manifest);
        g->manifest = NULL;
        ct_err_set(&g->why, CT_REJECTED,
                   CT_MANIFEST_NAME " is not that of the generation which was released");
    }
    if (!g->manifest) {
        if (g->dir[0]) {
            ct_err_wrap(&g->why, "%s", g->dir);
        }
        ct_log(CT_LOG_WARN, "%s", g->why.msg);
    }
    kvfs_opened_release(&opened);
}

static void take_rule(const struct governed *g, struct kvfs_rule *out)
{
    ct_manifest_unref(out->manifest);
    out->manifest = g->manifest ? ct_manifest_ref(g->manifest) : NULL;
    out->refused = !g->manifest;
    out->why = g->why;
    (void)snprintf(out->dir, sizeof(out->dir), "%s", g->dir);
}

/* Whether what `g` says of `dir`, which lies in its directory, takes precedence over a manifest
 * that lies in `dir`: that one may be genuine and of another release. */
static bool claims(const struct governed *g, const char *dir)
{
    return g->manifest && ct_manifest_has_dir(g->manifest, kvfs_path_below(dir, g->dir));
}

/* ---- all of them ---- */

static size_t bucket_of(const char *dir)
{
    uint64_t h = 14695981039346656037U;
    for (; *dir; dir++) {
        h = (h ^ (uint8_t)*dir) * 1099511628211U;
    }
    return (h ^ h >> 32) % BUCKETS;
}

/* NULL without memory. */
static struct governed *governed(struct kvfs_judge *j, const char *dir)
{
    pthread_mutex_lock(&j->lock);
    struct governed **bucket = &j->buckets[bucket_of(dir)];
    struct governed *g = *bucket;
    while (g && strcmp(g->dir, dir) != 0) {
        g = g->next;
    }
    if (!g && (g = calloc(1, sizeof(*g)))) {
        g->dir = strdup(dir);
        if (g->dir) {
            pthread_mutex_init(&g->lock, NULL);
            g->next = *bucket;
            *bucket = g;
            j->count++;
        } else {
            free(g);
            g = NULL;
        }
    }
    pthread_mutex_unlock(&j->lock);
    return g;
}

int kvfs_judge_rule(struct kvfs_serve *s, const char *path, bool is_dir, struct kvfs_rule *out,
                    struct ct_err *err)
{
    char dir[PATH_MAX];
    bool found = false;
    memset(out, 0, sizeof(*out));
    (void)snprintf(dir, sizeof(dir), "%s", path);
    if (!is_dir) {
        kvfs_path_up(dir);
    }
    for (;; kvfs_path_up(dir)) {
        struct governed *g = governed(s->judge, dir);
        if (!g) {
            ct_manifest_unref(out->manifest);
            return ct_err_set(err, CT_NOMEM, "no memory for manifests");
        }
        pthread_mutex_lock(&g->lock);
        if (!g->known || (!g->manifest && ct_now_seconds() - g->asked >= ABSENT_SECONDS)) {
            read_manifest(s, g);
        }
        if (g->present && (!found || claims(g, out->dir))) {
            take_rule(g, out);
            found = true;
        }
        pthread_mutex_unlock(&g->lock);
        if (!dir[0]) {
            break;
        }
    }
    (void)snprintf(out->rest, sizeof(out->rest), "%s", kvfs_path_below(path, out->dir));
    return 0;
}

/* All directories that are known now; *count of them, owned by the caller. NULL without memory. */
static struct governed **all_of(struct kvfs_judge *j, size_t *count)
{
    pthread_mutex_lock(&j->lock);
    struct governed **all = calloc(j->count + 1, sizeof(struct governed *));
    *count = 0;
    for (size_t i = 0; all && i < BUCKETS; i++) {
        for (struct governed *g = j->buckets[i]; g; g = g->next) {
            all[(*count)++] = g;
        }
    }
    pthread_mutex_unlock(&j->lock);
    return all;
}

int kvfs_judge_reload(struct kvfs_serve *s, struct ct_err *err)
{
    size_t count = 0;
    struct governed **all = all_of(s->judge, &count);
    if (!all) {
        return ct_err_set(err, CT_NOMEM, "no memory to forget manifests");
    }
    for (size_t i = 0; i < count; i++) {
        pthread_mutex_lock(&all[i]->lock);
        ct_manifest_unref(all[i]->manifest);
        all[i]->manifest = NULL;
        all[i]->known = false;
        pthread_mutex_unlock(&all[i]->lock);
    }
    free(all);
    return 0;
}

/* ---- for status ---- */

static json_t *missing_of(struct kvfs_serve *s, const char *dir, const struct ct_manifest *m)
{
    json_t *all = json_array();
    for (size_t i = 0; i < ct_manifest_count(m); i++) {
        char path[PATH_MAX];
        struct kvfs_opened opened = {.fd = -1};
        struct ct_err err = CT_ERR_INIT;
        const struct ct_entry *e = ct_manifest_at(m, i);
        if (kvfs_path_join(path, dir, e->path) == 0 && kvfs_source_open(s, path, &opened, &err) &&
            err.code == CT_NOTFOUND) {
            json_array_append_new(all, json_string(e->path));
        }
        kvfs_opened_release(&opened);
    }
    return all;
}

static json_t *state_of(struct kvfs_serve *s, struct governed *g)
{
    pthread_mutex_lock(&g->lock);
    struct ct_manifest *m = g->manifest ? ct_manifest_ref(g->manifest) : NULL;
    json_t *refused =
        !m && g->present ? json_pack("{s:s,s:s}", "directory", g->dir, "error", g->why.msg) : NULL;
    pthread_mutex_unlock(&g->lock);
    if (!m) {
        return refused;
    }
    json_t *state = json_pack("{s:s,s:I,s:I,s:s,s:o}", "directory", g->dir, "generation",
                              (json_int_t)ct_manifest_generation(m), "entries",
                              (json_int_t)ct_manifest_count(m), "digest", ct_manifest_digest(m),
                              "missing", missing_of(s, g->dir, m));
    ct_manifest_unref(m);
    return state;
}

json_t *kvfs_judge_manifests(struct kvfs_serve *s)
{
    size_t count = 0;
    struct governed **dirs = all_of(s->judge, &count);
    json_t *all = json_array();
    for (size_t i = 0; dirs && i < count; i++) {
        json_t *one = state_of(s, dirs[i]);
        if (one) {
            json_array_append_new(all, one);
        }
    }
    free(dirs);
    return all;
}
