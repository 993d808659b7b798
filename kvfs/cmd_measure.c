#include <stdio.h>

#include "format/base/bytes.h"
#include "format/protocol/digest.h"
#include "format/protocol/jose.h"
#include "keyclient/measure.h"
#include "kvfs/args.h"
#include "kvfs/kvfs.h"
#include "kvfs/term.h"

// NOLINTNEXTLINE(readability-non-const-parameter): argp wants it so
static error_t parse(int key, char *arg, struct argp_state *state)
{
    bool *json = state->input;
    (void)arg;
    if (key != 'j') {
        return ARGP_ERR_UNKNOWN;
    }
    *json = true;
    return 0;
}

static const struct argp_option options[] = {
    {"json", 'j', NULL, 0, "Print the digest and what it is made of as JSON", 0},
    {0},
};

static const struct argp argp = {
    .options = options,
    .parser = parse,
    .doc = "Print the digest over this executable and the libraries mapped into it: what an owner "
           "registers with a key server as a baseline.",
};

static int print_json(json_t *measurements, const char *digest, struct ct_err *err)
{
    if (json_object_set_new(measurements, "digest", json_string(digest)) ||
        json_dumpf(measurements, stdout, JSON_INDENT(1)) || puts("") < 0) {
        return ct_err_set(err, CT_IO, "the output cannot be written");
    }
    return 0;
}

int cmd_measure(int argc, char **argv)
{
    char digest[KX_HEX + 1];
    bool json = false;
    struct ct_err err = CT_ERR_INIT;
    kvfs_parse_args(&argp, "measure", argc, argv, &json);
    kx_autojson measurements = kc_measure(&err);
    if (!measurements || kx_measurement_digest(measurements, digest, &err) ||
        (json && print_json(measurements, digest, &err))) {
        return kvfs_complain("measure", &err);
    }
    if (!json) {
        (void)puts(digest);
    }
    return KVFS_DONE;
}
