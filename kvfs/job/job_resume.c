#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/sha256.h"
#include "format/jws.h"
#include "kvfs/job/job.h"
#include "kvfs/term.h"

enum { NOTE_MAX = 256 << 20 };

/* ---- what must be the same ---- */

static json_t *text_json(const char *text, size_t n)
{
    ct_autobuf safe = {0};
    kvfs_put_safe(&safe, text, n);
    return safe.failed ? NULL : json_stringn(safe.len ? (const char *)safe.data : "", safe.len);
}

static json_t *globs_json(const struct kvfs_globs *g)
{
    json_t *all = json_array();
    for (size_t i = 0; i < g->count; i++) {
        (void)json_array_append_new(all, text_json(g->items[i], strlen(g->items[i])));
    }
    return all;
}

static json_t *digest_json(const struct ct_buf *text)
{
    uint8_t digest[CT_DIGEST];
    char hex[2 * CT_DIGEST + 1];
    if (ct_sha256(text->data ? text->data : (const uint8_t *)"", text->len, digest, NULL)) {
        return NULL;
    }
    ct_hex(hex, digest, sizeof(digest));
    return json_string(hex);
}

/* Tells one master key from another of the same kid. The key is 128 random bits at least, and
 * stands first: nothing is learnt of it. */
static json_t *key_json(const struct ct_secret *key)
{
    static const char use[] = "kvfs: for --resume";
    uint8_t digest[CT_DIGEST];
    char hex[2 * CT_DIGEST + 1];
    ct_autosha256 *sha = ct_sha256_new(NULL);
    if (!sha || ct_sha256_update(sha, ct_secret_peek(key), ct_secret_len(key), NULL) ||
        ct_sha256_update(sha, use, sizeof(use), NULL) || ct_sha256_take(sha, digest, NULL)) {
        return NULL;
    }
    ct_hex(hex, digest, sizeof(digest));
    return json_string(hex);
}

json_t *kvfs_resume_options(const struct kvfs_job *job)
{
    const struct ct_write_keys *k = &job->write_keys;
    ct_autofree char *resolved = realpath(job->src, NULL);
    const char *src = resolved ? resolved : job->src;
    const struct {
        const char *name;
        json_t *value;
    } options[] = {
        {"source", text_json(src, strlen(src))},
        {"algorithm", json_string(ct_alg_name(k->alg))},
        {"master key", text_json(k->master_kid.p, k->master_kid.n)},
        {"master key, of the same kid", key_json(k->master)},
        {"jku of the master key", text_json(k->master_jku.p, k->master_jku.n)},
        {"signing key", text_json(k->sign_kid.p, k->sign_kid.n)},
        {"jku of the signing key", text_json(k->sign_jku.p, k->sign_jku.n)},
        {"format version", json_integer(job->write.version)},
        {"chunk size", json_integer((json_int_t)job->write.chunk_size)},
        {"generation", json_integer((json_int_t)job->generation)},
        {"choice of a manifest", json_integer(job->manifest)},
        {"policy", digest_json(&job->policy)},
        {"remote policy", digest_json(&job->remote_policy)},
        {"--exclude", globs_json(&job->exclude)},
        {"--copy-plain", globs_json(&job->copy_plain)},
        {"--tensors", globs_json(&job->tensors)},
        {"--skip-tensors", globs_json(&job->skip_tensors)},
    };
    json_t *all = json_object();
    for (size_t i = 0; i < sizeof(options) / sizeof(*options); i++) {
        if (json_object_set_new(all, options[i].name, options[i].value)) {
            json_decref(all);
            all = NULL; /* what follows is freed by the call itself */
        }
    }
    return all;
}

