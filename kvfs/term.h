/*
 * What the tools print: safe for terminals (names come from hostile files), readable for people.
 */
#ifndef KVFS_TERM_H
#define KVFS_TERM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "format/base/bytes.h"
#include "format/base/err.h"
#include "format/scan.h"

/* Appends text with everything that a terminal would act on (control characters, what reverses
 * the direction of writing, bytes that are not UTF-8) spelled as \xNN or \uNNNN. */
void kvfs_put_safe(struct ct_buf *out, const char *text, size_t n);
/* The same to a stream. */
void kvfs_print_safe(FILE *to, const char *text, size_t n);
/* "kvfs COMMAND: WHAT" and the lines of a text that nobody vouches for, on stderr. */
void kvfs_tell(const char *command, const char *what, const char *text);
/* A newline at the end of fmt stays one. */
void kvfs_printf_safe(FILE *to, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

enum { KVFS_SIZE_TEXT = 24 };
/* "688 B", "1.5 GiB". Returns out. */
const char *kvfs_size_text(char out[static KVFS_SIZE_TEXT], uint64_t bytes);
/* "1 file", "3 files". Returns out. */
const char *kvfs_count_text(char out[static 64], uint64_t n, const char *noun);
/* "kvfs encrypt: REASON" to stderr, nothing for an empty message; returns KVFS_FAILED. */
int kvfs_complain(const char *command, const struct ct_err *err);
/* "kvfs encrypt: warning: …" to stderr. */
void kvfs_warn(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Columns that line up. Zero-initialised; cells are made safe when they are added. */
struct kvfs_grid {
    struct ct_buf text; /* cells, each with a NUL after it */
    size_t columns, cells;
    unsigned right; /* bit i: column i is set flush right */
};
#define KVFS_GRID(n, right_columns)                                                                \
    {                                                                                              \
        .columns = (n), .right = (right_columns)                                                   \
    }

void kvfs_grid_cell(struct kvfs_grid *g, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void kvfs_grid_print(const struct kvfs_grid *g, FILE *to, const char *indent);
void kvfs_grid_free(struct kvfs_grid *g);

#endif
