#include "kvfs/args.h"
#include "kvfs/job/job.h"
#include "kvfs/kvfs.h"

static const struct argp_option options[] = {
    {"key", 'k', "FILE|DIR", 0, "The producer's keys, owner.jwks (default: CRYPTOTENSOR_KEYS)", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct kvfs_job *job = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = job;
        state->child_inputs[1] = job;
        return 0;
    case 'k':
        if (kvfs_keys_arg_add(&job->keys, arg)) {
            argp_error(state, "too many --key");
        }
        return 0;
    default:
        return kvfs_job_parse_src(key, arg, state, job);
    }
}

int cmd_encrypt(int argc, char **argv)
{
    static const struct argp_child children[] = {
        {&kvfs_encrypt_argp, 0, NULL, 0}, {&kvfs_job_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        options,
        parse,
        "SRC -o OUT",
        "Encrypts a model: every safetensors file of a directory, with its side files taken along "
        "and a signed manifest over all of them; or one file. SRC is only read.",
        children,
        NULL,
        NULL,
    };
    struct kvfs_job job = {
        .kind = KVFS_JOB_ENCRYPT,
        .command = "encrypt",
        .write = {.version = 2, .chunk_size = CT_CHUNK_DEFAULT},
    };
    kvfs_parse_args(&argp, job.command, argc, argv, &job);
    return kvfs_job_run(&job);
}
