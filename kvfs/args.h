/*
 * Command lines: argp, with the exit codes of kvfs and the subcommand in its messages.
 */
#ifndef KVFS_ARGS_H
#define KVFS_ARGS_H

#include <argp.h>
#include <stdint.h>

/* As argp_parse(). `command` ("encrypt") is named in messages. An error ends the process with
 * KVFS_USAGE, --help with KVFS_DONE. */
void kvfs_parse_args(const struct argp *argp, const char *command, int argc, char **argv,
                     void *input);

/* Digits only, at most `max`. 0, or -1. */
int kvfs_parse_u64(const char *text, uint64_t max, uint64_t *out);
/* Digits with an optional K, M, G or T (powers of 1024; KiB and so on are taken too). */
int kvfs_parse_size(const char *text, uint64_t *out);

/* The command line of a command that takes one mount and no options: that mount. */
const char *kvfs_parse_mount(const char *command, const char *doc, int argc, char **argv);

#endif
