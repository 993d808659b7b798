#include "kvfs/args.h"
#include "kvfs/job/job.h"

enum {
    OPT_EXCLUDE = 0x100,
    OPT_RESUME,
    OPT_MASTER_KID,
    OPT_SIGN_KID,
    OPT_MANIFEST,
    OPT_NO_MANIFEST,
    OPT_GENERATION,
    OPT_VERSION,
    OPT_CHUNK,
    OPT_TENSORS,
    OPT_SKIP,
    OPT_POLICY,
    OPT_REMOTE_POLICY,
    OPT_COPY_PLAIN,
    THREADS_MAX = 1024,
};

static const struct argp_option options[] = {
    {"output", 'o', "OUT", 0, "Where to write: what does not exist yet, or an empty directory", 0},
    {"master-kid", OPT_MASTER_KID, "KID", 0, "The master key to wrap with, if there are several",
     0},
    {"sign-kid", OPT_SIGN_KID, "KID", 0, "The key to sign with, if there are several", 0},
    {"exclude", OPT_EXCLUDE, "GLOB", 0, "Leave out what matches; may be repeated", 0},
    {"manifest", OPT_MANIFEST, NULL, 0, "Sign a manifest also where it is not usual", 0},
    {"no-manifest", OPT_NO_MANIFEST, NULL, 0, "Do not write a manifest", 0},
    {"generation", OPT_GENERATION, "N", 0, "The manifest's generation number", 0},
    {"resume", OPT_RESUME, NULL, 0, "Go on with what an interrupted run left in OUT", 0},
    {"threads", 'j', "N", 0, "Threads to encrypt with (default: one a CPU)", 0},
    {"quiet", 'q', NULL, 0, "Print warnings and errors only", 0},
    {0},
};

static void globs_add(struct kvfs_globs *globs, const char *glob, struct argp_state *state)
{
    if (kvfs_globs_add(globs, glob)) {
        argp_failure(state, 1, 0, "no memory for patterns");
    }
}

static uint64_t number(const char *arg, uint64_t max, const char *what, struct argp_state *state)
{
    uint64_t n = 0;
    if (kvfs_parse_u64(arg, max, &n) || n == 0) {
        argp_error(state, "%s is a number from 1 to %llu", what, (unsigned long long)max);
    }
    return n;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct kvfs_job *job = state->input;
    switch (key) {
    case 'o':
        job->out = arg;
        return 0;
    case 'j':
        job->write.threads = (unsigned)number(arg, THREADS_MAX, "--threads", state);
        return 0;
    case 'q':
        job->quiet = true;
        return 0;
    case OPT_MASTER_KID:
        job->master_kid = arg;
        return 0;
    case OPT_SIGN_KID:
        job->sign_kid = arg;
        return 0;
    case OPT_EXCLUDE:
        globs_add(&job->exclude, arg, state);
        return 0;
    case OPT_MANIFEST:
    case OPT_NO_MANIFEST:
        job->manifest = key == OPT_MANIFEST ? KVFS_YES : KVFS_NO;
        return 0;
    case OPT_GENERATION:
        job->generation = number(arg, (UINT64_C(1) << 53) - 1, "--generation", state);
        return 0;
    case OPT_RESUME:
        job->resume = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp kvfs_job_argp = {.options = options, .parser = parse};

/* ---- what encrypt and publish have besides ---- */

static const struct argp_option encrypt_options[] = {
    {"copy-plain", OPT_COPY_PLAIN, "GLOB", 0, "Take weights that match along unencrypted", 0},
    {"chunk-size", OPT_CHUNK, "SIZE", 0, "Bytes under one tag (default 2M)", 0},
    {"format-version", OPT_VERSION, "1|2", 0, "CryptoTensors version (default 2)", 0},
    {"tensors", OPT_TENSORS, "GLOB", 0, "Encrypt only tensors that match; may be repeated", 0},
    {"skip-tensors", OPT_SKIP, "GLOB", 0, "Leave tensors that match unencrypted", 0},
    {"policy", OPT_POLICY, "FILE", 0, "Rego text that readers have to satisfy", 0},
    {"remote-policy", OPT_REMOTE_POLICY, "FILE", 0, "Rego text for the key server", 0},
    {0},
};

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

static error_t parse_encrypt(int key, char *arg, struct argp_state *state)
{
    struct kvfs_job *job = state->input;
    switch (key) {
    case OPT_VERSION:
    case OPT_CHUNK:
        return parse_format(key, arg, state, job);
    case OPT_TENSORS:
        globs_add(&job->tensors, arg, state);
        return 0;
    case OPT_SKIP:
        globs_add(&job->skip_tensors, arg, state);
        return 0;
    case OPT_COPY_PLAIN:
        globs_add(&job->copy_plain, arg, state);
        return 0;
    case OPT_POLICY:
        job->policy_file = arg;
        return 0;
    case OPT_REMOTE_POLICY:
        job->remote_policy_file = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp kvfs_encrypt_argp = {.options = encrypt_options, .parser = parse_encrypt};

error_t kvfs_job_parse_src(int key, char *arg, struct argp_state *state, struct kvfs_job *job)
{
    switch (key) {
    case ARGP_KEY_ARG:
        if (job->src) {
            argp_error(state, "more than one source: %s and %s", job->src, arg);
        }
        job->src = arg;
        return 0;
    case ARGP_KEY_END:
        if (!job->src) {
            argp_error(state, "which directory or file?");
        }
        if (!job->out) {
            argp_error(state, "where to? Say -o OUT");
        }
        if (job->manifest == KVFS_NO && job->generation) {
            argp_error(state, "--generation has no meaning with --no-manifest");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}
