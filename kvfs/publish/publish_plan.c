#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "format/base/file.h"
#include "format/policy/parse.h"
#include "kvfs/progress.h"
#include "kvfs/publish/publish.h"
#include "kvfs/term.h"

/* ---- what the server would refuse, said before anything is encrypted ---- */

static void problem(struct kvfs_grid *g, const char *path, const char *why)
{
    kvfs_grid_cell(g, "%s", path);
    kvfs_grid_cell(g, "%s", why);
}

static int check_header(struct kvfs_publish *p, struct kvfs_job *job, const struct kvfs_plan *plan,
                        const struct kvfs_task *t, struct kvfs_grid *problems, struct ct_err *err)
{
    uint64_t len = 0;
    char size[KVFS_SIZE_TEXT];
    char max[KVFS_SIZE_TEXT];
    char why[160];
    struct ct_source *in = NULL;
    if (kvfs_task_open(plan, t, &in, err)) {
        return -1;
    }
    int rc = ct_encrypt_header_len(in, &t->version, &job->write_keys, &job->write, &len, err);
    ct_source_close(in);
    if (rc && err->code != CT_USAGE) {
        return ct_err_wrap(err, "%s", t->item->path);
    }
    if (rc) { /* too large for any header, among others */
        problem(problems, t->item->path, err->msg);
    } else if (len > p->max_header) {
        (void)snprintf(why, sizeof(why),
                       "its header would have %s, and the server takes %s: use a larger "
                       "--chunk-size, or more files",
                       kvfs_size_text(size, len), kvfs_size_text(max, p->max_header));
        problem(problems, t->item->path, why);
    }
    job->hooks.bytes += len;
    return 0;
}

static int check_tasks(struct kvfs_publish *p, struct kvfs_job *job, const struct kvfs_plan *plan,
                       struct kvfs_grid *problems, struct ct_err *err)
{
    for (size_t i = 0; i < plan->count; i++) {
        const struct kvfs_task *t = &plan->tasks[i];
        if (t->step != KVFS_STEP_MODEL) {
            continue;
        }
        if (!kx_is_path(t->item->path)) {
            problem(problems, t->item->path, "a name that the server does not take");
        } else if (check_header(p, job, plan, t, problems, err)) {
            return -1;
        }
    }
    return plan->models <= KX_HEADERS_MAX
               ? 0
               : ct_err_set(err, CT_USAGE, "%zu files, and the server takes %d", plan->models,
                            KX_HEADERS_MAX);
}

/* kvfs encrypt takes any text for a key server of whatever kind; this one reads a subset. */
static int check_policy(const struct kvfs_job *job, struct ct_err *err)
{
    const char *text = job->write.policy_remote;
    struct ct_policy parsed;
    if (!text) {
        return 0;
    }
    int rc = ct_policy_parse(&parsed, text, strlen(text), err);
    ct_policy_free(&parsed);
    return rc ? ct_err_wrap(err, "the server does not take %s", job->remote_policy_file) : 0;
}

static int check_all(struct kvfs_publish *p, struct kvfs_job *job, const struct kvfs_plan *plan,
                     struct ct_err *err)
{
    struct kvfs_grid problems = KVFS_GRID(2, 0);
    int rc = check_policy(job, err) || check_tasks(p, job, plan, &problems, err) ? -1 : 0;
    if (rc == 0 && problems.cells) {
        (void)fputs("kvfs publish: nothing was encrypted, because of these:\n", stderr);
        kvfs_grid_print(&problems, stderr, "  ");
        rc = ct_err_set(err, CT_USAGE, "%s", "");
    }
    kvfs_grid_free(&problems);
    return rc;
}

/* ---- which generation ---- */

/* Whether an earlier run made what lies in OUT current, and was stopped before it could note it. */
static int look_for_current(struct kvfs_publish *p, const struct kvfs_job *job, struct ct_err *err)
{
    struct ct_manifest *m = NULL;
    struct ct_err why = CT_ERR_INIT;
    ct_autobuf text = {0};
    ct_autofd out = open(job->out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (out < 0 || ct_read_file(out, CT_MANIFEST_NAME, CT_MANIFEST_MAX, &text, &why) ||
        ct_manifest_parse(text.data, text.len, job->now, &m, &why)) {
        return 0; /* not so far yet */
    }
    int rc = 0;
    if (ct_manifest_generation(m) == p->generation) {
        json_t *headers = json_array();
        bool whole = true;
        for (size_t i = 0; i < ct_manifest_count(m) && whole; i++) {
            const struct ct_entry *e = ct_manifest_at(m, i);
            whole = e->kind != CT_ENTRY_SHARD ||
                    kvfs_publish_note(headers, out, e->path, p->max_header, &why) == 0;
        }
        rc = whole ? kvfs_publish_same(p, headers, &p->current, err) : 0;
        json_decref(headers);
    }
    ct_manifest_unref(m);
    return rc;
}

static int choose_generation(struct kvfs_publish *p, const struct kvfs_job *job, struct ct_err *err)
{
    if (job->resume && p->generation && look_for_current(p, job, err)) {
        return -1;
    }
    p->number = p->current ? p->generation : p->next;
    if (job->generation && job->generation != p->number) {
        return ct_err_set(err, CT_USAGE, "%s/%s is at generation %llu, and the next one is %llu",
                          p->owner, p->name, (unsigned long long)p->generation,
                          (unsigned long long)p->next);
    }
    return 0;
}

int kvfs_publish_planned(void *ctx, struct kvfs_job *job, struct kvfs_plan *plan,
                         struct ct_err *err)
{
    struct kvfs_publish *p = ctx;
    if (check_all(p, job, plan, err) || choose_generation(p, job, err)) {
        return -1;
    }
    plan->domains.items[0].generation = p->number; /* the only one: SRC's own are not looked at */
    return 0;
}

/* ---- when all is written ---- */

int kvfs_publish_written(void *ctx, const struct kvfs_job *job, const struct kvfs_plan *plan,
                         int dirfd, struct ct_err *err)
{
    struct kvfs_publish *p = ctx;
    bool same = false;
    p->headers = json_array();
    for (size_t i = 0; i < plan->count; i++) {
        const struct kvfs_task *t = &plan->tasks[i];
        if (t->step == KVFS_STEP_MODEL &&
            kvfs_publish_note(p->headers, dirfd, t->item->path, p->max_header, err)) {
            return -1;
        }
    }
    p->header_bytes = job->hooks.bytes;
    if (!p->current) {
        kvfs_progress_item("headers");
        return kvfs_publish_upload(p, dirfd, err);
    }
    /* If the source changed since, OUT was made anew just now. */
    if (kvfs_publish_same(p, p->headers, &same, err)) {
        return -1;
    }
    return same ? 0
                : ct_err_set(err, CT_STALE,
                             "%s changed since it was published as generation %llu: publish it to "
                             "another directory",
                             job->src, (unsigned long long)p->number);
}
