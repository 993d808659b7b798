/*
 * What encrypt, rewrap and rekey have in common: a directory (or one file) goes in, another one
 * comes out, and the source is only read.
 *
 * First everything is looked at and written down as a list of tasks (job_plan.c); what can't be
 * done is reported as one list, before anything is written. Then the tasks are done one after
 * another, each output whole or not at all (job.c), and a signed note says how far it came
 * (job_state.c), so that --resume can go on. The manifest comes last.
 */
#ifndef KVFS_JOB_H
#define KVFS_JOB_H

#include <jansson.h>

#include "format/writer.h"
#include "kvfs/domains.h"
#include "kvfs/keys_arg.h"
#include "kvfs/walk.h"
#include "kvfs/weights.h"

enum kvfs_job_kind { KVFS_JOB_ENCRYPT, KVFS_JOB_REWRAP, KVFS_JOB_REKEY };
enum kvfs_choice { KVFS_AS_USUAL, KVFS_YES, KVFS_NO };

struct kvfs_job;
struct kvfs_plan;

/* What a command does besides; all members may be NULL. 0, or -1 with err, which ends the job. */
struct kvfs_job_hooks {
    /* Everything was looked at, nothing is written yet. May set the generation of a domain. */
    int (*planned)(void *ctx, struct kvfs_job *job, struct kvfs_plan *plan, struct ct_err *err);
    /* Everything is written to `dirfd`, but the job is not finished: --resume comes here again. */
    int (*written)(void *ctx, const struct kvfs_job *job, const struct kvfs_plan *plan, int dirfd,
                   struct ct_err *err);
    void *ctx;
    uint64_t bytes; /* that `written` adds to the progress; set by `planned` at the latest */
};

/* What the command line says; zero-initialised but for `kind` and `command`. */
struct kvfs_job {
    enum kvfs_job_kind kind;
    const char *command; /* for messages */
    const char *src, *out;
    struct kvfs_keys_arg keys, to_keys;
    const char *master_kid, *sign_kid; /* NULL: the only one */
    struct ct_write_options write;
    const char *policy_file, *remote_policy_file;
    struct kvfs_globs exclude, copy_plain, tensors, skip_tensors;
    enum kvfs_choice manifest;
    uint64_t generation; /* 0: as usual */
    bool resume, quiet;
    struct kvfs_job_hooks hooks; /* for directories only */

    /* Filled when it runs. A ring that is there already is used instead of `keys`. */
    struct ct_keyring *ring, *to_ring;
    struct ct_keysource *old; /* opens what is encrypted in the source; NULL for encrypt */
    struct ct_keysource *now; /* checks what was written */
    struct ct_write_keys write_keys;
    uint8_t sign_pub[CT_ED25519_PUB];
    struct ct_buf policy, remote_policy;
    size_t tensors_seen, left_plain; /* counted by the choice of tensors, for the file at hand */
};

/* Options that all three take; the input is the struct kvfs_job. */
extern const struct argp kvfs_job_argp;
/* What those that encrypt plain files take besides. */
extern const struct argp kvfs_encrypt_argp;
/* Takes SRC, for a command's own parser: 0, or ARGP_ERR_UNKNOWN. Checks at the end that SRC and
 * --output are there. */
error_t kvfs_job_parse_src(int key, char *arg, struct argp_state *state, struct kvfs_job *job);

/* Does it. Prints everything there is to say; an exit code. */
int kvfs_job_run(struct kvfs_job *job);

/* ---- job_keys.c: reads keys and policies, fills what is filled when it runs ---- */
int kvfs_job_prepare(struct kvfs_job *job, struct ct_err *err);
void kvfs_job_release(struct kvfs_job *job);

/* ---- job_plan.c ---- */
enum kvfs_step { KVFS_STEP_DIR, KVFS_STEP_MODEL, KVFS_STEP_COPY, KVFS_STEP_LINK };

struct kvfs_task {
    enum kvfs_step step;
    const struct kvfs_item *item;
    struct ct_version version;     /* MODEL, COPY: of the source */
    struct kvfs_domain *domain;    /* the manifest that will vouch for it, or NULL */
    const struct ct_entry *listed; /* what the source's manifest says, or NULL */
    bool done;
    struct ct_entry entry; /* once it is done */
    struct ct_entry_arena *arena;
};

