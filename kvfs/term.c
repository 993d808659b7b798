#include "kvfs/term.h"

#include <stdarg.h>
#include <string.h>

#include "kvfs/kvfs.h"

/* Length of the well-formed UTF-8 character at p, 0 if there is none; its code point in *c. */
static size_t utf8_at(const uint8_t *p, size_t n, uint32_t *c)
{
    size_t len = p[0] < 0x80 ? 1 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (len > n || !ct_utf8_ok(p, len)) {
        return 0;
    }
    static const uint8_t mask[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    *c = p[0] & mask[len];
    for (size_t i = 1; i < len; i++) {
        *c = *c << 6 | (p[i] & 0x3f);
    }
    return len;
}

static bool acts_on_terminals(uint32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x61c || (c >= 0x200b && c <= 0x200f) ||
           (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff ||
           (c >= 0xe0000 && c <= 0xe007f);
}

void kvfs_put_safe(struct ct_buf *out, const char *text, size_t n)
{
    const uint8_t *p = (const uint8_t *)text;
    for (size_t i = 0; i < n;) {
        uint32_t c = 0;
        size_t len = utf8_at(p + i, n - i, &c);
        if (len == 0) {
            ct_buf_printf(out, "\\x%02x", p[i]);
            len = 1;
        } else if (!acts_on_terminals(c)) {
            ct_buf_put(out, p + i, len);
        } else if (c < 0x80) {
            ct_buf_printf(out, "\\x%02x", c);
        } else {
            ct_buf_printf(out, "\\u%04x", c);
        }
        i += len;
    }
}

void kvfs_print_safe(FILE *to, const char *text, size_t n)
{
    ct_autobuf b = {0};
    kvfs_put_safe(&b, text, n);
    (void)fwrite(b.data, 1, b.len, to);
}

/* A newline at the end of fmt is ours: it stays. */
__attribute__((format(printf, 2, 0))) static void vput_safe(struct ct_buf *out, const char *fmt,
                                                            va_list ap)
{
    char *text = NULL;
    size_t n = strlen(fmt);
    bool line = n > 0 && fmt[n - 1] == '\n';
    if (vasprintf(&text, fmt, ap) >= 0) {
        kvfs_put_safe(out, text, strlen(text) - line);
        free(text);
    }
    if (line) {
        ct_buf_putc(out, '\n');
    }
}

__attribute__((format(printf, 3, 0))) static void vprint_line(FILE *to, const char *before,
                                                              const char *fmt, va_list ap)
{
    ct_autobuf b = {0};
    ct_buf_puts(&b, before);
    vput_safe(&b, fmt, ap);
    ct_buf_putc(&b, '\n');
    (void)fwrite(b.data, 1, b.len, to);
}

void kvfs_printf_safe(FILE *to, const char *fmt, ...)
{
    ct_autobuf b = {0};
    va_list ap;
    va_start(ap, fmt);
    vput_safe(&b, fmt, ap);
    va_end(ap);
    (void)fwrite(b.data, 1, b.len, to);
}

const char *kvfs_size_text(char out[static KVFS_SIZE_TEXT], uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned u = 0;
    double v = (double)bytes;
    while (v >= 1023.95 && u < 6) {
        v /= 1024;
        u++;
    }
    bool whole = u == 0 || v == (double)(uint64_t)v;
    (void)snprintf(out, KVFS_SIZE_TEXT, whole ? "%.0f %s" : "%.1f %s", v, units[u]);
    return out;
}

const char *kvfs_count_text(char out[static 64], uint64_t n, const char *noun)
{
    (void)snprintf(out, 64, "%llu %s%s", (unsigned long long)n, noun, n == 1 ? "" : "s");
    return out;
}

int kvfs_complain(const char *command, const struct ct_err *err)
{
    if (*err->msg) {
        kvfs_printf_safe(stderr, "kvfs %s: %s", command, err->msg);
        (void)fputc('\n', stderr);
    }
    return KVFS_FAILED;
}

void kvfs_warn(const char *command, const char *fmt, ...)
{
    char before[64];
    (void)snprintf(before, sizeof(before), "kvfs %s: warning: ", command);
    va_list ap;
    va_start(ap, fmt);
    vprint_line(stderr, before, fmt, ap);
    va_end(ap);
}

void kvfs_grid_cell(struct kvfs_grid *g, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vput_safe(&g->text, fmt, ap);
    va_end(ap);
    ct_buf_putc(&g->text, '\0');
    g->cells++;
}

/* Code points; good enough to line up names that are mostly ASCII. */
static size_t width_of(const char *text)
{
    size_t n = 0;
    for (; *text; text++) {
        n += ((unsigned char)*text & 0xc0) != 0x80;
    }
    return n;
}

enum { GRID_COLUMNS_MAX = 16 };

static void put_cell(const struct kvfs_grid *g, struct ct_buf *row, const char *cell, size_t column,
                     size_t width)
{
    size_t have = width_of(cell);
    int pad = (int)(width > have ? width - have : 0);
    bool right = g->right >> column & 1;
    ct_buf_printf(row, "%s%*s%s%*s", column ? "  " : "", right ? pad : 0, "", cell, right ? 0 : pad,
                  "");
}

static void print_row(struct ct_buf *row, FILE *to, const char *indent)
{
    while (row->len && row->data[row->len - 1] == ' ') {
        row->len--;
    }
    (void)fputs(indent, to);
    (void)fwrite(row->data, 1, row->len, to);
    (void)fputc('\n', to);
    row->len = 0;
}

void kvfs_grid_print(const struct kvfs_grid *g, FILE *to, const char *indent)
{
    size_t width[GRID_COLUMNS_MAX] = {0};
    ct_autobuf row = {0};
    if (g->text.failed || g->columns == 0 || g->columns > GRID_COLUMNS_MAX) {
        return;
    }
    const char *cell = (const char *)g->text.data;
    for (size_t i = 0; i < g->cells; i++, cell += strlen(cell) + 1) {
        size_t w = width_of(cell);
        if (w > width[i % g->columns]) {
            width[i % g->columns] = w;
        }
    }
    cell = (const char *)g->text.data;
    for (size_t i = 0; i < g->cells; i++, cell += strlen(cell) + 1) {
        size_t column = i % g->columns;
        put_cell(g, &row, cell, column, width[column]);
        if (column + 1 == g->columns) {
            print_row(&row, to, indent);
        }
    }
}

void kvfs_grid_free(struct kvfs_grid *g)
{
    ct_buf_free(&g->text);
    g->cells = 0;
}

void kvfs_tell(const char *command, const char *what, const char *text)
{
    (void)fprintf(stderr, "kvfs %s: %s", command, what);
    for (size_t n; *text; text += n + (text[n] == '\n')) {
        n = strcspn(text, "\n");
        kvfs_print_safe(stderr, text, n);
        (void)fputc('\n', stderr);
    }
}