static int check_options(const struct kvfs_job *job, const json_t *note, struct ct_err *err)
{
    const char *command = json_string_value(json_object_get(note, "command"));
    if (!command || strcmp(command, job->command) != 0) {
        return ct_err_set(err, CT_USAGE, "it was begun by kvfs %s", command ? command : "?");
    }
    const json_t *then = json_object_get(note, "options");
    json_t *now = kvfs_resume_options(job);
    const char *name = NULL;
    json_t *value = NULL;
    int rc = now ? 0 : ct_err_set(err, CT_NOMEM, "no memory for a note");
    json_object_foreach(now, name, value)
    {
        if (rc == 0 && !json_equal(value, json_object_get(then, name))) {
            rc = ct_err_set(err, CT_USAGE, "it was begun with another %s: that must be the same",
                            name);
        }
    }
    json_decref(now);
    return rc;
}

/* ---- what is finished ---- */

json_t *kvfs_version_json(const struct ct_version *v)
{
    /* Not the device: its number may be another one after a reboot. */
    return json_pack("[I,I,I,I]", (json_int_t)v->ino, (json_int_t)v->size, (json_int_t)v->mtime_ns,
                     (json_int_t)v->ctime_ns);
}

static bool same_version(const json_t *noted, const struct ct_version *v)
{
    json_t *now = kvfs_version_json(v);
    bool same = now && json_equal(noted, now);
    json_decref(now);
    return same;
}

static struct kvfs_task *find_task(const struct kvfs_plan *plan, const char *path)
{
    size_t lo = 0;
    size_t hi = plan->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(plan->tasks[mid].item->path, path);
        if (c == 0) {
            return &plan->tasks[mid];
        }
        lo = c < 0 ? mid + 1 : lo;
        hi = c < 0 ? hi : mid;
    }
    return NULL;
}

/* Only what is still the file that was written, and proves it, is finished. */
static bool is_finished(struct kvfs_job *job, int dirfd, struct kvfs_task *t, const json_t *noted)
{
    struct stat st;
    struct ct_version v;
    char sha256[2 * CT_DIGEST + 1];
    const char *was = json_string_value(json_object_get(noted, "sha256"));
    if ((t->step != KVFS_STEP_MODEL && t->step != KVFS_STEP_COPY) || !was ||
        !same_version(json_object_get(noted, "source"), &t->version)) {
        return false;
    }
    ct_autofd fd = kvfs_open_regular(dirfd, t->item->path, &st, NULL);
    if (fd < 0) {
        return false;
    }
    ct_version_of(&st, &v);
    if (!same_version(json_object_get(noted, "output"), &v) ||
        kvfs_file_entry(job, dirfd, t->item->path, t, &v, NULL) ||
        !same_version(json_object_get(noted, "output"), &v)) {
        return false;
    }
    ct_hex(sha256, t->entry.sha256, CT_DIGEST);
    return strcmp(sha256, was) == 0;
}

static void mark_finished(struct kvfs_job *job, struct kvfs_plan *plan, int dirfd, json_t *done)
{
    const char *path = NULL;
    void *next = NULL;
    json_t *noted = NULL;
    json_object_foreach_safe(done, next, path, noted)
    {
        struct kvfs_task *t = find_task(plan, path);
        if (t && is_finished(job, dirfd, t, noted)) {
            t->done = true;
            continue;
        }
        if (t) {
            ct_entry_arena_free(t->arena);
            t->arena = NULL;
        }
        (void)json_object_del(done, path);
    }
}

/* ---- what is not ---- */

char *kvfs_final_path(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t n = strlen(name);
    char *out = NULL;
    if (n > 22 && name[0] == '.' && strcmp(name + n - 4, ".tmp") == 0 && name[n - 21] == '.' &&
        strspn(name + n - 20, "0123456789abcdef") == 16 &&
        asprintf(&out, "%.*s%.*s", (int)(name - path), path, (int)(n - 22), name + 1) < 0) {
        out = NULL;
    }
    return out;
}

static bool is_own_note(const struct kvfs_plan *plan, const char *path)
{
    if (strcmp(path, KVFS_STATE_NAME) == 0) {
        return true;
    }
    for (size_t i = 0; i < plan->domains.count; i++) {
        size_t n = strlen(plan->domains.items[i].dir);
        if (strncmp(path, plan->domains.items[i].dir, n) == 0 && (n == 0 || path[n] == '/') &&
            strcmp(path + n + (n > 0), CT_MANIFEST_NAME) == 0) {
            return true;
        }
    }
    return false;
}