struct kvfs_plan {
    struct kvfs_walk walk;
    struct kvfs_task *tasks; /* by path */
    size_t count;
    struct kvfs_domains domains; /* that will have a manifest */
    uint64_t bytes;
    size_t models, copies, links;
};

/* Looks at job->src. CT_USAGE with an empty message when it can't be done: then the reasons were
 * printed as a list. */
int kvfs_plan_make(struct kvfs_job *job, struct kvfs_plan *plan, struct ct_err *err);
void kvfs_plan_free(struct kvfs_plan *plan);
/* Opens a source file for a task and checks that it is the one that was planned. */
int kvfs_task_open(const struct kvfs_plan *plan, const struct kvfs_task *task,
                   struct ct_source **out, struct ct_err *err);

/* ---- job_file.c: one task's file ---- */
/* Writes dirfd/name and fills entry and arena; checks what the source's manifest says of it. */
int kvfs_file_make(struct kvfs_job *job, struct ct_source *in, struct kvfs_task *task, int dirfd,
                   const char *name, struct ct_err *err);
/* The entry of an output that is there already. */
int kvfs_file_entry(struct kvfs_job *job, int dirfd, const char *name, struct kvfs_task *task,
                    struct ct_version *version, struct ct_err *err);
/* For ct_write_options.choose; ctx is the job. */
bool kvfs_job_choose(void *ctx, struct ct_span tensor);
/* A small file, whole or not at all. */
int kvfs_text_write(int dirfd, const char *name, const struct ct_buf *text, bool replace,
                    struct ct_err *err);
/* Signs a manifest over entries and writes it as dirfd/kvfs.manifest. */
int kvfs_manifest_make(struct kvfs_job *job, const struct ct_entry *entries, size_t count,
                       uint64_t generation, int dirfd, bool replace, struct ct_err *err);

/* ---- job_state.c ---- */
#define KVFS_STATE_NAME ".kvfs-unfinished.json"

struct kvfs_state; /* which outputs are finished */

/* Opens or makes OUT. A directory that is not empty is CT_EXISTS, but with --resume and a note in
 * it: then finished tasks are marked, and what is unfinished is removed. A note that this signing
 * key did not make, or for other options, is refused. */
int kvfs_state_open(struct kvfs_job *job, struct kvfs_plan *plan, struct kvfs_state **out,
                    struct ct_err *err);
int kvfs_state_dir(const struct kvfs_state *s); /* OUT; borrowed */
/* Notes a finished MODEL or COPY, and writes the note now and then. */
int kvfs_state_done(struct kvfs_state *s, const struct kvfs_task *task, int dirfd, const char *name,
                    struct ct_err *err);
int kvfs_state_write(struct kvfs_state *s, struct ct_err *err);
size_t kvfs_state_count(const struct kvfs_state *s); /* finished, now and before */
/* Removes the note: everything is finished. */
int kvfs_state_finish(struct kvfs_state *s, struct ct_err *err);
/* After a failure: if nothing is finished, removes all that was made. */
void kvfs_state_abandon(struct kvfs_state *s, const struct kvfs_plan *plan);
void kvfs_state_free(struct kvfs_state *s); /* NULL is allowed */

/* ---- job_resume.c: what an earlier run left ---- */
/* What must be the same for --resume. Owned by the caller; NULL when memory runs out. */
json_t *kvfs_resume_options(const struct kvfs_job *job);
/* Reads the note in dirfd, marks finished tasks, removes the rest. The finished ones of the note
 * are left in *done (owned by the caller). */
int kvfs_resume(struct kvfs_job *job, struct kvfs_plan *plan, int dirfd, json_t **done,
                struct ct_err *err);
json_t *kvfs_version_json(const struct ct_version *v);
/* Takes ".NAME.0123456789abcdef.tmp", as a kill leaves it, apart: the path of NAME, owned by the
 * caller, or NULL. */
char *kvfs_final_path(const char *path);

#define KVFS_STATE_TYP "kvfs-unfinished+json"

#endif
