#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "kvfs/job/job.h"
#include "kvfs/term.h"

/* What can't be done, collected into one list. */
struct problems {
    struct kvfs_grid grid;
    bool weights, link; /* which hints to give */
};

struct planner {
    struct kvfs_job *job;
    struct kvfs_plan *plan;
    struct problems problems;
};

static void problem(struct planner *p, const char *path, const char *why)
{
    kvfs_grid_cell(&p->problems.grid, "%s", path);
    kvfs_grid_cell(&p->problems.grid, "%s", why);
}

/* ---- manifests ---- */

/* Whether the signing key is still the one that the source's manifest was checked with: then its
 * text can be taken along. The kid alone does not tell. */
static bool same_signer(const struct kvfs_job *job, const struct kvfs_domain *d)
{
    struct ct_manifest *again = NULL;
    if (ct_manifest_parse(d->text.data, d->text.len, job->now, &again, NULL)) {
        return false;
    }
    ct_manifest_unref(again);
    return true;
}

static int plan_old_manifest(const struct kvfs_job *job, struct kvfs_domain *d, struct ct_err *err)
{
    uint64_t old = ct_manifest_generation(d->manifest);
    uint64_t usual = job->kind == KVFS_JOB_REKEY ? old + 1 : old;
    d->generation = job->generation ? job->generation : usual;
    d->sign = job->kind == KVFS_JOB_REKEY || d->generation != old || !same_signer(job, d);
    if (d->generation < old) {
        return ct_err_set(err, CT_USAGE,
                          "%s%s" CT_MANIFEST_NAME
                          " has generation %llu, and generations never go back",
                          d->dir, *d->dir ? "/" : "", (unsigned long long)old);
    }
    return 0;
}

static int find_domains(struct planner *p, struct ct_err *err)
{
    const struct kvfs_job *job = p->job;
    struct kvfs_domains *all = &p->plan->domains;
    if (job->manifest == KVFS_NO) {
        return 0;
    }
    if (job->kind != KVFS_JOB_ENCRYPT &&
        kvfs_domains_find(all, &p->plan->walk, job->old, false, err)) {
        return -1;
    }
    bool root = false;
    for (size_t i = 0; i < all->count; i++) {
        root |= all->items[i].dir[0] == '\0';
        if (plan_old_manifest(job, &all->items[i], err)) {
            return -1;
        }
    }
    if (!root && (job->manifest == KVFS_YES || job->kind == KVFS_JOB_ENCRYPT)) {
        struct kvfs_domain *d = kvfs_domains_add(all, "", 0, err);
        if (!d) {
            return -1;
        }
        d->sign = true;
        d->generation = job->generation ? job->generation : 1;
    }
    return 0;
}

/* ---- tasks ---- */

static void plan_broken(struct planner *p, struct kvfs_task *t, const struct kvfs_recognised *r)
{
    if (p->job->kind == KVFS_JOB_ENCRYPT && kvfs_globs_match(&p->job->copy_plain, t->item->path)) {
        t->step = KVFS_STEP_COPY;
        return;
    }
    p->problems.weights = true;
    problem(p, t->item->path, r->why);
}

static void plan_encrypt(struct planner *p, struct kvfs_task *t, const struct kvfs_recognised *r)
{
    t->step = KVFS_STEP_COPY;
    switch (r->what) {
    case KVFS_WHAT_SIDE:
        break;
    case KVFS_WHAT_PLAIN:
        if (!kvfs_globs_match(&p->job->copy_plain, t->item->path)) {
            t->step = KVFS_STEP_MODEL;
        }
        break;
    case KVFS_WHAT_ENCRYPTED:
        problem(p, t->item->path, "encrypted already (kvfs rewrap and kvfs rekey change keys)");
        break;
    case KVFS_WHAT_BROKEN:
    case KVFS_WHAT_WEIGHTS:
        plan_broken(p, t, r);
        break;
    }
}

/* rewrap and rekey: what the old manifest says decides; without one, what the file is. */
static void plan_again(struct planner *p, struct kvfs_task *t, const struct kvfs_recognised *r)
{
    t->step = r->what == KVFS_WHAT_ENCRYPTED ? KVFS_STEP_MODEL : KVFS_STEP_COPY;
    if (t->listed && (t->listed->kind == CT_ENTRY_SHARD) != (t->step == KVFS_STEP_MODEL)) {
        problem(p, t->item->path, "is not what the manifest says");
    } else if (!t->listed && r->what == KVFS_WHAT_BROKEN) {
        problem(p, t->item->path, r->why);
    } else if (!t->listed && r->what == KVFS_WHAT_PLAIN) {
        kvfs_warn(p->job->command, "%s is not encrypted: copied as it is", t->item->path);
    }
}

