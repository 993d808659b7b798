#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/base/file.h"
#include "guard/state.h"

static void check_tracer(struct guard_run *r)
{
    guard_looked(r, GUARD_TRACER);
    if (r->now->status.tracer) {
        guard_fail(r, GUARD_TRACER, 0, "", "it is traced by process %d", r->now->status.tracer);
    } else if (r->now->status.state == 't') {
        guard_fail(r, GUARD_TRACER, 0, "", "it is stopped by a tracer outside the PID namespace");
    }
    if (r->s->role == GUARD_MATE) {
        guard_looked(r, GUARD_STOPPED);
        if (r->now->status.state == 'T') {
            guard_fail(r, GUARD_STOPPED, 0, "", "process %d of kvfs is stopped", r->s->pid);
        }
    }
}

/* ---- Other threads: each can be traced, have privileges and be elsewhere by itself ---- */

enum { THREADS_MAX = 4096 };

static void check_thread_place(struct guard_run *r, int tasks_fd, const char *tid)
{
    char name[300];
    char target[64];
    (void)snprintf(name, sizeof(name), "%s/ns/mnt", tid);
    ssize_t n = readlinkat(tasks_fd, name, target, sizeof(target) - 1);
    target[n < 0 ? 0 : n] = '\0';
    if (n > 0 && guard_has(r, GUARD_HAS_NS) && guard_parse_ns(target) != r->now->ns[GUARD_NS_MNT]) {
        guard_fail(r, GUARD_NAMESPACES, 0, "thread",
                   "its thread %.20s is in another mount namespace than the first", tid);
    }
}

static void check_thread(struct guard_run *r, int tasks_fd, const char *tid)
{
    char name[300];
    ct_autobuf text = {0};
    struct guard_status st;
    struct ct_err why = CT_ERR_INIT;
    const struct guard_status *first = &r->now->status;
    (void)snprintf(name, sizeof(name), "%s/status", tid);
    if (guard_read_at(tasks_fd, name, 1 << 16, &text, &why)) {
        return; /* it ended meanwhile */
    }
    if (guard_parse_status((char *)text.data, text.len, &st, &why)) {
        guard_fail(r, GUARD_INSPECT, 0, "thread", "thread %.20s: %.100s", tid, why.msg);
        return;
    }
    if (st.tracer || st.state == 't') {
        guard_fail(r, GUARD_TRACER, 0, tid, "its thread %.20s is traced", tid);
    }
    uint64_t more = st.caps[GUARD_CAP_PRM] & ~first->caps[GUARD_CAP_PRM];
    if (more || (st.caps[GUARD_CAP_EFF] & ~first->caps[GUARD_CAP_PRM])) {
        guard_fail(r, GUARD_CAPABILITIES, more, "thread",
                   "its thread %.20s has more capabilities than the first", tid);
    }
    if (first->seccomp > 0 && st.seccomp <= 0) {
        guard_fail(r, GUARD_SECCOMP, 0, "thread", "its thread %.20s has no seccomp filter", tid);
    }
    if (memcmp(first->uid, st.uid, sizeof(st.uid)) != 0 ||
        memcmp(first->gid, st.gid, sizeof(st.gid)) != 0) {
        guard_fail(r, GUARD_UID, 0, "thread", "its thread %.20s has other ids than the first", tid);
    }
    if (r->s->role == GUARD_STRANGER || (r->flags & GUARD_FULL)) {
        check_thread_place(r, tasks_fd, tid);
    }
    if (r->s->role == GUARD_STRANGER) {
        guard_check_reader_thread(r, tasks_fd, tid, &st);
    }
}

