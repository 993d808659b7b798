#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "format/base/file.h"
#include "kvfs/args.h"
#include "kvfs/audit/verify.h"
#include "kvfs/kvfs.h"
#include "kvfs/term.h"

enum { FILES_MAX = 64, CHUNK = 65536, LINE_MAX_BYTES = 16384 };

struct arguments {
    const char *head;
    const char *files[FILES_MAX];
    size_t count;
    bool verify;
    bool quiet;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct arguments *a = state->input;
    switch (key) {
    case 'H':
        if (!kx_is_hex(arg, KX_HEX)) {
            argp_error(state, "'%s' is no head: 64 hexadecimal digits", arg);
        }
        a->head = arg;
        return 0;
    case 'q':
        a->quiet = true;
        return 0;
    case ARGP_KEY_ARG:
        if (!a->verify && strcmp(arg, "verify") == 0) {
            a->verify = true;
        } else if (!a->verify || a->count == FILES_MAX) {
            argp_error(state, a->verify ? "too many files" : "the one thing to do is: verify");
        } else {
            a->files[a->count++] = arg;
        }
        return 0;
    case ARGP_KEY_END:
        if (!a->count) {
            argp_error(state, "verify which file?");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"head", 'H', "HEAD", 0, "Of a chain, kept elsewhere: the line with it has to be there", 0},
    {"quiet", 'q', NULL, 0, "Print only what is wrong", 0},
    {0},
};

static const struct argp argp = {
    .options = options,
    .parser = parse,
    .args_doc = "verify FILE...",
    .doc = "Verify what a mount with the option audit wrote: that no line is altered, missing or "
           "moved, and that signatures fit. Several files are read as if they were one.",
};

/* ---- reading ---- */

struct input {
    struct kvfs_audit_verifier *v;
    const char *name;
    size_t first; /* lines of the files before it */
};

static void print_fault(void *ctx, size_t line, const char *sentence)
{
    const struct input *in = ctx;
    if (line) {
        (void)fprintf(stderr, "%s:%zu: ", in->name, line - in->first);
    }
    kvfs_print_safe(stderr, sentence, strlen(sentence));
    (void)fputc('\n', stderr);
}

/* Lines end where `text` has room for no more, so that no file can take all memory. */
static int feed(struct kvfs_audit_verifier *v, struct ct_buf *text, bool end, struct ct_err *err)
{
    size_t from = 0;
    for (;;) {
        const uint8_t *line = text->data + from;
        const uint8_t *stop = from < text->len ? memchr(line, '\n', text->len - from) : NULL;
        const size_t left = text->len - from;
        if (!stop && (left == 0 || (!end && left < LINE_MAX_BYTES))) {
            break;
        }
        const size_t n = stop ? (size_t)(stop - line) : left;
        if (kvfs_audit_verify_line(v, (const char *)line, n, stop != NULL, err)) {
            return -1;
        }
        from += n + (stop ? 1 : 0);
    }
    if (from) {
        memmove(text->data, text->data + from, text->len - from);
        text->len -= from;
    }
    return 0;
}

static int read_file(struct input *in, struct ct_err *err)
{
    ct_autobuf text = {0};
    bool is_stdin = strcmp(in->name, "-") == 0;
    ct_autofd fd = is_stdin ? dup(STDIN_FILENO) : open(in->name, O_RDONLY | O_CLOEXEC);
    in->first = in->v->lines;
    for (ssize_t n = 1; n != 0;) {
        uint8_t *to = ct_buf_reserve(&text, CHUNK);
        n = fd < 0 || !to ? -1 : read(fd, to, CHUNK);
        if (n < 0) {
            return ct_err_sys(err, to ? errno : ENOMEM, "%s", in->name);
        }
        text.len += (size_t)n;
        if (feed(in->v, &text, n == 0, err)) {
            return -1;
        }
    }
    return 0;
}

/* ---- what was found ---- */

static void print_chain(const struct kvfs_audit_read *c)
{
    const long long count = (long long)c->chain.count;
    (void)printf("%s %s ", c->mount[0] ? "lease" : "mount", c->chain.id);
    kvfs_print_safe(stdout, c->about, strlen(c->about));
    (void)printf("\n  records   %lld, signed up to %lld%s\n", count, (long long)c->is_signed,
                 c->failed     ? "; no mount came of it"
                 : c->orphaned ? "; then the worker died"
                 : c->ended    ? ""
                               : "; it has no end (yet)");
    (void)printf("  key       %s\n  head      %s\n", c->failed ? "none" : c->thumbprint,
                 c->chain.head);
}

static void print_summary(const struct kvfs_audit_verifier *v)
{
    for (size_t i = 0; i < v->count; i++) {
        print_chain(v->chains[i]);
    }
    if (v->behind >= 0) {
        (void)printf("the head was found in chain %s; %lld records follow it\n",
                     v->found_in->chain.id, (long long)v->behind);
    }
    (void)printf("%zu lines, %zu chains: %s\n", v->lines, v->count,
                 v->faults ? "NOT as they were written" : "nothing was altered");
}

int cmd_audit(int argc, char **argv)
{
    struct arguments a = {0};
    struct ct_err err = CT_ERR_INIT;
    struct kvfs_audit_verifier v;
    struct input in = {.v = &v};
    kvfs_parse_args(&argp, "audit", argc, argv, &a);
    kvfs_audit_verify_init(&v, a.head, print_fault, &in);
    int r = 0;
    for (size_t i = 0; r == 0 && i < a.count; i++) {
        in.name = a.files[i];
        r = read_file(&in, &err);
    }
    if (r) {
        kvfs_audit_verify_free(&v);
        return kvfs_complain("audit", &err);
    }
    kvfs_audit_verify_end(&v);
    if (!a.quiet) {
        print_summary(&v);
    }
    r = v.faults ? KVFS_FAILED : KVFS_DONE;
    kvfs_audit_verify_free(&v);
    return r;
}
