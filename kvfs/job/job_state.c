#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

#include "format/jws.h"
#include "kvfs/job/job.h"

struct kvfs_state {
    struct kvfs_job *job;
    int dirfd;
    bool made;  /* OUT was not there before */
    bool noted; /* this run wrote its note */
    json_t *options;
    json_t *done; /* by path */
    time_t written;
};

/* Whether `fd` is the directory `top` or lies beneath it. */
static int lies_in(int top, int fd, bool *yes, struct ct_err *err)
{
    struct stat want;
    struct stat before = {0};
    ct_autofd at = openat(fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (at < 0 || fstat(top, &want)) {
        return ct_err_sys(err, errno, "the output's directory");
    }
    for (;;) {
        struct stat st;
        if (fstat(at, &st)) {
            return ct_err_sys(err, errno, "the output's directory");
        }
        *yes = st.st_ino == want.st_ino && st.st_dev == want.st_dev;
        if (*yes || (st.st_ino == before.st_ino && st.st_dev == before.st_dev)) {
            return 0;
        }
        before = st;
        int up = openat(at, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (up < 0) {
            return ct_err_sys(err, errno, "the output's directory");
        }
        close(at);
        at = up;
    }
}

static int open_out(struct kvfs_state *s, const struct kvfs_plan *plan, struct ct_err *err)
{
    const char *out = s->job->out;
    s->made = mkdir(out, 0777) == 0;
    if (!s->made && errno != EEXIST) {
        return ct_err_sys(err, errno, "%s", out);
    }
    s->dirfd = open(out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->dirfd < 0) {
        return errno == ENOTDIR ? ct_err_set(err, CT_EXISTS,
                                             "%s exists already, and nothing is overwritten", out)
                                : ct_err_sys(err, errno, "%s", out);
    }
    bool inside = false;
    if (lies_in(plan->walk.fd, s->dirfd, &inside, err)) {
        return -1;
    }
    if (inside) {
        return ct_err_set(err, CT_USAGE, "%s lies in %s, which is only read: choose another place",
                          out, s->job->src);
    }
    if (flock(s->dirfd, LOCK_EX | LOCK_NB)) {
        return ct_err_set(err, CT_BUSY, "%s: another run writes to it", out);
    }
    return 0;
}

/* A run that was killed while it wrote its first note leaves just this, and has done nothing. */
static bool is_begun_note(const char *name)
{
    ct_autofree char *final = kvfs_final_path(name);
    return final && strcmp(final, KVFS_STATE_NAME) == 0;
}

/* Removes such notes where nothing else is. */
static int is_empty(int dirfd, bool *empty, struct ct_err *err)
{
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (!d) {
        if (fd >= 0) {
            close(fd);
        }
        return ct_err_sys(err, errno, "the output's directory");
    }
    *empty = true;
    bool begun = false;
    for (const struct dirent *e; *empty && (e = readdir(d));) {
        bool note = is_begun_note(e->d_name);
        begun |= note;
        *empty = note || strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
    }
    rewinddir(d);
    for (const struct dirent *e; *empty && begun && (e = readdir(d));) {
        if (is_begun_note(e->d_name)) {
            (void)unlinkat(dirfd, e->d_name, 0);
        }
    }
    (void)closedir(d);
    return 0;
}

static int look_into_out(struct kvfs_state *s, struct kvfs_plan *plan, struct ct_err *err)
{
    const char *out = s->job->out;
    struct stat st;
    bool empty = false;
    if (is_empty(s->dirfd, &empty, err)) {
        return -1;
    }
    if (empty) {
        return 0;
    }
    if (fstatat(s->dirfd, KVFS_STATE_NAME, &st, AT_SYMLINK_NOFOLLOW)) {
        return ct_err_set(err, CT_EXISTS, "%s is not empty%s", out,
                          s->job->resume ? ", and no unfinished run of kvfs"
                                         : ", and nothing is overwritten");
    }
    if (!s->job->resume) {
        return ct_err_set(err, CT_EXISTS,
                          "%s is unfinished: add --resume to go on with it, or remove it", out);
    }
    json_t *done = NULL;
    if (kvfs_resume(s->job, plan, s->dirfd, &done, err)) {
        return ct_err_wrap(err, "%s", out);
    }
    json_decref(s->done);
    s->done = done;
    return 0;
}

int kvfs_state_open(struct kvfs_job *job, struct kvfs_plan *plan, struct kvfs_state **out,
                    struct ct_err *err)
{
    struct kvfs_state *s = calloc(1, sizeof(*s));
    if (!s) {
        return ct_err_set(err, CT_NOMEM, "no memory for a note");
    }
    *s = (struct kvfs_state){.job = job, .dirfd = -1};
    s->options = kvfs_resume_options(job);
    s->done = json_object();
    *out = s;
    if (!s->options || !s->done) {
        return ct_err_set(err, CT_NOMEM, "no memory for a note");
    }
    if (open_out(s, plan, err) || look_into_out(s, plan, err)) {
        return -1;
    }
    return kvfs_state_write(s, err);
}

int kvfs_state_dir(const struct kvfs_state *s)
{
    return s->dirfd;
}

static int dump(const char *text, size_t n, void *ctx)
{
    ct_buf_put(ctx, text, n);
    return 0;
}

/* The note is signed: whoever can write to OUT could otherwise have another file of the same
 * producer taken for a finished one. */
int kvfs_state_write(struct kvfs_state *s, struct ct_err *err)
{
    static const char kid[] = "output";
    ct_autobuf payload = {0};
    ct_autobuf text = {0};
    json_t *note = json_pack("{s:s, s:O, s:O}", "command", s->job->command, "options", s->options,
                             "done", s->done);
    int failed = !note || json_dump_callback(note, dump, &payload, JSON_COMPACT);
    json_decref(note);
    if (failed) {
        return ct_err_set(err, CT_NOMEM, "no memory for a note");
    }
    if (ct_buf_ok(&payload, err) ||
        ct_jws_sign(KVFS_STATE_TYP, (struct ct_span){kid, sizeof(kid) - 1}, s->job->write_keys.seed,
                    payload.data, payload.len, &text, err) ||
        kvfs_text_write(s->dirfd, KVFS_STATE_NAME, &text, true, err)) {
        return -1;
    }
    s->noted = true;
    s->written = time(NULL);
    return 0;
}

int kvfs_state_done(struct kvfs_state *s, const struct kvfs_task *task, int dirfd, const char *name,
                    struct ct_err *err)
{
    struct stat st;
    struct ct_version v;
    char sha256[2 * CT_DIGEST + 1];
    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW)) {
        return ct_err_sys(err, errno, "%s", task->item->path);
    }
    ct_version_of(&st, &v);
    ct_hex(sha256, task->entry.sha256, CT_DIGEST);
    json_t *one = json_pack("{s:o, s:o, s:s}", "source", kvfs_version_json(&task->version),
                            "output", kvfs_version_json(&v), "sha256", sha256);
    /* A name that is not UTF-8 can't be noted: it is copied again. */
    if (one && json_object_set_new(s->done, task->item->path, one) &&
        ct_utf8_ok((const uint8_t *)task->item->path, strlen(task->item->path))) {
        return ct_err_set(err, CT_NOMEM, "no memory for a note");
    }
    bool due = task->step == KVFS_STEP_MODEL || time(NULL) != s->written;
    return due ? kvfs_state_write(s, err) : 0;
}

