#include "kvfs/mount/filter.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const int allowed[] = {
    /* memory */
    SCMP_SYS(brk), SCMP_SYS(madvise), SCMP_SYS(mlock), SCMP_SYS(mlock2), SCMP_SYS(mremap),
    SCMP_SYS(munlock), SCMP_SYS(munmap), SCMP_SYS(mincore),
    /* open descriptors */
    SCMP_SYS(close), SCMP_SYS(dup), SCMP_SYS(fadvise64), SCMP_SYS(fstat), SCMP_SYS(fstatfs),
    SCMP_SYS(fallocate), SCMP_SYS(ftruncate), SCMP_SYS(getdents64), SCMP_SYS(lseek),
    SCMP_SYS(pread64), SCMP_SYS(preadv), SCMP_SYS(preadv2), SCMP_SYS(read), SCMP_SYS(readahead),
    SCMP_SYS(readv), SCMP_SYS(write), SCMP_SYS(writev), SCMP_SYS(recvmsg), SCMP_SYS(sendmsg),
    SCMP_SYS(eventfd2), SCMP_SYS(pipe2),
    /* waiting, time */
    SCMP_SYS(clock_getres), SCMP_SYS(clock_gettime), SCMP_SYS(clock_nanosleep), SCMP_SYS(futex),
    SCMP_SYS(gettimeofday), SCMP_SYS(nanosleep), SCMP_SYS(poll), SCMP_SYS(ppoll),
    SCMP_SYS(pselect6), SCMP_SYS(restart_syscall), SCMP_SYS(sched_yield), SCMP_SYS(time),
    /* threads and signals of our own */
    SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(membarrier), SCMP_SYS(rseq),
    SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigtimedwait), SCMP_SYS(set_robust_list), SCMP_SYS(sigaltstack),
    /* about ourselves */
    SCMP_SYS(getegid), SCMP_SYS(geteuid), SCMP_SYS(getgid), SCMP_SYS(getpid), SCMP_SYS(getppid),
    SCMP_SYS(getrandom), SCMP_SYS(getrusage), SCMP_SYS(gettid), SCMP_SYS(getuid),
    SCMP_SYS(sched_getaffinity), SCMP_SYS(sysinfo), SCMP_SYS(times), SCMP_SYS(uname)};

/* What libraries may try by themselves, and what they get. Landlock would say the same. */
static const struct {
    int syscall, error;
} refused[] = {
    {SCMP_SYS(clone3), ENOSYS},     {SCMP_SYS(open), EACCES},   {SCMP_SYS(openat), EACCES},
    {SCMP_SYS(openat2), EACCES},    {SCMP_SYS(access), EACCES}, {SCMP_SYS(faccessat), EACCES},
    {SCMP_SYS(faccessat2), EACCES}, {SCMP_SYS(stat), EACCES},   {SCMP_SYS(lstat), EACCES},
    {SCMP_SYS(statx), EACCES},      {SCMP_SYS(statfs), EACCES}, {SCMP_SYS(readlink), EACCES},
    {SCMP_SYS(readlinkat), EACCES}, {SCMP_SYS(getcwd), EACCES}, {SCMP_SYS(ioctl), ENOTTY},
};

#define WHEN(number, compare, value)                                                               \
    {                                                                                              \
        .arg = (number), .op = (compare), .datum_a = (value)                                       \
    }
#define WHEN_BITS(number, mask, value)                                                             \
    {                                                                                              \
        .arg = (number), .op = SCMP_CMP_MASKED_EQ, .datum_a = (mask), .datum_b = (value)           \
    }

