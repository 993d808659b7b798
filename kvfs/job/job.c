#include "kvfs/job/job.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "kvfs/kvfs.h"
#include "kvfs/progress.h"
#include "kvfs/term.h"

static const char *past(const struct kvfs_job *job)
{
    static const char *const verbs[] = {"encrypted", "rewrapped", "rekeyed"};
    return verbs[job->kind];
}

/* What a run is about to do, and what it came to. */
struct run {
    struct kvfs_job *job;
    struct kvfs_plan plan;
    struct kvfs_state *state;
    int width;   /* of the longest name of a model */
    size_t kept; /* finished by an earlier run */
};

/* Opens the output's directory in which `path` lies. */
static int open_parent(const struct run *r, const char *path, struct ct_err *err)
{
    size_t n = (size_t)(kvfs_base_name(path) - path);
    char *dir = strndup(path, n ? n - 1 : 0);
    int fd = dir ? kvfs_open_beneath(kvfs_state_dir(r->state), dir, O_RDONLY | O_DIRECTORY, err)
                 : ct_err_set(err, CT_NOMEM, "no memory for a path");
    free(dir);
    return fd;
}

static void print_model(const struct run *r, const struct kvfs_task *t)
{
    char size[KVFS_SIZE_TEXT];
    char note[96] = "";
    if (r->job->quiet) {
        return;
    }
    if (r->job->left_plain) {
        (void)snprintf(note, sizeof(note), "  (%zu of %zu tensors left unencrypted)",
                       r->job->left_plain, r->job->tensors_seen);
    }
    kvfs_progress_line("%-*s  %10s%s", r->width, t->item->path,
                       kvfs_size_text(size, t->version.size), note);
}

static int do_file(struct run *r, struct kvfs_task *t, struct ct_err *err)
{
    struct ct_source *in = NULL;
    const char *name = kvfs_base_name(t->item->path);
    if (kvfs_check_interrupted(err) || kvfs_task_open(&r->plan, t, &in, err)) {
        return -1;
    }
    ct_autofd dirfd = open_parent(r, t->item->path, err);
    kvfs_progress_item(t->item->path);
    int rc = dirfd < 0 ? -1 : kvfs_file_make(r->job, in, t, dirfd, name, err);
    ct_source_close(in);
    if (rc) {
        return ct_err_wrap(err, "%s", t->item->path);
    }
    t->done = true;
    if (t->step == KVFS_STEP_MODEL) {
        print_model(r, t);
    }
    return kvfs_state_done(r->state, t, dirfd, name, err);
}

static int do_dir(const struct run *r, const struct kvfs_task *t, struct ct_err *err)
{
    if (mkdirat(kvfs_state_dir(r->state), t->item->path, 0777) && errno != EEXIST) {
        return ct_err_sys(err, errno, "%s", t->item->path);
    }
    return 0;
}

static int do_link(const struct run *r, struct kvfs_task *t, struct ct_err *err)
{
    struct stat st;
    ct_autofd dirfd = open_parent(r, t->item->path, err);
    if (dirfd < 0) {
        return -1;
    }
    if (!t->done && symlinkat(t->item->target, dirfd, kvfs_base_name(t->item->path))) {
        return ct_err_sys(err, errno, "%s", t->item->path);
    }
    t->done = true;
    return kvfs_resolve_beneath(kvfs_state_dir(r->state), t->item->path, &st, err);
}

static int do_task(struct run *r, struct kvfs_task *t, struct ct_err *err)
{
    switch (t->step) {
    case KVFS_STEP_DIR:
        return do_dir(r, t, err);
    case KVFS_STEP_LINK:
        return do_link(r, t, err);
    default:
        r->kept += t->done;
        return t->done ? 0 : do_file(r, t, err);
    }
}

/* Models before what is copied, so that wrong keys fail with nothing written; links last, so that
 * each can be tried. */
static int do_tasks(struct run *r, struct ct_err *err)
{
    static const enum kvfs_step order[] = {KVFS_STEP_DIR, KVFS_STEP_MODEL, KVFS_STEP_COPY,
                                           KVFS_STEP_LINK};
    for (size_t pass = 0; pass < sizeof(order) / sizeof(order[0]); pass++) {
        for (size_t i = 0; i < r->plan.count; i++) {
            struct kvfs_task *t = &r->plan.tasks[i];
            if (t->step == order[pass] && do_task(r, t, err)) {
                return -1;
            }
        }
    }
    return 0;
}

