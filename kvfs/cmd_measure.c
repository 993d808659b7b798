#include <stdio.h>

#include "format/base/bytes.h"
#include "format/protocol/digest.h"
#include "format/protocol/jose.h"
#include "keyclient/measure.h"
#include "kvfs/args.h"
#include "kvfs/kvfs.h"
#include "kvfs/mount/guarding.h"
#include "kvfs/term.h"

struct arg {
    const char *guard;
    bool json;
};

// NOLINTNEXTLINE(readability-non-const-parameter): argp wants it so
static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct arg *a = state->input;
    switch (key) {
    case 'j':
        a->json = true;
        return 0;
    case 'g':
        a->guard = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"guard", 'g', "strict|drift|off|FILE", 0,
     "The guard profile, which is measured too, with the trees that it names (drift)", 0},
    {"json", 'j', NULL, 0, "Print the digest and what it is made of as JSON", 0},
    {0},
};

static const struct argp argp = {
    .options = options,
    .parser = parse,
    .doc =
        "Print the digest over this executable, the libraries mapped into it, and what the guard "
        "asks for: what an owner registers with a key server as a baseline.",
};

static int print_json(json_t *measurements, const char *digest, struct ct_err *err)
{
    if (json_object_set_new(measurements, "digest", json_string(digest)) ||
        json_dumpf(measurements, stdout, JSON_INDENT(1)) || puts("") < 0) {
        return ct_err_set(err, CT_IO, "the output cannot be written");
    }
    return 0;
}

/* As a mount with this profile does. */
static json_t *measure(const struct arg *a, struct ct_err *err)
{
    static struct kvfs_config config;
    struct guard_profile *profile = NULL;
    struct kc_measured more[KVFS_MEASURED_MAX];
    uint32_t n = 0;
    int r = kvfs_guarding_load(a->guard, &profile, &config, more, &n, err);
    guard_profile_free(profile);
    return r ? NULL : kc_measure(config.profile, more, n, err);
}

int cmd_measure(int argc, char **argv)
{
    char digest[KX_HEX + 1];
    struct arg a = {.guard = "drift"};
    struct ct_err err = CT_ERR_INIT;
    kvfs_parse_args(&argp, "measure", argc, argv, &a);
    kx_autojson measurements = measure(&a, &err);
    if (!measurements || kx_measurement_digest(measurements, digest, &err) ||
        (a.json && print_json(measurements, digest, &err))) {
        return kvfs_complain("measure", &err);
    }
    if (!a.json) {
        (void)puts(digest);
    }
    return KVFS_DONE;
}
