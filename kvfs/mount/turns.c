#include "kvfs/mount/turns.h"

#include <sched.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

void kvfs_turns_short(void)
{
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attr = {.size = sizeof(attr), .runtime = 100000};
    attr.nice = getpriority(PRIO_PROCESS, 0);
    (void)syscall(SYS_sched_setattr, 0, &attr, 0);
}

static const struct sched_param lowest = {.sched_priority = 1};

void kvfs_turns_first(pid_t tid)
{
    (void)sched_setscheduler(tid, SCHED_RR | SCHED_RESET_ON_FORK, &lowest);
}

void kvfs_turns_first_thread(pthread_t thread)
{
    (void)pthread_setschedparam(thread, SCHED_RR, &lowest);
}

void kvfs_turns_before_leak_search(void)
{
    const struct sched_param none = {.sched_priority = 0};
    if (KVFS_SANITIZED) {
        (void)sched_setscheduler(0, SCHED_OTHER | SCHED_RESET_ON_FORK, &none);
    }
}
