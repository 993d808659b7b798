#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "format/base/file.h"
#include "guard/guard.h"
#include "guard/tree.h"
#include "kvfs/args.h"
#include "kvfs/kvfs.h"
#include "kvfs/mount/limits.h"
#include "kvfs/term.h"

enum { WIDTH = 76, SHOWN = 5 };

struct arg {
    const char *verb, *what;
    const char *profile, *source;
    uint64_t pid; /* 0: none */
    bool json;
};

static const struct argp_option options[] = {
    {"profile", 'p', "NAME|FILE", 0, "strict, drift, off or a file; the default is strict", 0},
    {"source", 's', "DIR", 0, "The directory that is to be mounted", 0},
    {"pid", 'P', "PID", 0, "Look at this process as at a reader", 0},
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct arg *a = state->input;
    switch (key) {
    case 'p':
        a->profile = arg;
        return 0;
    case 's':
        a->source = arg;
        return 0;
    case 'P':
        if (kvfs_parse_u64(arg, INT32_MAX, &a->pid) || !a->pid) {
            argp_error(state, "not a process: %s", arg);
        }
        return 0;
    case 'j':
        a->json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 1 || (state->arg_num == 1 && strcmp(a->verb, "check") == 0)) {
            argp_error(state, "too many arguments: %s", arg);
        }
        *(state->arg_num ? &a->what : &a->verb) = arg;
        return 0;
    case ARGP_KEY_END:
        if (!a->verb) {
            argp_error(state, "check, explain or digest?");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = options,
    .parser = parse,
    .args_doc = "check\nexplain [CHECK]\ndigest PATH",
    .doc = "Judge the container that this process is in, as the guard of a mount would: `check` "
           "prints what holds and what does not, and what to do; `explain` tells what a check is "
           "about and what it can't see; `digest` prints what a profile needs to admit a program "
           "or a tree of code.",
};

/* ---- check ---- */

/* Text at `indent`, broken at blanks. */
static void print_text(const char *text, int indent)
{
    int column = indent;
    for (bool first = true; *text; first = false) {
        int n = (int)strcspn(text, " ");
        if (!first && column + 1 + n > WIDTH) {
            printf("\n%*s", indent, "");
            column = indent;
        } else if (!first) {
            (void)putchar(' ');
            column++;
        }
        kvfs_print_safe(stdout, text, (size_t)n);
        column += n;
        text += n + (text[n] == ' ');
    }
    (void)putchar('\n');
}

static void print_findings(const struct guard_report *report, int id)
{
    unsigned shown = 0;
    for (size_t i = 0; i < report->count; i++) {
        if ((int)report->findings[i].id == id && shown++ < SHOWN) {
            printf("        ");
            print_text(report->findings[i].text, 8);
        }
    }
    if (shown > SHOWN) {
        printf("        and more of this kind\n");
    }
    printf("        ");
    print_text(guard_checks[id].fix, 8);
}

static void print_table(const struct guard_profile *p, const struct guard_report *report,
                        enum guard_who who)
{
    static const char *const words[] = {"", "ok", "unseen", "held", "FAILED"};
    unsigned of[5] = {0};
    for (int id = 0; id < GUARD_IDS; id++) {
        enum guard_state state = report->state[id][who];
        of[state]++;
        if (state == GUARD_SKIPPED) {
            continue;
        }
        printf("%-6s  %s\n", words[state], guard_checks[id].name);
        if (state == GUARD_FAILED) {
            print_findings(report, id);
        }
    }
    printf("\nprofile %s: %u hold, %u fail", p->name, of[GUARD_OK], of[GUARD_FAILED]);
    if (of[GUARD_HELD]) {
        printf(", %u failed already at the start", of[GUARD_HELD]);
    }
    if (of[GUARD_UNSEEN]) {
        printf(", %u can't be seen from here", of[GUARD_UNSEEN]);
    }
    printf("\n");
}

static int print_json(const struct guard_profile *p, const struct guard_report *report,
                      struct ct_err *err)
{
    json_t *all = guard_report_json(p, report);
    int rc = all && json_dumpf(all, stdout, JSON_INDENT(1)) == 0 && puts("") >= 0
                 ? 0
                 : ct_err_set(err, CT_IO, "the output cannot be written");
    json_decref(all);
    return rc;
}

static int check(const struct arg *a, struct ct_err *err)
{
    static struct guard_report report;
    char source[PATH_MAX];
    const struct kvfs_locks locks = kvfs_raise_limits(kvfs_auto_memory(""));
    struct guard_config config = {.tool = true, .lock_keys = locks.keys, .lock_all = locks.all};
    struct guard_profile *p = NULL;
    struct guard *g = NULL;
    if (a->source && !(config.source = realpath(a->source, source))) {
        return ct_err_sys(err, errno, "%s", a->source);
    }
    int rc = guard_profile_load(a->profile ? a->profile : "strict", &p, err);
    if (rc == 0) {
        rc = guard_new(p, &config, &g, err);
    }
    if (rc == 0) {
        rc = a->pid ? guard_admit(g, (pid_t)a->pid, &report, err)
                    : guard_check(g, GUARD_FULL, &report, err);
    }
    if (rc >= 0) {
        rc = 0;
        if (a->json) {
            rc = print_json(p, &report, err);
        } else {
            print_table(p, &report, a->pid ? GUARD_READER : GUARD_OWN);
        }
    }
    guard_free(g);
    guard_profile_free(p);
    return rc ? rc : report.count > 0;
}

/* ---- explain, digest ---- */

static void print_part(const char *label, const char *text)
{
    printf("  %-11s", label);
    print_text(text, 13);
}

static int explain(const char *name, struct ct_err *err)
{
    int id = guard_check_named(name);
    if (id < 0) {
        return ct_err_set(err, CT_USAGE, "there is no check '%s'; kvfs guard explain lists them",
                          name);
    }
    const struct guard_check_info *c = &guard_checks[id];
    printf("%s\n", c->name);
    print_part("holds", c->holds);
    print_part("about", c->about[GUARD_OWN] && c->about[GUARD_READER] ? "kvfs, and every reader"
                        : c->about[GUARD_OWN]                         ? "kvfs"
                                                                      : "every reader");
    print_part("otherwise", c->fix);
    print_part("can't see", c->blind);
    return 0;
}

static int explain_all(void)
{
    for (int id = 0; id < GUARD_IDS; id++) {
        printf("%-16s ", guard_checks[id].name);
        print_text(guard_checks[id].holds, 17);
    }
    return 0;
}

static int digest(const char *path, struct ct_err *err)
{
    uint8_t sha[CT_SHA256_LEN];
    char hex[2 * CT_SHA256_LEN + 1];
    struct stat st;
    if (!path) {
        return ct_err_set(err, CT_USAGE, "digest of what?");
    }
    ct_autofd fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st)) {
        return ct_err_sys(err, errno, "%s", path);
    }
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) {
        return ct_err_set(err, CT_USAGE, "%s is neither file nor directory", path);
    }
    if (S_ISDIR(st.st_mode) ? guard_tree_digest(fd, sha, err) : guard_file_digest(fd, sha, err)) {
        return ct_err_wrap(err, "%s", path);
    }
    ct_hex(hex, sha, sizeof(sha));
    return puts(hex) < 0 ? ct_err_set(err, CT_IO, "the output cannot be written") : 0;
}

int cmd_guard(int argc, char **argv)
{
    struct arg a = {0};
    struct ct_err err = CT_ERR_INIT;
    int rc = 0;
    kvfs_parse_args(&argp, "guard", argc, argv, &a);
    if (strcmp(a.verb, "check") == 0) {
        rc = check(&a, &err);
    } else if (strcmp(a.verb, "explain") == 0) {
        rc = a.what ? explain(a.what, &err) : explain_all();
    } else if (strcmp(a.verb, "digest") == 0) {
        rc = digest(a.what, &err);
    } else {
        rc = ct_err_set(&err, CT_USAGE, "there is no '%s': check, explain or digest", a.verb);
    }
    if (rc < 0) {
        (void)kvfs_complain("guard", &err);
        return err.code == CT_USAGE ? KVFS_USAGE : KVFS_FAILED;
    }
    return rc ? KVFS_FAILED : KVFS_DONE;
}
