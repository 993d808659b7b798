#include <signal.h>
#include <stdlib.h>

#include "kvfs/args.h"
#include "kvfs/keys_arg.h"
#include "kvfs/kvfs.h"
#include "kvfs/publish/server_arg.h"
#include "kvfs/term.h"

enum { OPT_FORCE = 0x200 };

struct logout {
    struct kvfs_server_arg server;
    bool force;
};

static const struct argp_option options[] = {
    {"force", OPT_FORCE, NULL, 0, "Forget the login even if the server can't be told", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct logout *l = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &l->server;
        return 0;
    case OPT_FORCE:
        l->force = true;
        return 0;
    case ARGP_KEY_ARG:
        return kvfs_server_take_url(&l->server, arg, state);
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int cmd_logout(int argc, char **argv)
{
    static const struct argp_child children[] = {{&kvfs_server_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        options,  parse,
        "[URL]",  "Ends a login to a key server, and forgets it. Without URL: the only one.",
        children, NULL,
        NULL,
    };
    struct logout l = {.server = KVFS_SERVER_ARG("logout")};
    struct ct_err err = CT_ERR_INIT;
    bool told = false;
    char *url = NULL;
    kvfs_parse_args(&argp, l.server.command, argc, argv, &l);
    kvfs_no_core();
    (void)signal(SIGPIPE, SIG_IGN);
    int rc = kvfs_session_logout(&l.server, l.force, &told, &url, &err)
                 ? kvfs_complain(l.server.command, &err)
                 : KVFS_DONE;
    if (rc == KVFS_DONE && told) {
        kvfs_printf_safe(stdout, "logged out of %s\n", url);
    } else if (rc == KVFS_DONE) {
        kvfs_warn(l.server.command,
                  "the login is forgotten here, but %s was not told (%s): it ends by itself, or "
                  "when its API key is revoked",
                  url, err.msg);
    }
    free(url);
    return rc;
}
