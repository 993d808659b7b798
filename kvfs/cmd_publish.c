#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "kvfs/args.h"
#include "kvfs/keys_arg.h"
#include "kvfs/kvfs.h"
#include "kvfs/publish/publish.h"
#include "kvfs/publish/server_arg.h"
#include "kvfs/term.h"

enum { OPT_SERVER = 0x500, OPT_MODEL, OPT_JSON };

struct publish {
    struct kvfs_job job;
    struct kvfs_server_arg server;
    const char *model;
    bool json;
    struct kvfs_publish to;
};

static const struct argp_option options[] = {
    {"server", OPT_SERVER, "URL", 0, "The key server (default: the only one that is logged in to)",
     0},
    {"model", OPT_MODEL, "OWNER/NAME", 0, "Its name there (default: your own, and that of SRC)", 0},
    {"json", OPT_JSON, NULL, 0, "Print what was published as JSON, and nothing else", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct publish *p = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &p->server;
        state->child_inputs[1] = &p->job;
        state->child_inputs[2] = &p->job;
        return 0;
    case OPT_SERVER:
        p->server.url = arg;
        return 0;
    case OPT_MODEL:
        if (!kx_split_model(arg, p->to.owner, p->to.name)) {
            argp_error(state, "--model is OWNER/NAME, of letters, digits, '_', '-' and '.'");
        }
        p->model = arg;
        return 0;
    case OPT_JSON:
        p->json = true;
        p->job.quiet = true;
        return 0;
    case ARGP_KEY_END:
        if (p->job.manifest == KVFS_NO) {
            argp_error(state, "what is published has a manifest");
        }
        return kvfs_job_parse_src(key, arg, state, &p->job);
    default:
        return kvfs_job_parse_src(key, arg, state, &p->job);
    }
}

/* ---- whose it is, and what it is called ---- */

static int name_after_source(struct publish *p, struct ct_err *err)
{
    ct_autofree char *path = realpath(p->job.src, NULL);
    const char *name = path ? kvfs_base_name(path) : "";
    if (!kx_is_name(name)) {
        return ct_err_set(err, CT_USAGE, "%s gives no name for a model: say --model %s/NAME",
                          p->job.src, p->to.session.user);
    }
    (void)snprintf(p->to.owner, sizeof(p->to.owner), "%s", p->to.session.user);
    (void)snprintf(p->to.name, sizeof(p->to.name), "%s", name);
    return 0;
}

static int check_name(struct publish *p, struct ct_err *err)
{
    if (!p->model) {
        return name_after_source(p, err);
    }
    return strcmp(p->to.owner, p->to.session.user) == 0
               ? 0
               : ct_err_set(err, CT_USAGE, "logged in as %s, who can't publish %s",
                            p->to.session.user, p->model);
}

static int check_source(const struct publish *p, struct ct_err *err)
{
    struct stat st;
    if (stat(p->job.src, &st)) {
        return ct_err_sys(err, errno, "%s", p->job.src);
    }
    return S_ISDIR(st.st_mode)
               ? 0
               : ct_err_set(err, CT_USAGE, "%s is no directory, which a model is", p->job.src);
}

/* ---- what is said at the end ---- */

static int print_json(const struct publish *p)
{
    json_t *out = json_pack(
        "{s:s,s:s+++,s:I,s:b,s:I,s:I,s:I,s:b,s:s}", "server", kvfs_http_url(p->to.session.api.http),
        "model", p->to.owner, "/", p->to.name, "", "generation", (json_int_t)p->to.number,
        "created", p->to.made, "files", (json_int_t)json_array_size(p->to.headers), "uploaded",
        (json_int_t)p->to.uploaded, "header_bytes", (json_int_t)p->to.header_bytes, "was_current",
        p->to.current, "out", p->job.out);
    int rc = out ? json_dumpf(out, stdout, JSON_INDENT(2)) : -1;
    json_decref(out);
    return rc || puts("") == EOF || fflush(stdout) ? KVFS_FAILED : KVFS_DONE;
}

static void print_text(const struct publish *p)
{
    char files[64];
    char size[KVFS_SIZE_TEXT];
    const struct kvfs_publish *to = &p->to;
    const char *url = kvfs_http_url(to->session.api.http);
    if (to->current) {
        kvfs_printf_safe(stdout, "%s/%s: generation %" PRIu64 " is current at %s already\n",
                         to->owner, to->name, to->number, url);
        return;
    }
    kvfs_printf_safe(stdout, "%s/%s: generation %" PRIu64 " is current at %s; %s, %s\n", to->owner,
                     to->name, to->number, url,
                     kvfs_count_text(files, json_array_size(to->headers), "header"),
                     kvfs_size_text(size, to->header_bytes));
}

static int run(struct publish *p)
{
    struct ct_err err = CT_ERR_INIT;
    struct kvfs_publish *to = &p->to;
    p->job.hooks = (struct kvfs_job_hooks){
        .planned = kvfs_publish_planned, .written = kvfs_publish_written, .ctx = to};
    if (check_source(p, &err) || kvfs_session_open(&to->session, &p->server, &err) ||
        check_name(p, &err) || kvfs_publish_model(to, &err) ||
        !(p->job.ring = kvfs_publish_keys(to, &err))) {
        return kvfs_complain(p->job.command, &err);
    }
    int rc = kvfs_job_run(&p->job); /* frees the ring */
    if (rc == KVFS_DONE && p->json) {
        rc = print_json(p);
    } else if (rc == KVFS_DONE && !p->job.quiet) {
        print_text(p);
    }
    return rc;
}

int cmd_publish(int argc, char **argv)
{
    static const struct argp_child children[] = {{&kvfs_server_argp, 0, NULL, 0},
                                                 {&kvfs_encrypt_argp, 0, NULL, 0},
                                                 {&kvfs_job_argp, 0, NULL, 0},
                                                 {0}};
    static const struct argp argp = {
        options,
        parse,
        "SRC -o OUT",
        "Encrypts a model with keys of a key server, and publishes it there: headers and manifest "
        "are uploaded, tensors never. Needs a kvfs login. SRC is only read.",
        children,
        NULL,
        NULL,
    };
    struct publish p = {
        .job = {.kind = KVFS_JOB_ENCRYPT,
                .command = "publish",
                .write = {.version = 2, .chunk_size = CT_CHUNK_DEFAULT}},
        .server = KVFS_SERVER_ARG("publish"),
    };
    kvfs_parse_args(&argp, p.job.command, argc, argv, &p);
    kvfs_no_core();
    (void)signal(SIGPIPE, SIG_IGN);
    int rc = run(&p);
    json_decref(p.to.headers);
    kvfs_session_close(&p.to.session);
    return rc;
}
