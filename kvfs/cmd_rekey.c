#include "kvfs/args.h"
#include "kvfs/job/job.h"
#include "kvfs/kvfs.h"

enum { OPT_TO_KEY = 0x200, OPT_CHUNK };

static const struct argp_option options[] = {
    {"to-key", OPT_TO_KEY, "FILE|DIR", 0,
     "The new keys (default: the same); where they hold no signing key, that of --key signs", 0},
    {"chunk-size", OPT_CHUNK, "SIZE", 0, "Bytes under one tag (default 2M)", 0},
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
    case OPT_CHUNK:
        if (kvfs_parse_size(arg, &job->write.chunk_size) || job->write.chunk_size == 0 ||
            job->write.chunk_size > (UINT64_C(1) << 32)) {
            argp_error(state, "--chunk-size is 1 to 4G bytes");
        }
        return 0;
    default:
        return kvfs_job_parse_src(key, arg, state, job);
    }
}

int cmd_rekey(int argc, char **argv)
{
    static const struct argp_child children[] = {
        {&kvfs_job_argp, 0, NULL, 0}, {&kvfs_keys_argp, 0, "Keys:", 1}, {0}};
    static const struct argp argp = {
        options,
        parse,
        "SRC -o OUT",
        "Encrypts an encrypted model anew: new DEKs, new IVs, a new body, and the next generation "
        "of its manifest. For when a key got out. SRC is only read.",
        children,
        NULL,
        NULL,
    };
    struct kvfs_job job = {
        .kind = KVFS_JOB_REKEY,
        .command = "rekey",
        .write = {.version = 2, .chunk_size = CT_CHUNK_DEFAULT},
    };
    kvfs_parse_args(&argp, job.command, argc, argv, &job);
    return kvfs_job_run(&job);
}
