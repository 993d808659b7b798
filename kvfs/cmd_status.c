#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "kvfs/args.h"
#include "kvfs/kvfs.h"
#include "kvfs/mounts.h"
#include "kvfs/term.h"

enum { STATUS_MAX = 64 << 20 };

struct status {
    const char *mount;
    bool json;
    unsigned shown;
    bool failed;
};

static const struct argp_option options[] = {
    {"json", 'j', NULL, 0, "Print what the mount says as it is", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct status *s = state->input;
    switch (key) {
    case 'j':
        s->json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (s->mount) {
            argp_error(state, "more than one mount: %s and %s", s->mount, arg);
        }
        s->mount = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = options,
    .parser = parse,
    .args_doc = "[MNT]",
    .doc = "Show what a mount serves and refuses, and the latest failures; without MNT, of every "
           "mount of kvfs.",
};

/* ---- printing ---- */

static const char *text(const json_t *o, const char *name)
{
    const char *value = json_string_value(json_object_get(o, name));
    return value ? value : "";
}

static uint64_t number(const json_t *o, const char *name)
{
    return (uint64_t)json_integer_value(json_object_get(o, name));
}

static void print_resident(const json_t *status)
{
    char used[KVFS_SIZE_TEXT];
    char bound[KVFS_SIZE_TEXT];
    size_t i = 0;
    const json_t *f = NULL;
    const json_t *memory = json_object_get(status, "memory");
    if (number(memory, "resident")) {
        printf("  resident  %s of %s\n", kvfs_size_text(used, number(memory, "resident")),
               kvfs_size_text(bound, number(memory, "resident_bound")));
    }
    json_array_foreach(json_object_get(status, "files"), i, f)
    {
        if (strcmp(text(f, "cache"), "populating") == 0) {
            const char *path = json_string_value(json_array_get(json_object_get(f, "paths"), 0));
            kvfs_printf_safe(stdout, "  decrypts  %s: %s of %s\n", path ? path : "",
                             kvfs_size_text(used, number(f, "resident_bytes")),
                             kvfs_size_text(bound, number(f, "size")));
        }
    }
}

static void print_memory(const json_t *status)
{
    char bound[KVFS_SIZE_TEXT];
    char locked[KVFS_SIZE_TEXT];
    char done[KVFS_SIZE_TEXT];
    const json_t *memory = json_object_get(status, "memory");
    printf("  memory    %s at most, %s locked\n", kvfs_size_text(bound, number(memory, "bound")),
           kvfs_size_text(locked, number(memory, "locked")));
    printf("  decrypted %s\n",
           kvfs_size_text(done, number(json_object_get(status, "counters"), "bytes_decrypted")));
}

static void print_manifests(const json_t *status)
{
    size_t i = 0;
    const json_t *m = NULL;
    json_array_foreach(json_object_get(status, "manifests"), i, m)
    {
        size_t k = 0;
        const json_t *path = NULL;
        const char *dir = *text(m, "directory") ? text(m, "directory") : ".";
        if (*text(m, "error")) {
            kvfs_printf_safe(stdout, "  manifest  %s: REFUSED: %s\n", dir, text(m, "error"));
            continue;
        }
        kvfs_printf_safe(stdout, "  manifest  %s: generation %llu, %llu entries\n", dir,
                         (unsigned long long)number(m, "generation"),
                         (unsigned long long)number(m, "entries"));
        json_array_foreach(json_object_get(m, "missing"), k, path)
        {
            kvfs_printf_safe(stdout, "            missing: %s\n", json_string_value(path));
        }
    }
}

/* Counts by verdict, then each file that is refused or had failures. */
static void print_files(const json_t *status)
{
    static const char *const verdicts[] = {"encrypted", "vouched for", "passed on", "refused"};
    unsigned counts[4] = {0};
    unsigned open = 0;
    size_t i = 0;
    const json_t *f = NULL;
    json_array_foreach(json_object_get(status, "files"), i, f)
    {
        open += number(f, "open") > 0;
        for (unsigned v = 0; v < 4; v++) {
            counts[v] += strcmp(text(f, "verdict"), verdicts[v]) == 0;
        }
    }
    printf("  files     %u encrypted, %u vouched for, %u passed on unauthenticated, %u refused; %u "
           "open\n",
           counts[0], counts[1], counts[2], counts[3], open);
    json_array_foreach(json_object_get(status, "files"), i, f)
    {
        if (*text(f, "error")) {
            kvfs_printf_safe(stdout, "            %s: %s: %s\n",
                             json_string_value(json_array_get(json_object_get(f, "paths"), 0)),
                             text(f, "error"), text(f, "why"));
        }
    }
}

static void print_failures(const json_t *status)
{
    enum { LATEST = 10 };
    const json_t *all = json_object_get(status, "failures");
    size_t n = json_array_size(all);
    for (size_t i = n > LATEST ? n - LATEST : 0; i < n; i++) {
        const json_t *f = json_array_get(all, i);
        kvfs_printf_safe(stdout, "  failure   %s %s: %s: %s (pid %llu, uid %llu)\n",
                         text(f, "time"), text(f, "path"), text(f, "error"), text(f, "message"),
                         (unsigned long long)number(f, "pid"),
                         (unsigned long long)number(f, "uid"));
    }
}

static void print_leases(const json_t *status)
{
    size_t i = 0;
    const json_t *l = NULL;
    json_array_foreach(json_object_get(status, "leases"), i, l)
    {
        kvfs_printf_safe(stdout, "  lease     %s: %s", text(l, "model"), text(l, "state"));
        if (*text(l, "lease")) {
            printf(", %lld s left, generation %llu",
                   json_integer_value(json_object_get(l, "seconds")),
                   (unsigned long long)number(l, "generation"));
            if (number(l, "newest") > number(l, "generation")) {
                printf(" (%llu is out)", (unsigned long long)number(l, "newest"));
            }
            kvfs_printf_safe(stdout, ", %s", text(l, "assurance"));
        }
        kvfs_printf_safe(stdout, "%s%s\n", *text(l, "why") ? ": " : "", text(l, "why"));
    }
}

static void print_status(const char *mount, const json_t *status)
{
    const json_t *keys = json_object_get(status, "keys");
    const json_t *how = json_object_get(status, "options");
    kvfs_printf_safe(stdout, "%s: %s %s\n", mount, text(status, "state"), text(status, "source"));
    printf("  up        %llu s, worker %llu, kvfs %s\n",
           (unsigned long long)number(status, "uptime"),
           (unsigned long long)number(status, "worker"), text(status, "version"));
    if (*text(status, "sealed")) {
        kvfs_printf_safe(stdout, "  sealed    %s\n", text(status, "sealed"));
    }
    if (json_object_get(keys, "server")) {
        kvfs_printf_safe(stdout, "  keys      from %s (%s)\n", text(keys, "server"),
                         text(keys, "server_key"));
    } else {
        printf("  keys      %s, %llu of them\n", text(keys, "source"),
               (unsigned long long)number(keys, "count"));
    }
    print_leases(status);
    printf("  guard     %s\n", text(json_object_get(status, "guard"), "profile"));
    printf("  options   plain=%s manifest=%s update=%s\n", text(how, "plain"),
           text(how, "manifest"), text(how, "update"));
    print_memory(status);
    print_resident(status);
    print_manifests(status);
    print_files(status);
    print_failures(status);
}

/* ---- one mount, or all ---- */

static int show(struct status *s, const char *mount, struct ct_err *err)
{
    ct_autobuf all = {0};
    ct_autofd fd = kvfs_mount_open(mount, "status.json", err);
    if (fd < 0 || ct_read_fd(fd, STATUS_MAX, &all, err)) {
        return -1;
    }
    if (s->json) {
        (void)fwrite(all.data, 1, all.len, stdout);
        return 0;
    }
    json_t *status = json_loadb((char *)all.data, all.len, 0, NULL);
    if (!status) {
        return ct_err_set(err, CT_MALFORMED, "%s: its status is not JSON", mount);
    }
    print_status(mount, status);
    json_decref(status);
    return 0;
}

static int show_one_of_all(void *ctx, const char *mount)
{
    struct status *s = ctx;
    struct ct_err err = CT_ERR_INIT;
    s->shown++;
    if (show(s, mount, &err)) {
        s->failed = true;
        (void)kvfs_complain("status", &err);
    }
    return 0;
}

int cmd_status(int argc, char **argv)
{
    struct status s = {0};
    struct ct_err err = CT_ERR_INIT;
    kvfs_parse_args(&argp, "status", argc, argv, &s);
    if (s.mount) {
        return show(&s, s.mount, &err) ? kvfs_complain("status", &err) : KVFS_DONE;
    }
    if (kvfs_mounts_each(show_one_of_all, &s, &err)) {
        return kvfs_complain("status", &err);
    }
    if (!s.shown) {
        puts("nothing is mounted");
    }
    return s.failed ? KVFS_FAILED : KVFS_DONE;
}