size_t kvfs_state_count(const struct kvfs_state *s)
{
    return json_object_size(s->done);
}

int kvfs_state_finish(struct kvfs_state *s, struct ct_err *err)
{
    if (unlinkat(s->dirfd, KVFS_STATE_NAME, 0)) {
        return ct_err_sys(err, errno, "%s", KVFS_STATE_NAME);
    }
    s->noted = false;
    (void)fsync(s->dirfd);
    return 0;
}

void kvfs_state_abandon(struct kvfs_state *s, const struct kvfs_plan *plan)
{
    if (s->dirfd < 0 || kvfs_state_count(s) > 0) {
        return;
    }
    if (s->noted) {
        (void)unlinkat(s->dirfd, KVFS_STATE_NAME, 0);
        for (size_t i = plan->count; i-- > 0;) {
            if (plan->tasks[i].step == KVFS_STEP_DIR) {
                (void)unlinkat(s->dirfd, plan->tasks[i].item->path, AT_REMOVEDIR);
            }
        }
    }
    if (s->made) {
        (void)rmdir(s->job->out);
    }
}

void kvfs_state_free(struct kvfs_state *s)
{
    if (!s) {
        return;
    }
    if (s->dirfd >= 0) {
        close(s->dirfd);
    }
    json_decref(s->options);
    json_decref(s->done);
    free(s);
}
