/*
 * A profile says which checks count and what is declared: a small text file with one statement a
 * line and `#` comments. guard/README.md has the manual of the language.
 *
 *     profile NAME                     first line, of a file: 1 to 32 of a-z 0-9 -
 *     base strict|drift                begins with what that profile says
 *     CHECK require|keep|ignore [own|reader]     `*` for all checks
 *     device GLOB                      a device node that may be in /dev
 *     bind GLOB [rw]                   something may be mounted there, read-only unless `rw`
 *     tmpfs PATH                       a tmpfs may be there
 *     protect DIR                      must refuse every write
 *     tree DIR                         its content must stay as it is at the start
 *     period MS                        of checks; 1000
 *     gap MS                           between two checks, above which it counts as stopped; 5000
 *     admit uid UID…                   readers; without such a line, every uid
 *     admit exe PATH [SHA256] [tree]   without such a line, every program; `tree`: only together
 *                                      with code out of an admitted tree (an interpreter)
 *     admit tree DIR [SHA256]          in the reader's container, as guard/tree.h digests it
 *     admit pin mnt|pid|cgroup…        as the first reader's; for check reader-pin
 *
 * Without `base`, a check that is not named is required: what is forgotten fails closed.
 */
#ifndef GUARD_PROFILE_H
#define GUARD_PROFILE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "format/base/bytes.h"
#include "format/base/sha256.h"
#include "guard/checks.h"

enum guard_level {
    GUARD_IGNORE,
    GUARD_KEEP,   /* what held at the start has to go on holding */
    GUARD_REQUIRE /* has to hold at the start and later */
};

enum { GUARD_NAME_MAX = 32, GUARD_DECLARED_MAX = 256, GUARD_PROFILE_MAX = 1 << 16 };

enum guard_kind {
    GUARD_DEVICE,
    GUARD_BIND,
    GUARD_TMPFS,
    GUARD_PROTECT,
    GUARD_TREE,
    GUARD_ADMIT_UID,
    GUARD_ADMIT_EXE,
    GUARD_ADMIT_TREE,
    GUARD_KINDS
};

struct guard_declared {
    enum guard_kind kind;
    const char *path; /* owned by the profile; NULL for a uid */
    uid_t uid;
    bool rw;         /* GUARD_BIND */
    bool needs_tree; /* GUARD_ADMIT_EXE */
    bool has_digest;
    uint8_t digest[CT_SHA256_LEN];
    /* GUARD_TREE, once measured: its marks (tree.h), which guard_new() has to find again. */
    bool marked;
    uint8_t marks[CT_SHA256_LEN];
};

enum { GUARD_PIN_MNT = 1, GUARD_PIN_PID = 2, GUARD_PIN_CGROUP = 4 };

struct guard_profile {
    char name[GUARD_NAME_MAX + 1];
    enum guard_level level[GUARD_IDS][GUARD_WHOS]; /* IGNORE for those it is not about */
    struct guard_declared declared[GUARD_DECLARED_MAX];
    size_t count;
    unsigned count_of[GUARD_KINDS];
    unsigned pins;
    unsigned period_ms, gap_ms;
};

/* `strict`, `drift`, `off`, or the path of a file (whatever has a `/`). CT_USAGE with file and line
 * for what is no statement. Freed with guard_profile_free(). */
int guard_profile_load(const char *name_or_path, struct guard_profile **out, struct ct_err *err);
/* Of a text; `label` stands in errors. */
int guard_profile_parse(const char *text, size_t n, const char *label, struct guard_profile **out,
                        struct ct_err *err);
void guard_profile_free(struct guard_profile *p); /* NULL is allowed */

/* Whether anything is checked at all. */
bool guard_profile_is_off(const struct guard_profile *p);
/* Whether readers are: if not, guard_admit() lets all of them in. */
bool guard_profile_judges_readers(const struct guard_profile *p);

/* The effective profile, admission included, in the language above, each thing said in one way
 * only: two files that mean the same give the same text. */
int guard_profile_text(const struct guard_profile *p, struct ct_buf *out, struct ct_err *err);
/* SHA-256 of this text, to be measured. */
int guard_profile_digest(const struct guard_profile *p, uint8_t out[static CT_SHA256_LEN],
                         struct ct_err *err);

#endif