static int plan_file(struct planner *p, struct kvfs_task *t, struct ct_err *err)
{
    struct stat st;
    struct kvfs_recognised r;
    int fd = kvfs_open_regular(p->plan->walk.fd, t->item->path, &st, err);
    if (fd < 0) {
        if (err->code != CT_IO || err->sys == EMFILE || err->sys == ENFILE) {
            return -1;
        }
        problem(p, t->item->path, strerrordesc_np(err->sys));
        return 0;
    }
    ct_version_of(&st, &t->version);
    struct ct_source *in = ct_source_fd(fd, err);
    int rc = in ? kvfs_recognise(in, &t->version, t->item->path, &r, err) : -1;
    ct_source_close(in);
    if (rc) {
        return ct_err_wrap(err, "%s", t->item->path);
    }
    if (p->job->kind == KVFS_JOB_ENCRYPT) {
        plan_encrypt(p, t, &r);
    } else {
        plan_again(p, t, &r);
    }
    p->plan->bytes += t->version.size;
    return 0;
}

/* Whether the walk has a directory or file of this identity, that is: whether it will be there. */
static bool taken_along(const struct kvfs_plan *plan, const struct stat *st)
{
    for (size_t i = 0; i < plan->walk.count; i++) {
        const struct kvfs_item *item = &plan->walk.items[i];
        if (item->st.st_ino == st->st_ino && item->st.st_dev == st->st_dev) {
            return true;
        }
    }
    return false;
}

static void plan_link(struct planner *p, struct kvfs_task *t)
{
    struct stat st;
    struct stat root;
    struct ct_err why = CT_ERR_INIT;
    const struct kvfs_item *item = t->item;
    t->step = KVFS_STEP_LINK;
    if (kvfs_resolve_beneath(p->plan->walk.fd, item->path, &st, &why)) {
        p->problems.link |= why.code == CT_LEAVES;
        problem(p, item->path,
                why.code == CT_LEAVES     ? "a link that leaves the directory"
                : why.code == CT_NOTFOUND ? "a link that leads nowhere"
                                          : strerrordesc_np(why.sys));
    } else if (!taken_along(p->plan, &st) &&
               (fstat(p->plan->walk.fd, &root) || root.st_ino != st.st_ino)) {
        problem(p, item->path, "a link to what is left out");
    } else if (t->listed &&
               (t->listed->kind != CT_ENTRY_LINK || strcmp(t->listed->target, item->target) != 0)) {
        problem(p, item->path, "is not what the manifest says");
    }
}

static bool printable_name(const struct kvfs_item *item)
{
    return ct_utf8_ok((const uint8_t *)item->path, strlen(item->path)) &&
           (!item->target || ct_utf8_ok((const uint8_t *)item->target, strlen(item->target)));
}

static int plan_item(struct planner *p, const struct kvfs_item *item, struct ct_err *err)
{
    struct kvfs_task *t = &p->plan->tasks[p->plan->count];
    *t = (struct kvfs_task){.item = item, .domain = kvfs_domain_of(&p->plan->domains, item->path)};
    if (kvfs_is_manifest(item)) {
        return 0; /* made anew, or taken along at the end */
    }
    if (strcmp(item->path, KVFS_STATE_NAME) == 0) {
        problem(p, item->path, "the source itself is unfinished (finish it with --resume)");
        return 0;
    }
    if (item->kind == KVFS_ITEM_DIR) {
        t->step = KVFS_STEP_DIR;
        p->plan->count++;
        return 0;
    }
    if (t->domain && t->domain->manifest) {
        t->listed = ct_manifest_find(t->domain->manifest, kvfs_path_in(t->domain, item->path));
        if (!t->listed) {
            kvfs_warn(p->job->command, "%s is left out: the manifest does not list it", item->path);
            return 0;
        }
    }
    p->plan->count++;
    if (item->kind == KVFS_ITEM_SPECIAL) {
        problem(p, item->path, "neither a file, a directory nor a link");
    } else if (t->domain && !printable_name(item)) {
        problem(p, item->path, "a name that is not UTF-8, which no manifest can list");
    } else if (item->kind == KVFS_ITEM_LINK) {
        plan_link(p, t);
    } else {
        return plan_file(p, t, err);
    }
    return 0;
}