enum fate { KEEP, REMOVE, FOREIGN };

static enum fate fate_of(const struct kvfs_plan *plan, const struct kvfs_item *item)
{
    struct kvfs_task *t = find_task(plan, item->path);
    if (is_own_note(plan, item->path) && item->kind == KVFS_ITEM_FILE) {
        return KEEP;
    }
    if (item->kind == KVFS_ITEM_DIR) {
        return t && t->step == KVFS_STEP_DIR ? KEEP : FOREIGN;
    }
    if (t) {
        t->done |= t->step == KVFS_STEP_LINK && item->kind == KVFS_ITEM_LINK &&
                   strcmp(t->item->target, item->target) == 0;
        return t->step == KVFS_STEP_DIR ? FOREIGN : t->done ? KEEP : REMOVE;
    }
    ct_autofree char *final = kvfs_final_path(item->path);
    return final && (find_task(plan, final) || is_own_note(plan, final)) ? REMOVE : FOREIGN;
}

static int clean(const struct kvfs_plan *plan, const struct kvfs_walk *out, struct ct_err *err)
{
    for (size_t i = 0; i < out->count; i++) {
        if (fate_of(plan, &out->items[i]) == FOREIGN) {
            return ct_err_set(err, CT_EXISTS, "it holds %s, which is not of this run",
                              out->items[i].path);
        }
    }
    for (size_t i = 0; i < out->count; i++) {
        const char *path = out->items[i].path;
        if (fate_of(plan, &out->items[i]) == REMOVE && unlinkat(out->fd, path, 0)) {
            return ct_err_sys(err, errno, "%s", path);
        }
    }
    return 0;
}

static int read_note(const struct kvfs_job *job, int dirfd, json_t **note, struct ct_err *err)
{
    ct_autobuf text = {0};
    ct_autobuf payload = {0};
    struct ct_jws jws;
    struct stat st;
    ct_autofd fd = kvfs_open_regular(dirfd, KVFS_STATE_NAME, &st, err);
    if (fd < 0 || ct_read_fd(fd, NOTE_MAX, &text, err) ||
        ct_jws_parse(text.data, text.len, KVFS_STATE_TYP, &jws, err)) {
        return ct_err_wrap(err, "%s", KVFS_STATE_NAME);
    }
    if (ct_jws_verify(&jws, job->sign_pub, err)) {
        return ct_err_set(err, CT_REJECTED, "%s was not made with this signing key",
                          KVFS_STATE_NAME);
    }
    if (ct_jws_payload(&jws, &payload, err)) {
        return -1;
    }
    *note = json_loadb((const char *)payload.data, payload.len, JSON_REJECT_DUPLICATES, NULL);
    return *note ? 0 : ct_err_set(err, CT_MALFORMED, "%s is not JSON", KVFS_STATE_NAME);
}

int kvfs_resume(struct kvfs_job *job, struct kvfs_plan *plan, int dirfd, json_t **done,
                struct ct_err *err)
{
    json_t *note = NULL;
    if (read_note(job, dirfd, &note, err)) {
        return -1;
    }
    int rc = check_options(job, note, err);
    *done = json_incref(json_object_get(note, "done"));
    json_decref(note);
    if (rc == 0 && !json_is_object(*done)) {
        rc = ct_err_set(err, CT_MALFORMED, "%s is incomplete", KVFS_STATE_NAME);
    }
    kvfs_autowalk out = {.fd = -1};
    if (rc == 0) {
        mark_finished(job, plan, dirfd, *done);
        rc = kvfs_walk_dir(job->out, NULL, NULL, &out, err) || clean(plan, &out, err) ? -1 : 0;
    }
    if (rc) {
        json_decref(*done);
        *done = NULL;
    }
    return rc;
}
