#include "kvfs/args.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/bytes.h"
#include "kvfs/kvfs.h"

void kvfs_parse_args(const struct argp *argp, const char *command, int argc, char **argv,
                     void *input)
{
    /* argp and getopt keep it for their messages. */
    static char name[64];
    (void)snprintf(name, sizeof(name), "kvfs %s", command);
    argv[0] = name;
    argp_err_exit_status = KVFS_USAGE;
    if (argp_parse(argp, argc, argv, 0, NULL, input)) {
        exit(KVFS_USAGE);
    }
}

static int parse_digits(const char *text, char **end, uint64_t *out)
{
    if (*text < '0' || *text > '9') {
        return -1;
    }
    errno = 0;
    *out = strtoull(text, end, 10);
    return errno ? -1 : 0;
}

int kvfs_parse_u64(const char *text, uint64_t max, uint64_t *out)
{
    char *end = NULL;
    return parse_digits(text, &end, out) || *end || *out > max ? -1 : 0;
}

int kvfs_parse_size(const char *text, uint64_t *out)
{
    char *end = NULL;
    if (parse_digits(text, &end, out)) {
        return -1;
    }
    if (*end == '\0') {
        return 0;
    }
    static const char units[] = "KMGT";
    char upper = (char)(*end >= 'a' && *end <= 'z' ? *end - 32 : *end);
    const char *unit = strchr(units, upper);
    const char *rest = end + 1;
    if (!unit || (*rest && strcmp(rest, "iB") != 0 && strcmp(rest, "i") != 0)) {
        return -1;
    }
    uint64_t factor = UINT64_C(1) << (10 * (unit - units + 1));
    return ct_mul_u64(*out, factor, out) ? 0 : -1;
}

static error_t take_mount(int key, char *arg, struct argp_state *state)
{
    const char **mount = state->input;
    switch (key) {
    case ARGP_KEY_ARG:
        if (*mount) {
            argp_error(state, "more than one mount: %s and %s", *mount, arg);
        }
        *mount = arg;
        return 0;
    case ARGP_KEY_END:
        if (!*mount) {
            argp_error(state, "which mount?");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const char *kvfs_parse_mount(const char *command, const char *doc, int argc, char **argv)
{
    const char *mount = NULL;
    const struct argp argp = {.parser = take_mount, .args_doc = "MNT", .doc = doc};
    kvfs_parse_args(&argp, command, argc, argv, &mount);
    return mount;
}
