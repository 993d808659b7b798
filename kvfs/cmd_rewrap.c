#include "kvfs/args.h"
#include "kvfs/job/job.h"
#include "kvfs/kvfs.h"

enum { OPT_TO_KEY = 0x200 };

static const struct argp_option options[] = {
    {"to-key", OPT_TO_KEY, "FILE|DIR", 0,
     "The new keys; where they hold no signing key, that of --key signs", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct kvfs_job *job = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = job;
        state->child_inputs[1] = &job->keys;
        return 0;
    case OPT_TO_KEY:
        if (kvfs_keys_arg_add(&job->to_keys, arg)) {
            argp_error(state, "too many --to-key");
        }
        return 0;
    case ARGP_KEY_END:
        if (job->to_keys.count == 0 && !job->master_kid && !job->sign_kid) {
            argp_error(state, "for which keys? Say --to-key FILE");
        }
        return kvfs_job_parse_src(key, arg, state, job);
    default:
        return kvfs_job_parse_src(key, arg, state, job);
    }
}

int cmd_rewrap(int argc, char **argv)
{
    static const struct argp_child children[] = {
        {&kvfs_job_argp, 0, NULL, 0}, {&kvfs_keys_argp, 0, "Keys:", 1}, {0}};
    static const struct argp argp = {
        options,
        parse,
        "SRC -o OUT --to-key NEW",
        "Wraps the keys of an encrypted model for another master key, and signs it anew. Only "
        "headers change: whoever has an old DEK can still read the body (see kvfs rekey). SRC is "
        "only read.",
        children,
        NULL,
        NULL,
    };
    struct kvfs_job job = {.kind = KVFS_JOB_REWRAP, .command = "rewrap"};
    kvfs_parse_args(&argp, job.command, argc, argv, &job);
    return kvfs_job_run(&job);
}
