#include <signal.h>
#include <stdlib.h>

#include "kvfs/args.h"
#include "kvfs/keys_arg.h"
#include "kvfs/kvfs.h"
#include "kvfs/publish/apikey.h"
#include "kvfs/publish/server_arg.h"
#include "kvfs/term.h"

struct login {
    struct kvfs_server_arg server;
    struct kvfs_apikey_arg key;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct login *l = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &l->server;
        state->child_inputs[1] = &l->key;
        return 0;
    case ARGP_KEY_ARG:
        return kvfs_server_take_url(&l->server, arg, state);
    case ARGP_KEY_END:
        if (!l->server.url) {
            argp_error(state, "to which server? Say its URL");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int log_in(const struct login *l, struct ct_err *err)
{
    char user[65];
    char until[32];
    ct_autosecret key = kvfs_apikey_read(&l->key, err);
    if (!key || kvfs_session_login(&l->server, key, user, until, err)) {
        return -1;
    }
    kvfs_printf_safe(stdout, "logged in to %s as %s until %s\n", l->server.url, user, until);
    return 0;
}

int cmd_login(int argc, char **argv)
{
    static const struct argp_child children[] = {
        {&kvfs_server_argp, 0, NULL, 0}, {&kvfs_apikey_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        NULL,
        parse,
        "URL",
        "Logs in to a key server with an API key of scope publish, for kvfs publish. The key "
        "itself "
        "is not kept.",
        children,
        NULL,
        NULL,
    };
    struct login l = {.server = KVFS_SERVER_ARG("login"), .key = KVFS_APIKEY_ARG};
    struct ct_err err = CT_ERR_INIT;
    kvfs_parse_args(&argp, l.server.command, argc, argv, &l);
    kvfs_no_core();
    (void)signal(SIGPIPE, SIG_IGN);
    return log_in(&l, &err) ? kvfs_complain(l.server.command, &err) : KVFS_DONE;
}