static void check_asking(struct guard_run *r)
{
    char tid[16];
    ct_autofd fd = openat(r->s->proc_fd, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    (void)snprintf(tid, sizeof(tid), "%d", r->s->asks);
    if (fd >= 0) {
        check_thread(r, fd, tid);
    }
}

static void check_threads(struct guard_run *r)
{
    int fd = openat(r->s->proc_fd, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *e = NULL;
    unsigned count = 0;
    while (dir && (e = readdir(dir)) && count < THREADS_MAX) {
        if (e->d_name[0] != '.' && strtol(e->d_name, NULL, 10) != r->now->status.tgid) {
            check_thread(r, fd, e->d_name);
        }
        count++;
    }
    if (!dir || count == THREADS_MAX) {
        guard_fail(r, GUARD_INSPECT, 0, "threads",
                   "the threads of process %d can't be looked through", r->s->pid);
    }
    if (dir) {
        (void)closedir(dir);
    } else if (fd >= 0) {
        close(fd);
    }
}

static void check_core(struct guard_run *r)
{
    if (r->s->role == GUARD_SELF && !r->config->tool) {
        guard_looked(r, GUARD_DUMPABLE);
        if (prctl(PR_GET_DUMPABLE) != 0) {
            guard_fail(r, GUARD_DUMPABLE, 0, "", "the process is dumpable");
        }
    }
    if (guard_has(r, GUARD_HAS_LIMITS) && !r->config->tool) {
        guard_looked(r, GUARD_CORE_LIMIT);
        if (r->now->core_limit > 1) {
            guard_fail(r, GUARD_CORE_LIMIT, 0, "", "cores may be written (RLIMIT_CORE)");
        }
    }
}

static void check_environ(struct guard_run *r)
{
    if (guard_has(r, GUARD_HAS_ENVIRON)) {
        guard_looked(r, GUARD_LD_PRELOAD);
        guard_looked(r, GUARD_LD_LIBRARY_PATH);
        if (r->now->environ & GUARD_ENV_PRELOAD) {
            guard_fail(r, GUARD_LD_PRELOAD, 0, "LD_PRELOAD", "it was started with LD_PRELOAD");
        }
        if (r->now->environ & GUARD_ENV_AUDIT) {
            guard_fail(r, GUARD_LD_PRELOAD, 0, "LD_AUDIT", "it was started with LD_AUDIT");
        }
        if (r->now->environ & GUARD_ENV_LIBRARY_PATH) {
            guard_fail(r, GUARD_LD_LIBRARY_PATH, 0, "", "it was started with LD_LIBRARY_PATH");
        }
    }
    struct stat st;
    if (r->proc_root_fd >= 0 && guard_stat_in(r->proc_root_fd, "etc/ld.so.preload", &st) == 0 &&
        st.st_size > 0) {
        guard_fail(r, GUARD_LD_PRELOAD, 0, "/etc/ld.so.preload",
                   "/etc/ld.so.preload has every program load something");
    }
}

/* Whether the path of the executable still leads to it. */
static void check_exe(struct guard_run *r)
{
    struct stat st;
    if (!guard_has(r, GUARD_HAS_EXE)) {
        return;
    }
    guard_looked(r, GUARD_EXE_REPLACED);
    if (r->s->role != GUARD_STRANGER && r->start && (r->start->has & GUARD_HAS_EXE) &&
        (r->now->exe.dev != r->start->exe.dev || r->now->exe.ino != r->start->exe.ino)) {
        guard_fail(r, GUARD_EXE_REPLACED, 0, "exec", "it runs another program now: %.100s",
                   r->now->exe_path);
    } else if (r->start && (r->start->has & GUARD_HAS_EXE) && r->now->exe.nlink &&
               !guard_file_id_same(&r->now->exe, &r->start->exe)) {
        guard_fail(r, GUARD_EXE_REPLACED, 0, "file", "%.100s was changed since it was started",
                   r->now->exe_path);
    }
    if (r->now->exe_deleted) {
        guard_fail(r, GUARD_EXE_REPLACED, 0, "deleted", "its program %.100s was deleted",
                   r->now->exe_path);
    } else if (r->proc_root_fd >= 0 && r->now->exe_path[0] == '/' &&
               fstatat(r->proc_root_fd, r->now->exe_path + 1, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
               (st.st_ino != r->now->exe.ino || st.st_dev != r->now->exe.dev)) {
        guard_fail(r, GUARD_EXE_REPLACED, 0, "path",
                   "another file lies at its program's path %.100s", r->now->exe_path);
    }
}

void guard_check_process(struct guard_run *r)
{
    if (guard_has(r, GUARD_HAS_STATUS)) {
        check_tracer(r);
        /* A reader may have hundreds. */
        if (r->s->role != GUARD_STRANGER || (r->flags & GUARD_FULL)) {
            check_threads(r);
        } else if (r->s->asks && r->s->asks != r->now->status.tgid) {
            check_asking(r);
        }
    }
    check_core(r);
    check_environ(r);
    check_exe(r);
}
