/*
 * Whose turn it is on a machine full of busy readers. Both are wishes: nothing happens where the
 * kernel does not know them, or the privilege is missing.
 */
#ifndef KVFS_MOUNT_TURNS_H
#define KVFS_MOUNT_TURNS_H

#include <pthread.h>
#include <sys/types.h>

/* Short turns, for the calling thread and all that it starts: what supervisor and worker do for a
 * lookup takes microseconds, and Linux 6.12 and later let them in at once only if they ask for no
 * more. */
void kvfs_turns_short(void);

/* Turns before all ordinary threads, for one thread (0: the caller) and not for what it starts:
 * real-time scheduling of the lowest priority. What takes plaintext back must have its turn: groups
 * of processes that wake up often (cgroups, and sessions where sched_autogroup_enabled is 1) can
 * keep others waiting for ten seconds and more (seen with Linux 6.18). Needs CAP_SYS_NICE or
 * RLIMIT_RTPRIO, and in cgroup v1 a cpu.rt_runtime_us. */
void kvfs_turns_first(pid_t tid);

/* For a thread of this process, by whom it was started: by itself it would wait for its first. */
void kvfs_turns_first_thread(pthread_t thread);

/* Before the caller's process ends, where it was built with a sanitizer: ordinary turns again. The
 * search for leaks spins until a thread with ordinary turns has done it, and would keep that one
 * off the processor for a second. */
void kvfs_turns_before_leak_search(void);

#endif
