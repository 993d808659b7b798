#include "kvfs/mount/audit_file.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/base/log.h"
#include "kvfs/audit/chain.h"
#include "kvfs/mount/logsink.h"

enum { CHAINS_MAX = 96, NOTES_MAX = 32, NOTE_MAX = 320, EVENT_MAX = 32 };

struct kvfs_audit_file {
    int fd; /* -1: none */
    bool log;
    bool full;             /* the disk took no more, and that was told */
    struct ct_buf backlog; /* that it did not take */
    struct kvfs_audit_chain chains[CHAINS_MAX];
    size_t count;
    char notes[NOTES_MAX][NOTE_MAX];
    size_t note_count, notes_lost;
    bool alone; /* the worker is dead */
};

/* ---- the file ---- */

static int check_file(int fd, const char *file, struct ct_err *err)
{
    struct stat st;
    if (fstat(fd, &st)) {
        return ct_err_sys(err, errno, "audit file %s", file);
    }
    if (!S_ISREG(st.st_mode)) {
        return ct_err_set(err, CT_USAGE, "audit file %s: no regular file", file);
    }
    if (st.st_uid != geteuid() || st.st_mode & 0027) {
        return ct_err_set(err, CT_USAGE,
                          "audit file %s: it has to be yours, and open to nobody else but readers "
                          "of its group: chmod 0600 it",
                          file);
    }
    if (flock(fd, LOCK_EX | LOCK_NB)) {
        return ct_err_set(err, CT_BUSY, "audit file %s: another mount writes to it", file);
    }
    return 0;
}

/* After a line that an earlier mount could not finish, the next begins a line of its own. */
static void end_torn_line(struct kvfs_audit_file *f)
{
    char last = '\n';
    struct stat st;
    if (fstat(f->fd, &st) == 0 && st.st_size > 0 &&
        (pread(f->fd, &last, 1, st.st_size - 1) != 1 || last != '\n')) {
        ct_buf_putc(&f->backlog, '\n');
    }
}

struct kvfs_audit_file *kvfs_audit_file_open(const char *file, bool log, struct ct_err *err)
{
    struct kvfs_audit_file *f = calloc(1, sizeof(*f));
    if (!f) {
        ct_err_set(err, CT_NOMEM, "no memory for the audit");
        return NULL;
    }
    f->log = log;
    f->fd = -1;
    if (!file) {
        return f;
    }
    f->fd = open(file, O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY,
                 0600);
    int r =
        f->fd < 0 ? ct_err_sys(err, errno, "audit file %s", file) : check_file(f->fd, file, err);
    if (r) {
        if (f->fd >= 0) {
            close(f->fd);
        }
        free(f);
        return NULL;
    }
    end_torn_line(f);
    return f;
}

int kvfs_audit_file_fd(const struct kvfs_audit_file *f)
{
    return f ? f->fd : -1;
}

/* A line may be written in parts: nobody else writes to the file. */
static void drain(struct kvfs_audit_file *f)
{
    size_t done = 0;
    while (done < f->backlog.len) {
        ssize_t n = write(f->fd, f->backlog.data + done, f->backlog.len - done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            if (!f->full) {
                ct_log(CT_LOG_ERROR, "the audit file can't be written to: %s; lines wait in memory",
                       strerror(errno)); /* NOLINT(concurrency-mt-unsafe) */
            }
            f->full = true;
            break;
        }
        done += (size_t)n;
    }
    if (done) {
        memmove(f->backlog.data, f->backlog.data + done, f->backlog.len - done);
        f->backlog.len -= done;
    }
    if (f->full && !f->backlog.len) {
        ct_log(CT_LOG_WARN, "the audit file can be written to again");
        f->full = false;
    }
}

/* ---- lines ---- */

static struct kvfs_audit_chain *find(struct kvfs_audit_file *f, const char *id, struct ct_err *err)
{
    for (size_t i = 0; i < f->count; i++) {
        if (strcmp(f->chains[i].id, id) == 0) {
            return &f->chains[i];
        }
    }
    if (f->count == CHAINS_MAX) {
        ct_err_set(err, CT_MALFORMED, "too many audit chains");
        return NULL;
    }
    return kvfs_audit_start(&f->chains[f->count], id, err) ? NULL : &f->chains[f->count++];
}

static int append(struct kvfs_audit_file *f, struct kvfs_audit_chain *c, const char *body,
                  struct ct_err *err)
{
    ct_autobuf record = {0};
    ct_autobuf line = {0};
    struct kvfs_audit_chain next = *c;
    if (kvfs_audit_extend(&next, body, &record, err)) {
        return -1;
    }
    kvfs_audit_line(&next, &record, &line);
    if (ct_buf_ok(&line, err)) {
        return -1;
    }
    if (f->fd >= 0) {
        ct_buf_put(&f->backlog, line.data, line.len);
        if (ct_buf_ok(&f->backlog, err)) {
            f->backlog.failed = false; /* it is as it was */
            return -1;
        }
    }
    *c = next;
    if (f->log) {
        kvfs_logsink_audit((const char *)line.data, line.len - 1);
    }
    if (f->fd >= 0) {
        drain(f);
    }
    return 0;
}