/* ---- manifests ---- */

static size_t collect(const struct run *r, const struct kvfs_domain *d, struct ct_entry *out)
{
    size_t n = 0;
    for (size_t i = 0; i < r->plan.count; i++) {
        const struct kvfs_task *t = &r->plan.tasks[i];
        if (t->domain != d || t->step == KVFS_STEP_DIR) {
            continue;
        }
        out[n] = t->entry;
        if (t->step == KVFS_STEP_LINK) {
            out[n] = (struct ct_entry){.kind = CT_ENTRY_LINK, .target = t->item->target};
        }
        out[n++].path = kvfs_path_in(d, t->item->path);
    }
    return n;
}

static int do_manifest(const struct run *r, const struct kvfs_domain *d, struct ct_err *err)
{
    const struct kvfs_job *job = r->job;
    ct_autofd dirfd =
        kvfs_open_beneath(kvfs_state_dir(r->state), d->dir, O_RDONLY | O_DIRECTORY, err);
    if (dirfd < 0) {
        return -1;
    }
    if (!d->sign) {
        return kvfs_text_write(dirfd, CT_MANIFEST_NAME, &d->text, job->resume, err);
    }
    ct_autofree struct ct_entry *entries = calloc(r->plan.count + 1, sizeof(*entries));
    if (!entries) {
        return ct_err_set(err, CT_NOMEM, "no memory for a manifest");
    }
    return kvfs_manifest_make(r->job, entries, collect(r, d, entries), d->generation, dirfd,
                              job->resume, err);
}

static int do_manifests(const struct run *r, struct ct_err *err)
{
    for (size_t i = 0; i < r->plan.domains.count; i++) {
        if (kvfs_check_interrupted(err) || do_manifest(r, &r->plan.domains.items[i], err)) {
            return -1;
        }
    }
    return 0;
}

/* ---- what is said ---- */

static void warn_of_space(const struct run *r)
{
    struct statvfs fs;
    char have[KVFS_SIZE_TEXT];
    char need[KVFS_SIZE_TEXT];
    uint64_t bytes = 0;
    for (size_t i = 0; i < r->plan.count; i++) {
        bytes += r->plan.tasks[i].done ? 0 : r->plan.tasks[i].version.size;
    }
    if (fstatvfs(kvfs_state_dir(r->state), &fs) == 0 &&
        (uint64_t)fs.f_bavail * fs.f_frsize < bytes) {
        kvfs_warn(r->job->command, "%s has room for %s, and this needs some %s", r->job->out,
                  kvfs_size_text(have, (uint64_t)fs.f_bavail * fs.f_frsize),
                  kvfs_size_text(need, bytes));
    }
}

static void print_manifests(const struct run *r)
{
    const struct ct_span kid = r->job->write_keys.sign_kid;
    for (size_t i = 0; i < r->plan.domains.count; i++) {
        const struct kvfs_domain *d = &r->plan.domains.items[i];
        if (d->sign) {
            kvfs_progress_line("%s%s" CT_MANIFEST_NAME ": generation %" PRIu64 ", signed by %.*s",
                               d->dir, *d->dir ? "/" : "", d->generation, (int)kid.n, kid.p);
        } else {
            kvfs_progress_line("%s%s" CT_MANIFEST_NAME ": generation %" PRIu64 ", taken along",
                               d->dir, *d->dir ? "/" : "", d->generation);
        }
    }
    if (r->plan.domains.count == 0 && r->plan.copies + r->plan.links) {
        kvfs_warn(r->job->command, "no manifest: nothing vouches for the side files");
    }
}

