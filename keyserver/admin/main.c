#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keyserver/admin/admin.h"

#define SERVE                                                                                      \
    "listen cert key workers rate-login rate-attest settle challenge-seconds ticket-seconds"       \
    " server-key-seconds max-upload keep secrets verbose"

static const struct ks_command commands[] = {
    {"init", NULL, "", "name database secrets", ks_cmd_init, false,
     "make a working server: database, keys, certificate; prints its thumbprint"},
    {"serve", NULL, "", SERVE, ks_cmd_serve, false, "serve"},
    {"migrate", NULL, "", "secrets", ks_cmd_migrate, false, "bring the database up to date"},
    {"thumbprint", NULL, "", "secrets", ks_cmd_thumbprint, true, "print what runtimes pin"},
    {"rotate-key", NULL, "", "secrets step", ks_cmd_rotate, false,
     "encrypt all secrets anew under a new key"},
    {"user", "add", "NAME", "secrets", ks_cmd_user_add, true, "add a user"},
    {"user", "disable", "NAME", "secrets", ks_cmd_user_disable, true,
     "shut a user out and revoke his leases"},
    {"user", "list", "", "secrets", ks_cmd_list, true, "list users"},
    {"apikey", "add", "USER", "scope label expires secrets", ks_cmd_apikey_add, true,
     "make an API key (--scope=publish or deploy) and print it, this once"},
    {"apikey", "list", "", "secrets", ks_cmd_list, true, "list API keys"},
    {"model", "add", "OWNER/NAME", "description secrets", ks_cmd_model_add, true, "add a model"},
    {"model", "set", "OWNER/NAME", "lease grace assurance profiles secrets", ks_cmd_model_set, true,
     "change how a model is released"},
    {"model", "list", "", "secrets", ks_cmd_list, true, "list models"},
    {"subscription", "add", "OWNER/NAME USER", "max-leases expires secrets",
     ks_cmd_subscription_add, true, "let a user have a model"},
    {"subscription", "set", "ID", "max-leases expires secrets", ks_cmd_subscription_set, true,
     "change a subscription"},
    {"subscription", "list", "", "secrets", ks_cmd_list, true, "list subscriptions"},
    {"baseline", "add", "OWNER/NAME DIGEST", "assurance label secrets", ks_cmd_baseline_add, true,
     "register what runtimes may measure (see kvfs measure)"},
    {"baseline", "withdraw", "OWNER/NAME DIGEST", "secrets", ks_cmd_baseline_withdraw, true,
     "accept it no longer"},
    {"baseline", "list", "", "secrets", ks_cmd_list, true, "list baselines"},
    {"lease", "list", "", "all secrets", ks_cmd_list, true, "list leases that run (--all: all)"},
    {"revoke", "lease", "ID", "reason secrets", ks_cmd_revoke, true, "end a lease now"},
    {"revoke", "apikey", "ID", "reason secrets", ks_cmd_revoke, true,
     "end an API key and its leases"},
    {"revoke", "subscription", "ID", "reason secrets", ks_cmd_revoke, true,
     "end a subscription and its leases"},
    {"revoke", "model", "OWNER/NAME", "reason secrets", ks_cmd_revoke, true,
     "end all leases of a model"},
    {"audit", "list", "", "last secrets", ks_cmd_list, true, "what was given out and refused"},
    {"audit", "records", "LEASE", "secrets", ks_cmd_audit_records, true,
     "what the runtime reported of a lease"},
    {"audit", "verify", "", "secrets", ks_cmd_audit_verify, true,
     "check the chains of all leases' records"},
    {"prune", NULL, "", "keep secrets", ks_cmd_prune, false,
     "remove what is older than --keep=DAYS (365)"},
    {"codes", NULL, "", "", ks_cmd_codes, false, "print the table of codes (PROTOCOL.md)"},
    {0},
};

static int take_option(struct ks_admin *a, const char *arg, struct ct_err *err)
{
    const char *name = arg + 2;
    size_t n = strcspn(name, "=");
    const char *value = name[n] ? name + n + 1 : "";
    if (!ks_option_known(a->command, name, n, name[n] != '\0') || a->option_count == KS_OPTIONS) {
        return ct_err_set(err, CT_USAGE, "there is no option %.40s here (see --help)", arg);
    }
    if (ks_in_list("json", name, n)) {
        a->json = true;
    } else if (ks_in_list("dir", name, n)) {
        a->dir = value;
    } else {
        a->options[a->option_count].name = name;
        a->options[a->option_count++].value = value;
    }
    return 0;
}

static size_t count_words(const char *words)
{
    size_t n = *words ? 1 : 0;
    for (; *words; words++) {
        n += *words == ' ';
    }
    return n;
}

static int take_arguments(struct ks_admin *a, char **argv, struct ct_err *err)
{
    size_t n = 0;
    for (; *argv; argv++) {
        if (strncmp(*argv, "--", 2) == 0) {
            if (take_option(a, *argv, err)) {
                return -1;
            }
        } else if (n < KS_WORDS) {
            a->words[n++] = *argv;
        }
    }
    return n == count_words(a->command->words)
               ? 0
               : ct_err_set(err, CT_USAGE, "it takes: %s",
                            *a->command->words ? a->command->words : "no words");
}

static const struct ks_command *find(char **argv, int *used)
{
    for (const struct ks_command *c = commands; c->noun; c++) {
        if (argv[1] && strcmp(argv[1], c->noun) == 0 &&
            (!c->verb || (argv[2] && strcmp(argv[2], c->verb) == 0))) {
            *used = c->verb ? 3 : 2;
            return c;
        }
    }
    return NULL;
}

static int run_open(struct ks_admin *a, struct ct_err *err)
{
    if (ks_admin_open(a, true, err) || ks_begin(a->ctx.db, KS_WRITE, err) ||
        a->command->run(a, err)) {
        return -1;
    }
    return ks_commit(a->ctx.db, err);
}

static int complain(const struct ks_admin *a, const struct ct_err *err)
{
    const struct ks_command *c = a->command;
    (void)fprintf(stderr, "kvfs-keyserver %s%s%s: %s\n", c->noun, c->verb ? " " : "",
                  c->verb ? c->verb : "", err->msg);
    return err->code == CT_USAGE ? KS_USAGE : KS_FAILED;
}

int main(int argc, char **argv)
{
    struct ks_admin a = {0};
    struct ct_err err = CT_ERR_INIT;
    const struct rlimit none = {0, 0};
    int used = 0;
    (void)setrlimit(RLIMIT_CORE, &none); /* a core holds keys */
    (void)umask(S_IRWXG | S_IRWXO);
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        ks_help_all(commands, stdout);
        return KS_DONE;
    }
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        (void)puts("kvfs-keyserver " KVFS_VERSION);
        return KS_DONE;
    }
    a.command = argc > 1 ? find(argv, &used) : NULL;
    if (!a.command) {
        ks_help_all(commands, stderr);
        return KS_USAGE;
    }
    for (char **p = argv + used; *p; p++) {
        if (strcmp(*p, "--help") == 0) {
            ks_help(a.command, stdout);
            return KS_DONE;
        }
    }
    const char *dir = getenv("KVFS_KEYSERVER_DIR");
    a.dir = dir ? dir : "/var/lib/kvfs-keyserver";
    int r = ct_secret_init(&err) || take_arguments(&a, argv + used, &err);
    r = r ? r : a.command->open ? run_open(&a, &err) : a.command->run(&a, &err);
    int rc = r ? complain(&a, &err) : KS_DONE;
    ks_admin_close(&a);
    return fflush(stdout) ? KS_FAILED : rc;
}
