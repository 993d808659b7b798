#include "kvfs/args.h"
#include "kvfs/job.h"
#include "kvfs/kvfs.h"

enum {
    OPT_VERSION = 0x200,
    OPT_CHUNK,
    OPT_TENSORS,
    OPT_SKIP,
    OPT_POLICY,
    OPT_REMOTE_POLICY,
    OPT_COPY_PLAIN,
};

static const struct argp_option options[] = {
    {"key", 'k', "FILE|DIR", 0, "The producer's keys, owner.jwks (default: CRYPTOTENSOR_KEYS)", 0},
    {"copy-plain", OPT_COPY_PLAIN, "GLOB", 0, "Take weights that match along unencrypted", 0},
    {"chunk-size", OPT_CHUNK, "SIZE", 0, "Bytes under one tag (default 2M)", 0},
    {"format-version", OPT_VERSION, "1|2", 0, "CryptoTensors version (default 2)", 0},
    {"tensors", OPT_TENSORS, "GLOB", 0, "Encrypt only tensors that match; may be repeated", 0},
    {"skip-tensors", OPT_SKIP, "GLOB", 0, "Leave tensors that match unencrypted", 0},
    {"policy", OPT_POLICY, "FILE", 0, "Rego text that readers have to satisfy", 0},
    {"remote-policy", OPT_REMOTE_POLICY, "FILE", 0, "Rego text for the key server", 0},
    {0},
};

static void add(struct kvfs_globs *globs, const char *glob, struct argp_state *state)
{
    if (kvfs_globs_add(globs, glob)) {
        argp_failure(state, KVFS_FAILED, 0, "no memory for patterns");
    }
}

static error_t parse_format(int key, const char *arg, struct argp_state *state,
                            struct kvfs_job *job)
{
    uint64_t n = 0;
    if (key == OPT_VERSION) {
        if (kvfs_parse_u64(arg, 2, &n) || n == 0) {
            argp_error(state, "--format-version is 1 or 2");
        }
        job->write.version = (int)n;
        return 0;
    }
    if (kvfs_parse_size(arg, &n) || n == 0 || n > (UINT64_C(1) << 32)) {
        argp_error(state, "--chunk-size is 1 to 4G bytes");
    }
    job->write.chunk_size = n;
    return 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct kvfs_job *job = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = job;
        return 0;
    case 'k':
        if (kvfs_keys_arg_add(&job->keys, arg)) {
            argp_error(state, "too many --key");
        }
        return 0;
    case OPT_VERSION:
    case OPT_CHUNK:
        return parse_format(key, arg, state, job);
    case OPT_TENSORS:
        add(&job->tensors, arg, state);
        return 0;
    case OPT_SKIP:
        add(&job->skip_tensors, arg, state);
        return 0;
    case OPT_COPY_PLAIN:
        add(&job->copy_plain, arg, state);
        return 0;
    case OPT_POLICY:
        job->policy_file = arg;
        return 0;
    case OPT_REMOTE_POLICY:
        job->remote_policy_file = arg;
        return 0;
    default:
        return kvfs_job_parse_src(key, arg, state, job);
    }
}

int cmd_encrypt(int argc, char **argv)
{
    static const struct argp_child children[] = {{&kvfs_job_argp, 0, NULL, 0}, {0}};
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
    if (job.tensors.count || job.skip_tensors.count) {
        job.write.choose = kvfs_job_choose;
        job.write.choose_ctx = &job;
    }
    return kvfs_job_run(&job);
}
