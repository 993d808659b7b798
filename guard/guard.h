/*
 * The guard: looks at the container that this process is in, and at those who read, and reports. It
 * never acts. Linux's /proc is all it needs; no capability, no network, no FUSE.
 *
 * How a supervisor uses it:
 *
 *     guard_profile_load("strict", &profile, &err)
 *     guard_new(profile, &config, &g, &err)         takes the start state
 *     prctl(PR_SET_DUMPABLE, 0)                     not before: then it could not read enough
 *     guard_check(g, GUARD_FULL, &report, &err)     refuse to start if report.count
 *     … mount(2) …
 *     guard_mounted(g, dev, &err)                   from here on the mount has to be there
 *     guard_add_own(g, worker_pid, &err)
 *     poll: guard_pollfd(g) for POLLIN, at most guard_timeout_ms(g)
 *         then guard_check(g, POLLIN ? GUARD_WOKEN : 0, &report, &err); report.count: seal
 *     before a release of keys: guard_check(g, GUARD_FULL, …)
 *     on an open by pid: guard_admit(g, pid, &report, &err) == 1, or EPERM
 *
 * From guard_new() on it has to run every period: a gap is a finding (paused). After a wake,
 * waiting some 10 ms gathers mounts that come together. When kvfs's own mount is taken away by an
 * ordinary umount, that is found too: the caller knows better. A failing call (-1) is no report
 * that all is well: treat it as a finding.
 *
 * What is found stands in the report of that run only: a finding that is gone at the next run has
 * been there all the same. An object is used by one thread at a time. All paths are absolute and
 * resolved.
 *
 * Call it from a thread that nothing waits for: looking at a reader may have to wait for it (its
 * memory map is locked while it faults on our own mount) or for a file system of its own. A guard
 * that has not answered within `gap_ms` is a finding by itself.
 *
 * It forks two short-lived children for one check (tracer-outside), which send no SIGCHLD, and
 * makes a file in protected directories, which must fail. Each reader takes three descriptors.
 */
#ifndef GUARD_GUARD_H
#define GUARD_GUARD_H

#include <jansson.h>
#include <stdint.h>
#include <sys/types.h>

#include "guard/profile.h"

enum { GUARD_FINDINGS_MAX = 64, GUARD_TEXT_MAX = 224, GUARD_READERS_MAX = 512 };

struct guard_config {
    const char *source;     /* SRC, or NULL */
    const char *mountpoint; /* MNT, or NULL */
    uint64_t lock_keys;     /* bytes that RLIMIT_MEMLOCK has to allow; 0: not judged */
    uint64_t lock_all;      /* if it allows so many at the start, all that holds keys and plaintext
                               is locked, and swap is no matter; 0: it never is */
    bool tool; /* a command that looks and ends: dumpable and core-limit are not judged */
};

struct guard_finding {
    enum guard_id id;
    enum guard_level level; /* KEEP: it held at the start */
    enum guard_who who;
    pid_t pid;                 /* the process that was looked at; 0: a reader that can't be seen */
    char text[GUARD_TEXT_MAX]; /* what is wrong, UTF-8 without control characters; what to do
                                  about it is guard_checks[id].fix */
};

enum guard_state {
    GUARD_SKIPPED, /* ignored, or there is nothing that it could be about */
    GUARD_OK,
    GUARD_UNSEEN, /* it can't be seen from here (guard_checks[id].blind) */
    GUARD_HELD,   /* fails, but did so at the start, and is only to be kept */
    GUARD_FAILED
};

struct guard_report {
    enum guard_state state[GUARD_IDS][GUARD_WHOS];
    size_t count, more; /* `more` findings are not listed */
    struct guard_finding findings[GUARD_FINDINGS_MAX];
    int64_t took_ns;
};

struct guard;

/* `profile` and the strings of `config` have to outlive the guard. */
int guard_new(const struct guard_profile *profile, const struct guard_config *config,
              struct guard **out, struct ct_err *err);
void guard_free(struct guard *g); /* NULL is allowed */

/* kvfs's own mount is at `mountpoint` now, with this device number (of mountinfo or statx; a stat()
 * would wait for the worker): mounts are judged against this moment. */
int guard_mounted(struct guard *g, dev_t device, struct ct_err *err);
/* Another process of kvfs (worker, keeper) from here on: what it is made of must not change. What
 * can't be read of it (it is not dumpable, and we are not root) is not judged. It may open files
 * without being a reader. */
int guard_add_own(struct guard *g, pid_t pid, struct ct_err *err);

/* A process of ours that only reads the mount, such as `kvfs warm`: no reader, and not judged. */
int guard_add_tool(struct guard *g, pid_t pid, struct ct_err *err);

/* Becomes readable (POLLIN) when a mount table of ours or of a reader was touched: run
 * guard_check() with GUARD_WOKEN. It tells once: polling it is what takes the event. */
int guard_pollfd(const struct guard *g);
/* Until the next periodic run is due, from now; 0 to period. */
int guard_timeout_ms(const struct guard *g);

enum {
    GUARD_FULL = 1, /* also what otherwise has its turn every tenth run only */
    GUARD_WOKEN = 2 /* guard_pollfd() was readable */
};

/* All checks, also of every reader that still lives. 0 whether or not anything was found. */
int guard_check(struct guard *g, unsigned flags, struct guard_report *report, struct ct_err *err);

/* Whether the process of this pid (or thread id, in our PID namespace; 0: it has none there) may
 * open a file: 1, or 0 with the reason in the report. Its first open has everything checked; later
 * ones what costs little, the rest when it is older than a fifth of the period. Admitted readers
 * are looked at by guard_check() until they end. */
int guard_admit(struct guard *g, pid_t pid, struct guard_report *report, struct ct_err *err);

/* ---- Reports ---- */

/* {"profile", "digest", "state", "checks", "findings"}, everything; NULL without memory. */
json_t *guard_report_json(const struct guard_profile *p, const struct guard_report *report);
/* {"state", "findings"} of keyserver/PROTOCOL.md section 6. */
json_t *guard_report_wire(const struct guard_profile *p, const struct guard_report *report);
/* "off", "ok" or "drift". */
const char *guard_report_state(const struct guard_profile *p, const struct guard_report *report);

#endif
