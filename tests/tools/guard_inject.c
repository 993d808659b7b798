/* What a debugger does to a process in a moment: system calls in its name. x86-64 only. */
#include "guard_tool.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#ifdef __x86_64__

enum { SYSCALL_INSN = 0x050f };

static pid_t target;
static struct user_regs_struct saved;

/* In a process that was stopped in a system call: its instruction lies before rip. */
static long call(long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e)
{
    struct user_regs_struct r = saved;
    int status = 0;
    r.rip -= 2;
    r.orig_rax = (unsigned long long)-1;
    r.rax = (unsigned long long)number;
    r.rdi = a;
    r.rsi = b;
    r.rdx = c;
    r.r10 = d;
    r.r8 = e;
    r.r9 = 0;
    if (ptrace(PTRACE_SETREGS, target, NULL, &r) || ptrace(PTRACE_SINGLESTEP, target, NULL, NULL) ||
        waitpid(target, &status, __WALL) < 0 || ptrace(PTRACE_GETREGS, target, NULL, &r)) {
        return -1;
    }
    errno = (long long)r.rax < 0 ? (int)-(long long)r.rax : 0;
    return errno ? -1 : (long)r.rax;
}

static long map(uint64_t prot, uint64_t flags, long fd)
{
    return call(SYS_mmap, 0, 4096, prot, flags, (uint64_t)fd);
}

static long do_deed(const char *deed)
{
    if (strcmp(deed, "memfd") == 0) {
        long fd = call(SYS_memfd_create, saved.rsp & ~UINT64_C(7), 0, 0, 0, 0);
        return fd < 0 || call(SYS_ftruncate, (uint64_t)fd, 4096, 0, 0, 0)
                   ? -1
                   : map(PROT_READ | PROT_EXEC, MAP_PRIVATE, fd);
    }
    if (strcmp(deed, "rwx") == 0) {
        return map(PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    }
    if (strcmp(deed, "shared") == 0) {
        return map(PROT_READ | PROT_EXEC, MAP_SHARED | MAP_ANONYMOUS, -1);
    }
    if (strcmp(deed, "dumpable") == 0) {
        return call(SYS_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
    }
    errno = ENOSYS;
    return -1;
}

int guard_tool_inject(pid_t pid, const char *deed)
{
    int status = 0;
    target = pid;
    if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) || ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) ||
        waitpid(pid, &status, __WALL) < 0 || ptrace(PTRACE_GETREGS, pid, NULL, &saved)) {
        return -1;
    }
    long insn = ptrace(PTRACE_PEEKTEXT, pid, saved.rip - 2, NULL);
    long r = (insn & 0xffff) == SYSCALL_INSN ? do_deed(deed) : (errno = EBUSY, -1);
    int e = errno;
    (void)ptrace(PTRACE_SETREGS, pid, NULL, &saved);
    (void)ptrace(PTRACE_DETACH, pid, NULL, NULL);
    errno = e;
    return r < 0 ? -1 : 0;
}

#else

int guard_tool_inject(pid_t pid, const char *deed)
{
    (void)pid;
    (void)deed;
    errno = EOPNOTSUPP;
    return -1;
}

#endif