static const struct {
    int syscall;
    struct scmp_arg_cmp when;
} by_argument[] = {
    {SCMP_SYS(mmap), WHEN_BITS(2, PROT_EXEC, 0)},
    {SCMP_SYS(mprotect), WHEN_BITS(2, PROT_EXEC, 0)},
    {SCMP_SYS(clone), WHEN_BITS(0, CLONE_THREAD, CLONE_THREAD)}, /* threads, not processes */
    {SCMP_SYS(prlimit64), WHEN(2, SCMP_CMP_EQ, 0)},              /* reads a limit */
    {SCMP_SYS(newfstatat), WHEN(3, SCMP_CMP_EQ, AT_EMPTY_PATH)}, /* fstat() since glibc 2.33 */
    {SCMP_SYS(fcntl), WHEN(1, SCMP_CMP_EQ, F_GETFD)},
    {SCMP_SYS(fcntl), WHEN(1, SCMP_CMP_EQ, F_SETFD)},
    {SCMP_SYS(fcntl), WHEN(1, SCMP_CMP_EQ, F_GETFL)},
    {SCMP_SYS(fcntl), WHEN(1, SCMP_CMP_EQ, F_SETFL)},
    {SCMP_SYS(fcntl), WHEN(1, SCMP_CMP_EQ, F_DUPFD_CLOEXEC)},
    {SCMP_SYS(prctl), WHEN(0, SCMP_CMP_EQ, PR_SET_NAME)},
    {SCMP_SYS(prctl), WHEN(0, SCMP_CMP_EQ, PR_GET_NAME)},
    {SCMP_SYS(prctl), WHEN(0, SCMP_CMP_EQ, 0x53564d41)}, /* PR_SET_VMA: malloc names mappings */
};

/* What sanitizers do: read /proc, write reports, trace their own process for leaks (with ordinary
 * turns: turns.h). */
static const int for_sanitizers[] = {
    SCMP_SYS(clone),
    SCMP_SYS(fcntl),
    SCMP_SYS(getpgrp),
    SCMP_SYS(ioctl),
    SCMP_SYS(kill),
    SCMP_SYS(mkdir),
    SCMP_SYS(mmap),
    SCMP_SYS(mprotect),
    SCMP_SYS(newfstatat),
    SCMP_SYS(open),
    SCMP_SYS(openat),
    SCMP_SYS(prctl),
    SCMP_SYS(prlimit64),
    SCMP_SYS(ptrace),
    SCMP_SYS(getdents),
    SCMP_SYS(readlink),
    SCMP_SYS(readlinkat),
    SCMP_SYS(stat),
    SCMP_SYS(tgkill),
    SCMP_SYS(unlink),
    SCMP_SYS(wait4),
    SCMP_SYS(statx),
    SCMP_SYS(personality),
    SCMP_SYS(process_vm_readv),
    SCMP_SYS(sched_setscheduler),
};

static int allow_all(scmp_filter_ctx ctx, const int *calls, size_t n)
{
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, calls[i], 0);
    }
    return rc;
}

static int add_by_argument(scmp_filter_ctx ctx)
{
    int rc = 0;
    for (size_t i = 0; i < COUNT(by_argument) && rc == 0; i++) {
        struct scmp_arg_cmp cmp = by_argument[i].when;
        rc = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, by_argument[i].syscall, 1, &cmp);
    }
    const struct scmp_arg_cmp ourselves = WHEN(0, SCMP_CMP_EQ, (scmp_datum_t)getpid());
    const struct scmp_arg_cmp by_path = WHEN(3, SCMP_CMP_NE, AT_EMPTY_PATH);
    rc = rc ? rc : seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, &ourselves);
    return rc ? rc
              : seccomp_rule_add_array(ctx, SCMP_ACT_ERRNO(EACCES), SCMP_SYS(newfstatat), 1,
                                       &by_path);
}

static bool is_for_sanitizers(int call)
{
    for (size_t i = 0; i < COUNT(for_sanitizers); i++) {
        if (for_sanitizers[i] == call) {
            return true;
        }
    }
    return false;
}

static int build(scmp_filter_ctx ctx)
{
    int rc = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    /* A binary tree instead of a list: every request passes through it. */
    rc = rc ? rc : seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    rc = rc ? rc : allow_all(ctx, allowed, COUNT(allowed));
    for (size_t i = 0; i < COUNT(refused) && rc == 0; i++) {
        if (!KVFS_SANITIZED || !is_for_sanitizers(refused[i].syscall)) {
            rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO((uint16_t)refused[i].error),
                                  refused[i].syscall, 0);
        }
    }
    if (rc == 0) {
        rc = KVFS_SANITIZED ? allow_all(ctx, for_sanitizers, COUNT(for_sanitizers))
                            : add_by_argument(ctx);
    }
    return rc ? rc : seccomp_load(ctx);
}

int kvfs_filter_load(struct ct_err *err)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!ctx) {
        return ct_err_set(err, CT_NOMEM, "sandbox: no memory for the system call filter");
    }
    int rc = build(ctx);
    seccomp_release(ctx);
    if (rc) {
        return ct_err_set(err, CT_UNSUPPORTED, "sandbox: system call filter: %s", strerror(-rc));
    }
    return 0;
}