/* What the source's manifests list must be there, or the new one would say less in silence. */
static void find_missing(struct planner *p)
{
    const struct kvfs_plan *plan = p->plan;
    for (size_t i = 0; i < plan->domains.count; i++) {
        const struct kvfs_domain *d = &plan->domains.items[i];
        size_t have = 0;
        for (size_t j = 0; j < plan->count; j++) {
            have += plan->tasks[j].listed && plan->tasks[j].domain == d;
        }
        if (!d->manifest || have == ct_manifest_count(d->manifest)) {
            continue;
        }
        for (size_t j = 0; j < ct_manifest_count(d->manifest); j++) {
            const struct ct_entry *e = ct_manifest_at(d->manifest, j);
            bool found = false;
            for (size_t k = 0; k < plan->count && !found; k++) {
                found = plan->tasks[k].listed == e;
            }
            if (!found) {
                problem(p, e->path, "the manifest lists it, but it is not there");
            }
        }
    }
}

static int print_problems(struct planner *p, struct ct_err *err)
{
    const struct kvfs_job *job = p->job;
    kvfs_printf_safe(stderr, "kvfs %s: nothing was written, because of these:", job->command);
    (void)fputc('\n', stderr);
    kvfs_grid_print(&p->problems.grid, stderr, "  ");
    if (p->problems.link) {
        (void)fputs("Take the directory that holds a link and its target, or a copy without links "
                    "(cp -rL).\n",
                    stderr);
    }
    if (p->problems.weights && job->kind == KVFS_JOB_ENCRYPT) {
        (void)fputs("--copy-plain GLOB takes weights along unencrypted; ", stderr);
    }
    (void)fputs("--exclude GLOB leaves a file out.\n", stderr);
    return ct_err_set(err, CT_USAGE, "%s", "");
}

static void count_steps(struct kvfs_plan *plan)
{
    for (size_t i = 0; i < plan->count; i++) {
        plan->models += plan->tasks[i].step == KVFS_STEP_MODEL;
        plan->copies += plan->tasks[i].step == KVFS_STEP_COPY;
        plan->links += plan->tasks[i].step == KVFS_STEP_LINK;
    }
}

static int check_something(struct planner *p, struct ct_err *err)
{
    if (p->problems.grid.cells) {
        return print_problems(p, err);
    }
    if (p->plan->models == 0) {
        return ct_err_set(err, CT_USAGE, "%s holds no %s to %s", p->job->src,
                          p->job->kind == KVFS_JOB_ENCRYPT ? "safetensors file" : "encrypted file",
                          p->job->command);
    }
    const char *unused = kvfs_globs_unused(&p->job->exclude);
    unused = unused ? unused : kvfs_globs_unused(&p->job->copy_plain);
    if (unused) {
        kvfs_warn(p->job->command, "nothing matched %s", unused);
    }
    return 0;
}

static bool excluded(void *ctx, const char *path)
{
    struct kvfs_job *job = ctx;
    return kvfs_globs_match(&job->exclude, path);
}

static int make(struct planner *p, struct ct_err *err)
{
    struct kvfs_plan *plan = p->plan;
    if (kvfs_walk_dir(p->job->src, excluded, p->job, &plan->walk, err) || find_domains(p, err)) {
        return -1;
    }
    plan->tasks = calloc(plan->walk.count + 1, sizeof(*plan->tasks));
    if (!plan->tasks) {
        return ct_err_set(err, CT_NOMEM, "no memory for a list of files");
    }
    for (size_t i = 0; i < plan->walk.count; i++) {
        if (plan_item(p, &plan->walk.items[i], err)) {
            return -1;
        }
    }
    find_missing(p);
    count_steps(plan);
    return check_something(p, err);
}

int kvfs_plan_make(struct kvfs_job *job, struct kvfs_plan *plan, struct ct_err *err)
{
    struct planner p = {.job = job, .plan = plan, .problems.grid = KVFS_GRID(2, 0)};
    *plan = (struct kvfs_plan){.walk.fd = -1};
    int rc = make(&p, err);
    kvfs_grid_free(&p.problems.grid);
    return rc;
}

void kvfs_plan_free(struct kvfs_plan *plan)
{
    for (size_t i = 0; i < plan->count; i++) {
        ct_entry_arena_free(plan->tasks[i].arena);
    }
    free(plan->tasks);
    kvfs_domains_free(&plan->domains);
    kvfs_walk_free(&plan->walk);
    *plan = (struct kvfs_plan){.walk.fd = -1};
}

int kvfs_task_open(const struct kvfs_plan *plan, const struct kvfs_task *task,
                   struct ct_source **out, struct ct_err *err)
{
    struct stat st;
    struct ct_version now;
    int fd = kvfs_open_regular(plan->walk.fd, task->item->path, &st, err);
    if (fd < 0) {
        return -1;
    }
    ct_version_of(&st, &now);
    if (!ct_version_same(&now, &task->version)) {
        close(fd);
        return ct_err_set(err, CT_STALE, "%s changed meanwhile", task->item->path);
    }
    *out = ct_source_fd(fd, err);
    return *out ? 0 : -1;
}
