#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "format/base/file.h"
#include "guard/state.h"

static int read_sys(const struct guard_run *r, const char *name, struct ct_buf *out)
{
    return guard_read_at(r->g->proc_fd, name, 1 << 16, out, NULL);
}

static void check_core_pattern(struct guard_run *r)
{
    ct_autobuf text = {0};
    if (read_sys(r, "sys/kernel/core_pattern", &text)) {
        guard_unseen(r, GUARD_CORE_PATTERN);
        return;
    }
    guard_looked(r, GUARD_CORE_PATTERN);
    /* Both whatever RLIMIT_CORE says; a socket since Linux 6.16 (core(5), coredump.c). */
    if (text.data[0] == '|' || text.data[0] == '@') {
        guard_fail(r, GUARD_CORE_PATTERN, 0, "pipe",
                   "cores are handed to a program of the host (kernel.core_pattern: %.*s)",
                   (int)strcspn((char *)text.data, "\n"), (char *)text.data);
    }
}

/* ---- eBPF ---- */

static void check_bpf_unprivileged(struct guard_run *r)
{
    ct_autobuf text = {0};
    if (read_sys(r, "sys/kernel/unprivileged_bpf_disabled", &text)) {
        guard_unseen(r, GUARD_BPF_UNPRIVILEGED); /* a kernel without bpf(2) has no such file */
        return;
    }
    guard_looked(r, GUARD_BPF_UNPRIVILEGED);
    if (text.data[0] == '0') {
        guard_fail(r, GUARD_BPF_UNPRIVILEGED, 0, "",
                   "everybody may load eBPF programs (kernel.unprivileged_bpf_disabled is 0)");
    }
}

static int bpf(int cmd, union bpf_attr *attr)
{
    return (int)syscall(SYS_bpf, cmd, attr, sizeof(*attr));
}

static bool is_tracing(uint32_t type)
{
    return type == BPF_PROG_TYPE_KPROBE || type == BPF_PROG_TYPE_TRACEPOINT ||
           type == BPF_PROG_TYPE_PERF_EVENT || type == BPF_PROG_TYPE_RAW_TRACEPOINT ||
           type == BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE || type == BPF_PROG_TYPE_TRACING;
}

/* 1, 0, or -1 if it is gone or can't be told. */
static int program_traces(uint32_t id)
{
    struct bpf_prog_info info = {0};
    union bpf_attr attr = {.prog_id = id};
    ct_autofd fd = bpf(BPF_PROG_GET_FD_BY_ID, &attr);
    if (fd < 0) {
        return -1;
    }
    attr = (union bpf_attr){0};
    attr.info.bpf_fd = (uint32_t)fd;
    attr.info.info_len = sizeof(info);
    attr.info.info = (uint64_t)(uintptr_t)&info;
    return bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) ? -1 : is_tracing(info.type);
}

static bool is_known_to_trace(struct guard *g, uint32_t id)
{
    for (size_t i = 0; i < g->program_count; i++) {
        if (g->programs[i].id == id) {
            return g->programs[i].tracing;
        }
    }
    int traces = program_traces(id);
    if (traces >= 0 && g->program_count < GUARD_BPF_MAX) {
        g->programs[g->program_count].id = id;
        g->programs[g->program_count++].tracing = traces;
    }
    return traces > 0;
}

static void check_bpf_programs(struct guard_run *r)
{
    union bpf_attr attr = {.start_id = 0};
    for (unsigned i = 0; i < GUARD_BPF_MAX; i++) {
        if (bpf(BPF_PROG_GET_NEXT_ID, &attr)) {
            if (errno == ENOENT) {
                guard_looked(r, GUARD_BPF_PROGRAMS);
            } else {
                guard_unseen(r, GUARD_BPF_PROGRAMS);
            }
            return;
        }
        uint32_t id = attr.next_id;
        if (is_known_to_trace(r->g, id)) {
            char about[24];
            (void)snprintf(about, sizeof(about), "%u", id);
            guard_fail(r, GUARD_BPF_PROGRAMS, 0, about,
                       "an eBPF program that traces is loaded (number %u)", id);
        }
        attr = (union bpf_attr){.start_id = id};
    }
}

