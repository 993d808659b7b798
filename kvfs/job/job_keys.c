#include <fcntl.h>
#include <string.h>

#include "format/base/file.h"
#include "format/policy/parse.h"
#include "format/policy/policy.h"
#include "kvfs/job/job.h"
#include "kvfs/term.h"

static int read_policy(const char *command, const char *path, bool local, struct ct_buf *out,
                       struct ct_err *err)
{
    if (ct_read_file(AT_FDCWD, path, CT_POLICY_MAX, out, err)) {
        return ct_err_wrap(err, "policy");
    }
    if (!ct_utf8_ok(out->data, out->len) || (out->len && memchr(out->data, '\0', out->len))) {
        return ct_err_set(err, CT_USAGE, "policy %s: not a text in UTF-8", path);
    }
    struct ct_err why = CT_ERR_INIT;
    struct ct_policy parsed;
    if (local && ct_policy_parse(&parsed, (const char *)out->data, out->len, &why)) {
        kvfs_warn(command, "%s: kvfs will refuse every file with this policy: %s", path, why.msg);
    }
    if (local) {
        ct_policy_free(&parsed);
    }
    ct_buf_putc(out, '\0');
    return ct_buf_ok(out, err);
}

static int read_policies(struct kvfs_job *job, struct ct_err *err)
{
    if (job->policy_file) {
        if (read_policy(job->command, job->policy_file, true, &job->policy, err)) {
            return -1;
        }
        job->write.policy_local = (const char *)job->policy.data;
    }
    if (job->remote_policy_file) {
        if (read_policy(job->command, job->remote_policy_file, false, &job->remote_policy, err)) {
            return -1;
        }
        job->write.policy_remote = (const char *)job->remote_policy.data;
    }
    return 0;
}

/* The signing key may stay what it is while the master key changes: then --to-key has none. */
static int find_signer(struct kvfs_job *job, struct ct_err *err)
{
    struct ct_write_keys *w = &job->write_keys;
    struct ct_keyring *ring = job->to_ring ? job->to_ring : job->ring;
    int rc = ct_keyring_signer(ring, job->sign_kid, &w->seed, &w->sign_kid, job->sign_pub, err);
    if (rc && job->to_ring && err->code == CT_NOKEY) {
        ring = job->ring;
        rc = ct_keyring_signer(ring, job->sign_kid, &w->seed, &w->sign_kid, job->sign_pub, err);
    }
    job->now = ct_keyring_source(ring);
    if (rc == 0) {
        w->sign_jku = ct_keyring_jku(ring, w->seed);
    }
    return rc;
}

int kvfs_job_prepare(struct kvfs_job *job, struct ct_err *err)
{
    struct ct_write_keys *w = &job->write_keys;
    if (read_policies(job, err) || (!job->ring && kvfs_keys_load(&job->keys, &job->ring, err))) {
        return -1;
    }
    if (job->to_keys.count && kvfs_keys_load(&job->to_keys, &job->to_ring, err)) {
        return -1;
    }
    struct ct_keyring *to = job->to_ring ? job->to_ring : job->ring;
    if (ct_keyring_master(to, job->master_kid, &w->master, &w->alg, &w->master_kid, err) ||
        find_signer(job, err)) {
        return -1;
    }
    w->master_jku = ct_keyring_jku(to, w->master);
    if (job->kind != KVFS_JOB_ENCRYPT) {
        job->old = ct_keyring_source(job->ring);
    }
    return 0;
}

void kvfs_job_release(struct kvfs_job *job)
{
    ct_keyring_free(job->ring);
    ct_keyring_free(job->to_ring);
    ct_buf_free(&job->policy);
    ct_buf_free(&job->remote_policy);
    kvfs_globs_free(&job->exclude);
    kvfs_globs_free(&job->copy_plain);
    kvfs_globs_free(&job->tensors);
    kvfs_globs_free(&job->skip_tensors);
}
