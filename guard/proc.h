/*
 * Parsers of /proc's texts (proc(5)): bytes in, structures out, nothing opened. What does not look
 * as the kernel writes it is CT_MALFORMED.
 */
#ifndef GUARD_PROC_H
#define GUARD_PROC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "format/base/arena.h"

enum guard_capset { GUARD_CAP_INH, GUARD_CAP_PRM, GUARD_CAP_EFF, GUARD_CAP_BND, GUARD_CAP_AMB };
enum { GUARD_CAPSETS = 5 };

struct guard_status {
    pid_t tgid;
    pid_t tracer;
    uint32_t uid[4], gid[4]; /* real, effective, saved, file system */
    bool group0;             /* among the supplementary groups */
    uint64_t caps[GUARD_CAPSETS];
    int no_new_privs; /* -1: the kernel does not say */
    int seccomp;      /* 0 none, 1 strict, 2 filter; -1 */
    char state;       /* R S D T t Z X … */
};

int guard_parse_status(const char *text, size_t n, struct guard_status *out, struct ct_err *err);

/* Of /proc/PID/stat: field 22, the start in clock ticks since boot, and whether the kernel is
 * taking the process (or thread) down (PF_EXITING in field 9): then its memory is gone already. */
int guard_parse_stat(const char *text, size_t n, uint64_t *start_time, bool *exiting,
                     struct ct_err *err);

enum { GUARD_MAP_W = 1, GUARD_MAP_X = 2, GUARD_MAP_SHARED = 4 };

/* A mapping that can be executed, or written and executed. */
struct guard_map {
    uint64_t start, end;
    unsigned flags;
    uint64_t ino;     /* 0: no file */
    const char *path; /* as the kernel has it, " (deleted)" taken off; "" for anonymous memory */
    bool deleted;
};

struct guard_maps {
    struct ct_arena arena;
    struct guard_map *items;
    size_t count;
};

enum { GUARD_MAPS_MAX = 65536 };

int guard_parse_maps(const char *text, size_t n, struct guard_maps *out, struct ct_err *err);
void guard_maps_free(struct guard_maps *m);

enum {
    GUARD_ENV_PRELOAD = 1,
    GUARD_ENV_AUDIT = 2,
    GUARD_ENV_LIBRARY_PATH = 4,
    GUARD_ENV_INTERPRETER = 8
};
/* Which of LD_PRELOAD, LD_AUDIT, LD_LIBRARY_PATH are set and not empty; INTERPRETER: one of those
 * by which interpreters load code from elsewhere (PYTHONPATH, NODE_OPTIONS, BASH_ENV, …). */
unsigned guard_parse_environ(const char *text, size_t n);

/* A row of /proc/PID/limits; UINT64_MAX for `unlimited`. */
int guard_parse_limit(const char *text, size_t n, const char *name, uint64_t *soft, uint64_t *hard,
                      struct ct_err *err);

/* Whether /proc/swaps lists anything. */
bool guard_parse_swaps(const char *text, size_t n);

/* The number in "mnt:[4026531841]"; 0 if it is not that. */
uint64_t guard_parse_ns(const char *text);

/* Undoes \040 and the like in place. */
void guard_unescape(char *text);

#endif