static void take_note(struct kvfs_audit_file *f, char *note, size_t cap)
{
    *note = '\0';
    if (f->notes_lost) {
        (void)snprintf(note, cap, "lost %zu events of the supervisor", f->notes_lost);
        f->notes_lost = 0;
    } else if (f->note_count) {
        (void)snprintf(note, cap, "%s", f->notes[0]);
        f->note_count--;
        memmove(f->notes[0], f->notes[1], f->note_count * sizeof(f->notes[0]));
    }
}

int kvfs_audit_file_take(struct kvfs_audit_file *f, const char *chain, const char *body, char *note,
                         size_t cap, struct ct_err *err)
{
    *note = '\0';
    if (f->backlog.len) {
        drain(f);
    }
    if (*chain) {
        if (!kvfs_audit_body_is_sound(body)) {
            return ct_err_set(err, CT_MALFORMED, "an audit record that no worker sends");
        }
        if (f->backlog.len > KVFS_AUDIT_BACKLOG) {
            return ct_err_set(err, CT_BUSY, "the audit file can't be written to");
        }
        struct kvfs_audit_chain *c = find(f, chain, err);
        if (!c || append(f, c, body, err)) {
            return -1;
        }
    }
    take_note(f, note, cap);
    return 0;
}

/* ---- the supervisor's own ---- */

static void append_event(struct kvfs_audit_file *f, struct kvfs_audit_chain *c, const char *event,
                         json_t *details)
{
    ct_autobuf body = {0};
    struct ct_err why = CT_ERR_INIT;
    int r = kvfs_audit_body(event, details, &body, &why);
    ct_buf_putc(&body, '\0');
    if (r || ct_buf_ok(&body, &why) || append(f, c, (char *)body.data, &why)) {
        ct_log(CT_LOG_ERROR, "audit: %s is not recorded: %s", event, why.msg);
    }
}

/* In every chain, since it concerns what each of them released. */
static void append_unsigned(struct kvfs_audit_file *f, const char *event, const char *sentence)
{
    for (size_t i = 0; i < f->count; i++) {
        append_event(f, &f->chains[i], event,
                     json_pack("{s:b,s:o}", "signed", 0, "detail", kvfs_audit_text(sentence)));
    }
}

void kvfs_audit_file_failed(struct kvfs_audit_file *f, const char *mountpoint,
                            const struct ct_err *why)
{
    uint8_t random[KVFS_AUDIT_ID / 2];
    char id[KVFS_AUDIT_ID + 1];
    struct ct_err err = CT_ERR_INIT;
    if (!f || RAND_bytes(random, sizeof(random)) != 1) {
        return;
    }
    ct_hex(id, random, sizeof(random));
    struct kvfs_audit_chain *c = find(f, id, &err);
    if (c) {
        append_event(f, c, "failed",
                     json_pack("{s:b,s:o,s:s,s:o}", "signed", 0, "mountpoint",
                               kvfs_audit_text(mountpoint), "code",
                               ct_errno_name(ct_err_errno(why)), "detail",
                               kvfs_audit_text(why->msg)));
    }
}

void kvfs_audit_note(struct kvfs_audit_file *f, const char *event, const char *sentence)
{
    if (!f) {
        return;
    }
    if (f->alone) {
        append_unsigned(f, event, sentence);
    } else if (f->note_count == NOTES_MAX) {
        f->notes_lost++;
    } else {
        char cut[KVFS_AUDIT_TEXT_MAX];
        ct_utf8_copy(cut, sizeof(cut), sentence);
        (void)snprintf(f->notes[f->note_count++], NOTE_MAX, "%.*s %s", EVENT_MAX, event, cut);
    }
}

void kvfs_audit_file_worker_ended(struct kvfs_audit_file *f, const char *how)
{
    char note[NOTE_MAX];
    if (!f) {
        return;
    }
    f->alone = true;
    if (how) {
        append_unsigned(f, "worker-ended", how);
    }
    while (take_note(f, note, sizeof(note)), *note) {
        char *sentence = strchr(note, ' ');
        *sentence = '\0';
        append_unsigned(f, note, sentence + 1);
    }
    if (f->backlog.len) {
        drain(f);
    }
    if (f->backlog.len) {
        ct_log(CT_LOG_ERROR, "audit: the last %zu bytes are lost", f->backlog.len);
    }
}
