/*
 * One run of the checks over one process: what a check sees, and how it says that something fails.
 * Inside of guard/.
 */
#ifndef GUARD_RUN_H
#define GUARD_RUN_H

#include <sys/stat.h>

#include "guard/facts.h"
#include "guard/guard.h"

/* That a check fails. Two failures are the same if `about` is: what fails at the start is not told
 * again where it has only to be kept. Of those with bits, a bit that was not set at the start is
 * new. */
struct guard_failure {
    enum guard_id id;
    char *about;
    uint64_t bits;
    char text[GUARD_TEXT_MAX];
};

struct guard_failures {
    struct guard_failure *items;
    size_t count, cap;
    bool lost; /* no memory for another one, or too many of them */
    enum guard_state state[GUARD_IDS];
};

/* Whose facts these are. */
enum guard_role { GUARD_SELF, GUARD_MATE, GUARD_STRANGER };

struct guard_code {
    char *path;
    struct guard_file_id id;
};

/* A process that is watched. */
struct guard_subject {
    enum guard_role role;
    pid_t pid;
    int proc_fd; /* /proc/PID */
    int pidfd;
    int mountinfo_fd;
    int pagemap_fd; /* SELF, MATE: opened early, since only a dumpable process may */
    uint64_t start_time;
    struct guard_facts start;
    struct guard_failures at_start;
    struct guard_code *code; /* SELF, MATE: files of which code was mapped at the start */
    size_t code_count;
    int64_t exiting_ns; /* since when the first thread is on its way out; 0: it is not */
    int64_t full_ns;    /* reader: when everything was last looked at */
    pid_t asks;         /* reader: the thread that wants to open a file; 0: none just now */
    size_t tree_at;     /* reader: 1 + the admitted tree that it would be the first of; or 0 */
    uint8_t tree[CT_SHA256_LEN]; /* the digest of that one */
};

struct guard_run {
    struct guard *g;
    const struct guard_profile *profile;
    const struct guard_config *config;
    struct guard_subject *s;
    const struct guard_facts *now;
    const struct guard_facts *start; /* NULL while the start state is taken */
    unsigned flags;
    int proc_root_fd; /* the root directory of the process, or -1 */
    struct guard_failures *out;
};

/* The check was made; without a failure after it, it is ok. */
void guard_looked(struct guard_run *r, enum guard_id id);
void guard_unseen(struct guard_run *r, enum guard_id id);
void guard_fail(struct guard_run *r, enum guard_id id, uint64_t bits, const char *about,
                const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* Whether the check counts for whom this run is about. */
bool guard_wants(const struct guard_run *r, enum guard_id id);
static inline bool guard_has(const struct guard_run *r, unsigned bits)
{
    return (r->now->has & bits) == bits;
}

/* Whether a node is what its name in /dev promises: 1; 0: another device; -1: the name promises
 * nothing. */
int guard_device_is_standard(const char *path, const struct stat *st);

void guard_failures_free(struct guard_failures *f);

void guard_check_mounts(struct guard_run *r);
void guard_check_privileges(struct guard_run *r);
void guard_check_process(struct guard_run *r);
void guard_check_maps(struct guard_run *r);
void guard_check_probes(struct guard_run *r); /* SELF: write probes, outside tracer */
void guard_check_kernel(struct guard_run *r);
void guard_check_machine(struct guard_run *r); /* namespaces, devices, sockets */
void guard_check_trees(struct guard_run *r);   /* SELF */
void guard_check_reader(struct guard_run *r);  /* STRANGER: who may read at all */
/* STRANGER: the same of one of its threads, of which `st` is known. */
void guard_check_reader_thread(struct guard_run *r, int tasks_fd, const char *tid,
                               const struct guard_status *st);

/* Takes the files of which code is mapped. */
int guard_code_take(struct guard_subject *s, struct ct_err *err);
/* Takes the marks of the profile's trees. */
int guard_trees_take(struct guard *g, struct ct_err *err);

/* A digest, out of the cache if the file is the same as then. */
int guard_known_file_digest(struct guard *g, int fd, uint8_t out[static CT_SHA256_LEN],
                            struct ct_err *err);
int guard_known_tree_digest(struct guard *g, int dirfd, uint64_t mnt_ns,
                            uint8_t out[static CT_SHA256_LEN], struct ct_err *err);

/* ---- Subjects and runs (subject.c) ---- */

/* NULL with CT_NOTFOUND if there is no such process. */
struct guard_subject *guard_subject_open(struct guard *g, pid_t pid, enum guard_role role,
                                         struct ct_err *err);
void guard_subject_free(struct guard_subject *s);
bool guard_subject_alive(const struct guard_subject *s);
/* Whether it has ended or is about to, so that what can't be read of it means nothing. A process
 * whose first thread is gone while others stay is not ending for long. */
bool guard_subject_ending(const struct guard *g, struct guard_subject *s);
/* Reads facts and takes them, and what fails, as the start state. */
int guard_subject_start(struct guard *g, struct guard_subject *s, struct ct_err *err);
/* Reads what `wanted` says, runs what can be said of it, adds to the report. -1: it has ended
 * (CT_NOTFOUND), or something that makes the whole run fail. */
int guard_subject_run(struct guard *g, struct guard_subject *s, unsigned wanted, unsigned flags,
                      struct guard_report *report, struct ct_err *err);
unsigned guard_subject_wants(enum guard_role role, unsigned flags);
/* Adds what fails to a report, as the levels have it. */
void guard_judge(const struct guard *g, const struct guard_subject *s,
                 const struct guard_failures *now, struct guard_report *report);

extern const char *const guard_capability_names[64];

#endif
