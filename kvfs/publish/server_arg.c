#include "kvfs/publish/server_arg.h"

#include "kvfs/args.h"

enum { OPT_CA = 0x400, OPT_WAIT };

static const struct argp_option options[] = {
    {"ca", OPT_CA, "FILE", 0, "PEM file of the authorities that may vouch for the server", 0},
    {"wait", OPT_WAIT, "SEC", 0, "How long to try again while the server can't be reached (30)", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct kvfs_server_arg *a = state->input;
    uint64_t n = 0;
    switch (key) {
    case OPT_CA:
        a->ca = arg;
        return 0;
    case OPT_WAIT:
        if (kvfs_parse_u64(arg, KVFS_PATIENCE_MAX, &n)) {
            argp_error(state, "--wait is 0 to %d seconds", KVFS_PATIENCE_MAX);
        }
        a->patience = (unsigned)n;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp kvfs_server_argp = {.options = options, .parser = parse};

error_t kvfs_server_take_url(struct kvfs_server_arg *a, const char *url, struct argp_state *state)
{
    if (a->url) {
        argp_error(state, "more than one URL");
    }
    a->url = url;
    return 0;
}
