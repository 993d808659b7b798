/*
 * The administrator's commands: `kvfs-keyserver NOUN [VERB] [WORD…] [--option=value…]`, one row
 * each in main.c's table. They work on the database itself, beside a running server; what they
 * change a server sees at once.
 *
 * Exit codes: 0 done, 1 failed, 2 usage.
 */
#ifndef KS_ADMIN_H
#define KS_ADMIN_H

#include <stdio.h>

#include "keyserver/data/data.h"

enum { KS_DONE = 0, KS_FAILED = 1, KS_USAGE = 2, KS_WORDS = 4, KS_OPTIONS = 16, KS_PATH = 4096 };

struct ks_admin {
    const struct ks_command *command;
    const char *dir;
    const char *words[KS_WORDS]; /* what follows noun and verb; as many as the command wants */
    struct {
        const char *name, *value;
    } options[KS_OPTIONS];
    size_t option_count;
    bool json;
    char database[KS_PATH];
    struct ks_ctx ctx; /* with `open` in the command: the database, in a writing transaction that is
                          committed when the command succeeds */
};

struct ks_command {
    const char *noun, *verb; /* verb NULL: none */
    const char *words;       /* for the usage: "USER" */
    const char *options; /* names, with blanks between them; `json` and `dir` are always there */
    int (*run)(struct ks_admin *a, struct ct_err *err);
    bool open;
    const char *summary;
};

/* ---- help.c ---- */

/* Whether `list`, names with blanks between them, has this one. */
bool ks_in_list(const char *list, const char *name, size_t n);
/* Whether the command takes an option of this name, with a value or without. */
bool ks_option_known(const struct ks_command *c, const char *name, size_t n, bool value);
void ks_help(const struct ks_command *c, FILE *to);
void ks_help_all(const struct ks_command *commands, FILE *to);

/* ---- common.c ---- */

/* The value of an option, or `otherwise`. */
const char *ks_option(const struct ks_admin *a, const char *name, const char *otherwise);
/* A whole number from 0 to max; CT_USAGE. */
int ks_option_number(const struct ks_admin *a, const char *name, int64_t otherwise, int64_t max,
                     int64_t *out, struct ct_err *err);
/* Seconds since the epoch, out of a date (2026-12-31) or a time (2026-12-31T23:59:59Z); 0 without.
 */
int ks_option_time(const struct ks_admin *a, const char *name, int64_t *out, struct ct_err *err);

/* --keep: days, 0 for ever. */
int ks_admin_keep(const struct ks_admin *a, int64_t *days, struct ct_err *err);

/* DIR/name */
int ks_path(const struct ks_admin *a, const char *name, char out[KS_PATH], struct ct_err *err);
/* Where the secrets' key is: --secrets, the systemd credential, or DIR/secrets.jwks. */
int ks_seal_path(const struct ks_admin *a, char out[KS_PATH], struct ct_err *err);
/* Opens database and secrets; checks the schema when `current`. */
int ks_admin_open(struct ks_admin *a, bool current, struct ct_err *err);
void ks_admin_close(struct ks_admin *a);

/* The rows of a query, as a table or (--json) as an array of objects. `columns` are names with
 * blanks between them; NAME:t is a time, NAME:n a number, NAME:b 0 or not. Frees rows. */
int ks_admin_list(struct ks_admin *a, struct ks_rows *rows, const char *columns,
                  struct ct_err *err);
/* Prints one object: as JSON, or as lines NAME VALUE. Steals it. */
int ks_admin_print(const struct ks_admin *a, json_t *object, struct ct_err *err);

/* User, model (OWNER/NAME) or subscription of a word; CT_NOTFOUND. */
int ks_admin_user(struct ks_admin *a, const char *word, struct ks_user *out, struct ct_err *err);
int ks_admin_model(struct ks_admin *a, const char *word, struct ks_model *out, struct ct_err *err);
/* Into the audit: "admin.NOUN.VERB". */
int ks_admin_record(struct ks_admin *a, const char *user, const char *model, const char *lease,
                    const char *detail, struct ct_err *err);

int ks_self_signed(const char *names, const char *cert_path, const char *key_path,
                   struct ct_err *err);

int ks_cmd_init(struct ks_admin *a, struct ct_err *err);
int ks_cmd_migrate(struct ks_admin *a, struct ct_err *err);
int ks_cmd_serve(struct ks_admin *a, struct ct_err *err);
int ks_cmd_thumbprint(struct ks_admin *a, struct ct_err *err);
int ks_cmd_codes(struct ks_admin *a, struct ct_err *err);
int ks_cmd_rotate(struct ks_admin *a, struct ct_err *err);
int ks_cmd_user_add(struct ks_admin *a, struct ct_err *err);
int ks_cmd_user_disable(struct ks_admin *a, struct ct_err *err);
int ks_cmd_apikey_add(struct ks_admin *a, struct ct_err *err);
int ks_cmd_model_add(struct ks_admin *a, struct ct_err *err);
int ks_cmd_model_set(struct ks_admin *a, struct ct_err *err);
int ks_cmd_subscription_add(struct ks_admin *a, struct ct_err *err);
int ks_cmd_subscription_set(struct ks_admin *a, struct ct_err *err);
int ks_cmd_baseline_add(struct ks_admin *a, struct ct_err *err);
int ks_cmd_baseline_withdraw(struct ks_admin *a, struct ct_err *err);
int ks_cmd_revoke(struct ks_admin *a, struct ct_err *err);
int ks_cmd_audit_records(struct ks_admin *a, struct ct_err *err);
int ks_cmd_audit_verify(struct ks_admin *a, struct ct_err *err);
int ks_cmd_prune(struct ks_admin *a, struct ct_err *err);
int ks_cmd_list(struct ks_admin *a, struct ct_err *err);

#endif