static void print_summary(const struct run *r, double seconds)
{
    char models[64];
    char size[KVFS_SIZE_TEXT];
    char speed[KVFS_SIZE_TEXT];
    const struct kvfs_plan *p = &r->plan;
    ct_autobuf line = {0};
    ct_buf_printf(&line, "%s %s, %zu copied", kvfs_count_text(models, p->models, "file"),
                  past(r->job), p->copies);
    if (p->links) {
        ct_buf_printf(&line, ", %zu linked", p->links);
    }
    if (r->kept) {
        ct_buf_printf(&line, " (%zu of them by an earlier run)", r->kept);
    }
    ct_buf_printf(&line, "; %s in %.1f s", kvfs_size_text(size, p->bytes), seconds);
    if (seconds > 0.05 && !r->kept) {
        ct_buf_printf(&line, " (%s/s)",
                      kvfs_size_text(speed, (uint64_t)((double)p->bytes / seconds)));
    }
    ct_buf_putc(&line, '\0');
    if (!line.failed) {
        kvfs_progress_line("%s", (const char *)line.data);
    }
}

static void warn_unused(const struct kvfs_globs *g, const char *command)
{
    const char *unused = kvfs_globs_unused(g);
    if (unused) {
        kvfs_warn(command, "no tensor's name matched %s", unused);
    }
}

/* ---- a directory ---- */

static int planned(struct run *r, struct ct_err *err)
{
    const struct kvfs_job_hooks *h = &r->job->hooks;
    return h->planned ? h->planned(h->ctx, r->job, &r->plan, err) : 0;
}

static int written(const struct run *r, struct ct_err *err)
{
    const struct kvfs_job_hooks *h = &r->job->hooks;
    return h->written ? h->written(h->ctx, r->job, &r->plan, kvfs_state_dir(r->state), err) : 0;
}

static int work(struct run *r, struct ct_err *err)
{
    if (kvfs_plan_make(r->job, &r->plan, err) || planned(r, err) ||
        kvfs_state_open(r->job, &r->plan, &r->state, err)) {
        return -1;
    }
    uint64_t todo = r->job->hooks.bytes;
    for (size_t i = 0; i < r->plan.count; i++) {
        const struct kvfs_task *t = &r->plan.tasks[i];
        int n = (int)strlen(t->item->path);
        r->width = t->step == KVFS_STEP_MODEL && n > r->width ? n : r->width;
        todo += t->done ? 0 : t->version.size;
    }
    r->width = r->width > 60 ? 60 : r->width;
    warn_of_space(r);
    kvfs_progress_start(todo, r->job->quiet);
    return do_tasks(r, err) || do_manifests(r, err) || written(r, err) ||
                   kvfs_state_finish(r->state, err)
               ? -1
               : 0;
}

static void say_what_is_left(struct run *r)
{
    kvfs_state_abandon(r->state, &r->plan);
    size_t n = kvfs_state_count(r->state);
    char files[64];
    if (n) {
        kvfs_printf_safe(stderr, "%s keeps %s; the same command with --resume goes on from there.",
                         r->job->out, kvfs_count_text(files, n, "finished file"));
        (void)fputc('\n', stderr);
    }
}

static int run_dir(struct kvfs_job *job)
{
    struct ct_err err = CT_ERR_INIT;
    struct run r = {.job = job};
    int rc = work(&r, &err);
    bool began = r.state && kvfs_state_dir(r.state) >= 0;
    double seconds = kvfs_progress_end();
    if (rc == 0 && !job->quiet) {
        print_manifests(&r);
        print_summary(&r, seconds);
        warn_unused(&job->tensors, job->command);
        warn_unused(&job->skip_tensors, job->command);
    } else if (rc) {
        if (kvfs_interrupted()) {
            ct_err_set(&err, CT_BUSY, "interrupted");
        }
        rc = kvfs_complain(job->command, &err);
        if (began) {
            say_what_is_left(&r);
        }
    }
    kvfs_state_free(r.state);
    kvfs_plan_free(&r.plan);
    return rc;
}

/* ---- one file ---- */

