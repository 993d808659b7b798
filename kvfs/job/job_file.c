#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvfs/job/job.h"

bool kvfs_job_choose(void *ctx, struct ct_span tensor)
{
    struct kvfs_job *job = ctx;
    char *name = strndup(tensor.p, tensor.n);
    bool yes = !name || ((job->tensors.count == 0 || kvfs_globs_match_name(&job->tensors, name)) &&
                         !kvfs_globs_match_name(&job->skip_tensors, name));
    job->tensors_seen++;
    job->left_plain += !yes;
    free(name);
    return yes;
}

static bool same_digests(const struct ct_digests *a, const struct ct_digests *b)
{
    return a->begin == b->begin && a->end == b->end && a->piece == b->piece &&
           a->count == b->count &&
           (a->count == 0 || memcmp(a->sha256, b->sha256, a->count * sizeof(*a->sha256)) == 0);
}

static int check_listed(const struct ct_entry *is, const struct ct_entry *listed,
                        struct ct_err *err)
{
    bool same = is->kind == listed->kind && is->size == listed->size &&
                memcmp(is->sha256, listed->sha256, sizeof(is->sha256)) == 0 &&
                is->plain_count == listed->plain_count;
    for (size_t i = 0; same && i < is->plain_count; i++) {
        same = same_digests(&is->plain[i], &listed->plain[i]);
    }
    return same ? 0 : ct_err_set(err, CT_REJECTED, "the content is not what the manifest says");
}

/* rewrap and rekey sign what they write: first the source itself must be what was signed. */
static int make_again(struct kvfs_job *job, struct ct_source *in, struct kvfs_task *t, int dirfd,
                      const char *name, struct ct_err *err)
{
    if (ct_shard_entry(in, &t->version, job->old, &t->entry, &t->arena, err) ||
        (t->listed && check_listed(&t->entry, t->listed, err))) {
        return -1;
    }
    if (job->kind == KVFS_JOB_REWRAP) {
        return ct_rewrap_file(in, &t->version, job->old, &job->write_keys, &job->write, dirfd, name,
                              err);
    }
    ct_entry_arena_free(t->arena);
    t->arena = NULL;
    return ct_rekey_file(in, &t->version, job->old, &job->write_keys, &job->write, dirfd, name,
                         &t->entry, &t->arena, err);
}

static int copy(struct kvfs_job *job, struct ct_source *in, struct kvfs_task *t, int dirfd,
                const char *name, struct ct_err *err)
{
    mode_t mode = (t->item->st.st_mode & 0777) | S_IRUSR;
    if (ct_copy_file(in, &t->version, &job->write, dirfd, name, mode, &t->entry, &t->arena, err)) {
        return -1;
    }
    if (t->listed && check_listed(&t->entry, t->listed, err)) {
        (void)unlinkat(dirfd, name, 0);
        return -1;
    }
    return 0;
}

int kvfs_file_make(struct kvfs_job *job, struct ct_source *in, struct kvfs_task *t, int dirfd,
                   const char *name, struct ct_err *err)
{
    job->tensors_seen = 0;
    job->left_plain = 0;
    if (t->step == KVFS_STEP_COPY) {
        return copy(job, in, t, dirfd, name, err);
    }
    if (job->kind != KVFS_JOB_ENCRYPT) {
        return make_again(job, in, t, dirfd, name, err);
    }
    return ct_encrypt_file(in, &t->version, &job->write_keys, &job->write, dirfd, name, &t->entry,
                           &t->arena, err);
}

int kvfs_file_entry(struct kvfs_job *job, int dirfd, const char *name, struct kvfs_task *t,
                    struct ct_version *version, struct ct_err *err)
{
    struct stat st;
    int fd = kvfs_open_regular(dirfd, name, &st, err);
    if (fd < 0) {
        return -1;
    }
    ct_version_of(&st, version);
    struct ct_source *in = ct_source_fd(fd, err);
    if (!in) {
        return -1;
    }
    int rc = t->step == KVFS_STEP_MODEL
                 ? ct_shard_entry(in, version, job->now, &t->entry, &t->arena, err)
                 : ct_copy_file(in, version, NULL, -1, NULL, 0, &t->entry, &t->arena, err);
    ct_source_close(in);
    return rc;
}

static int build(struct kvfs_job *job, const struct ct_entry *entries, size_t count,
                 struct ct_manifest_builder *b, struct ct_buf *out, struct ct_err *err)
{
    for (size_t i = 0; i < count; i++) {
        if (ct_manifest_builder_add(b, &entries[i], err)) {
            return -1;
        }
    }
    return ct_manifest_builder_sign(b, job->write_keys.seed, job->write_keys.sign_kid, out, err);
}

int kvfs_text_write(int dirfd, const char *name, const struct ct_buf *text, bool replace,
                    struct ct_err *err)
{
    struct ct_newfile f = {.fd = -1};
    if (ct_newfile_open(&f, dirfd, name, 0666, err)) {
        return -1;
    }
    int rc = ct_write_full(f.fd, text->data, text->len, err) ? ct_err_wrap(err, "%s", name)
                                                             : ct_newfile_commit(&f, replace, err);
    ct_newfile_abort(&f);
    return rc;
}

int kvfs_manifest_make(struct kvfs_job *job, const struct ct_entry *entries, size_t count,
                       uint64_t generation, int dirfd, bool replace, struct ct_err *err)
{
    ct_autobuf text = {0};
    struct ct_manifest_builder *b = ct_manifest_builder_new(generation, err);
    if (!b) {
        return -1;
    }
    int rc = build(job, entries, count, b, &text, err);
    ct_manifest_builder_free(b);
    return rc ? ct_err_wrap(err, CT_MANIFEST_NAME)
              : kvfs_text_write(dirfd, CT_MANIFEST_NAME, &text, replace, err);
}