/* ---- Memory ---- */

/* Whether a cgroup (version 2) at or above ours forbids swapping. */
static bool swap_forbidden(const struct guard_run *r)
{
    char group[4096];
    char path[4200];
    const char *text = (const char *)r->now->cgroup.data;
    const char *line = text ? strstr(text, "0::/") : NULL;
    if (!line || (line != text && line[-1] != '\n')) {
        return false;
    }
    (void)snprintf(group, sizeof(group), "%.*s", (int)strcspn(line + 3, "\n"), line + 3);
    for (;;) {
        ct_autobuf max = {0};
        (void)snprintf(path, sizeof(path), "/sys/fs/cgroup%s/memory.swap.max", group);
        if (guard_read_at(AT_FDCWD, path, 64, &max, NULL) == 0 &&
            strcmp((char *)max.data, "0\n") == 0) {
            return true;
        }
        char *slash = strrchr(group, '/');
        if (!slash) {
            return false;
        }
        *slash = '\0';
    }
}

/* Whether all that matters is locked: memory is locked at the start, and a limit that was raised
 * later locks nothing. */
static bool all_locked(const struct guard_run *r)
{
    const struct guard_facts *first = r->start ? r->start : r->now;
    return r->config->lock_all && (first->has & GUARD_HAS_LIMITS) &&
           first->lock_limit >= r->config->lock_all;
}

static void check_memory(struct guard_run *r)
{
    ct_autobuf text = {0};
    if (read_sys(r, "swaps", &text) == 0) {
        guard_looked(r, GUARD_SWAP);
        if (guard_parse_swaps((char *)text.data, text.len) && !all_locked(r) &&
            !swap_forbidden(r)) {
            guard_fail(r, GUARD_SWAP, 0, "", "memory may be written to swap space");
        }
    } else {
        guard_unseen(r, GUARD_SWAP);
    }
    if (r->config->lock_keys && guard_has(r, GUARD_HAS_LIMITS)) {
        guard_looked(r, GUARD_MEMLOCK);
        if (r->now->lock_limit < r->config->lock_keys) {
            guard_fail(r, GUARD_MEMLOCK, 0, "",
                       "%llu KiB may be locked (RLIMIT_MEMLOCK), %llu KiB are needed",
                       (unsigned long long)r->now->lock_limit >> 10,
                       (unsigned long long)r->config->lock_keys >> 10);
        }
    }
}

/* ---- What the guard itself stands on ---- */

static void check_proc(struct guard_run *r)
{
    struct statfs fs;
    struct stat st;
    guard_looked(r, GUARD_PROC);
    if (statfs("/proc", &fs) || stat("/proc", &st)) {
        guard_fail(r, GUARD_PROC, 0, "none", "/proc can't be read: %s", strerror(errno));
    } else if ((unsigned long)fs.f_type != PROC_SUPER_MAGIC || st.st_dev != r->g->proc_dev) {
        guard_fail(r, GUARD_PROC, 0, "other", "something else lies at /proc");
    }
}

static void check_gap(struct guard_run *r)
{
    int64_t gap = (guard_now_ns() - r->g->last_ns) / 1000000;
    if (!r->start) {
        return;
    }
    guard_looked(r, GUARD_PAUSED);
    if (gap > r->profile->gap_ms) {
        guard_fail(r, GUARD_PAUSED, 0, "", "for %lld ms nothing was checked: stopped or frozen",
                   (long long)gap);
    }
}

void guard_check_kernel(struct guard_run *r)
{
    check_gap(r);
    check_proc(r);
    check_core_pattern(r);
    check_bpf_unprivileged(r);
    if (guard_wants(r, GUARD_BPF_PROGRAMS)) {
        check_bpf_programs(r);
    }
    check_memory(r);
}