static int open_file(struct kvfs_job *job, struct kvfs_task *t, struct ct_source **in,
                     struct ct_err *err)
{
    struct stat st;
    struct kvfs_recognised what;
    int fd = open(job->src, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, &st)) {
        ct_err_sys(err, errno, "%s", job->src);
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    ct_version_of(&st, &t->version);
    *in = ct_source_fd(fd, err);
    if (!*in) {
        return -1;
    }
    if (!S_ISREG(st.st_mode)) {
        return ct_err_set(err, CT_USAGE, "%s is neither a file nor a directory", job->src);
    }
    if (kvfs_recognise(*in, &t->version, job->src, &what, err)) {
        return ct_err_wrap(err, "%s", job->src);
    }
    enum kvfs_what want = job->kind == KVFS_JOB_ENCRYPT ? KVFS_WHAT_PLAIN : KVFS_WHAT_ENCRYPTED;
    if (what.what == want) {
        return 0;
    }
    const char *why = what.what == KVFS_WHAT_ENCRYPTED
                          ? "encrypted already (kvfs rewrap and kvfs rekey change keys)"
                      : what.what == KVFS_WHAT_PLAIN ? "not encrypted"
                      : what.what == KVFS_WHAT_SIDE  ? "no safetensors file"
                                                     : what.why;
    return ct_err_set(err, CT_USAGE, "%s: %s; nothing was written", job->src, why);
}

static int file_into(struct kvfs_job *job, struct kvfs_task *t, struct ct_source *in, int dirfd,
                     const char *name, struct ct_err *err)
{
    struct stat st;
    bool sign = job->manifest == KVFS_YES;
    if (sign && fstatat(dirfd, CT_MANIFEST_NAME, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        return ct_err_set(err, CT_EXISTS, "there is a " CT_MANIFEST_NAME " beside %s already",
                          job->out);
    }
    if (kvfs_file_make(job, in, t, dirfd, name, err)) {
        return ct_err_wrap(err, "%s", job->src);
    }
    t->entry.path = name;
    uint64_t generation = job->generation ? job->generation : 1;
    return sign ? kvfs_manifest_make(job, &t->entry, 1, generation, dirfd, false, err) : 0;
}

static int work_file(struct kvfs_job *job, struct kvfs_task *t, struct ct_err *err)
{
    struct ct_source *in = NULL;
    const char *name = kvfs_base_name(job->out);
    if (!*name) {
        return ct_err_set(err, CT_USAGE, "%s: not the name of a file", job->out);
    }
    int rc = open_file(job, t, &in, err);
    ct_autofd dirfd = rc ? -1 : kvfs_open_dir_of(job->out, err);
    if (dirfd < 0) {
        rc = -1;
    } else {
        kvfs_progress_start(t->version.size, job->quiet);
        kvfs_progress_item(name);
        rc = file_into(job, t, in, dirfd, name, err);
    }
    ct_source_close(in);
    return rc;
}

static int run_file(struct kvfs_job *job)
{
    struct ct_err err = CT_ERR_INIT;
    struct kvfs_item item = {.path = (char *)job->src, .kind = KVFS_ITEM_FILE};
    struct kvfs_task t = {.step = KVFS_STEP_MODEL, .item = &item};
    struct run r = {.job = job};
    if (job->resume) {
        ct_err_set(&err, CT_USAGE, "--resume is for directories; one file is written at once");
        (void)kvfs_complain(job->command, &err);
        return KVFS_USAGE;
    }
    int rc = work_file(job, &t, &err);
    double seconds = kvfs_progress_end();
    if (rc) {
        if (kvfs_interrupted()) {
            ct_err_set(&err, CT_BUSY, "interrupted; nothing was written");
        }
        rc = kvfs_complain(job->command, &err);
    } else {
        r.plan.models = 1;
        r.plan.bytes = t.version.size;
        item.path = (char *)job->out;
        print_model(&r, &t);
        if (!job->quiet) {
            print_summary(&r, seconds);
        }
    }
    ct_entry_arena_free(t.arena);
    return rc;
}

int kvfs_job_run(struct kvfs_job *job)
{
    struct ct_err err = CT_ERR_INIT;
    struct stat st;
    if (stat(job->src, &st)) {
        ct_err_sys(&err, errno, "%s", job->src);
        return kvfs_complain(job->command, &err);
    }
    if (kvfs_job_prepare(job, &err)) {
        kvfs_job_release(job);
        return kvfs_complain(job->command, &err);
    }
    job->write.progress = kvfs_progress_add;
    if (job->tensors.count || job->skip_tensors.count) {
        job->write.choose = kvfs_job_choose;
        job->write.choose_ctx = job;
    }
    int rc = S_ISDIR(st.st_mode) ? run_dir(job) : run_file(job);
    kvfs_job_release(job);
    return rc;
}
