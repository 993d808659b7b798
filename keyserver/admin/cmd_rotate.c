#include <stdio.h>
#include <string.h>
#include <time.h>

#include "keyserver/admin/admin.h"

/* Every sealed column: id, owner and the secret out, the secret in. */
static const struct {
    const char *table, *column, *select, *update;
} columns[] = {
    {"secrets", "sealed", "SELECT id, '', '', sealed FROM secrets",
     "UPDATE secrets SET sealed = $2 WHERE id = $1"},
    {"users", "sign_sealed", "SELECT id, id, '', sign_sealed FROM users",
     "UPDATE users SET sign_sealed = $2 WHERE id = $1"},
    {"models", "master_sealed", "SELECT id, owner_id, '', master_sealed FROM models",
     "UPDATE models SET master_sealed = $2 WHERE id = $1"},
    {"subscriptions", "master_sealed",
     "SELECT id, user_id, model_id, master_sealed FROM subscriptions",
     "UPDATE subscriptions SET master_sealed = $2 WHERE id = $1"},
    {"subscriptions", "sign_sealed", "SELECT id, user_id, model_id, sign_sealed FROM subscriptions",
     "UPDATE subscriptions SET sign_sealed = $2 WHERE id = $1"},
};

static int seal_row(struct ks_admin *a, size_t which, struct ks_rows *row, struct ct_err *err)
{
    char id[KX_THUMBPRINT + 1];
    char owner[KS_OWNER_TEXT];
    size_t n = 0;
    ct_autosecret secret = NULL;
    ct_autobuf sealed = {0};
    (void)snprintf(id, sizeof(id), "%s", ks_text(row, 0));
    (void)snprintf(owner, sizeof(owner), "%s", ks_text(row, 1));
    if (*ks_text(row, 2)) {
        ks_subscription_place(ks_text(row, 1), ks_text(row, 2), owner);
    }
    const struct ks_place at = {columns[which].table, id, columns[which].column, owner, 0};
    const uint8_t *p = ks_blob(row, 3, &n);
    if (ks_unseal(a->ctx.seal, &at, p, n, &secret, err) ||
        ks_seal(a->ctx.seal, &at, secret, &sealed, err)) {
        return ct_err_wrap(err, "%s %s", columns[which].table, id);
    }
    return ks_exec(a->ctx.db, err, columns[which].update, "sb", id, sealed.data, sealed.len) < 0
               ? -1
               : 0;
}

/* Rows are read first: what is changed under a running query may turn up twice. */
static int seal_column(struct ks_admin *a, size_t which, struct ct_err *err)
{
    int r = 0;
    ks_autorows rows = ks_query(a->ctx.db, err, columns[which].select, "");
    if (!rows) {
        return -1;
    }
    while ((r = ks_next(rows, err)) == 1) {
        if (seal_row(a, which, rows, err)) {
            return -1;
        }
    }
    return r;
}

static int seal_all(struct ks_admin *a, struct ct_err *err)
{
    if (ks_begin(a->ctx.db, KS_WRITE, err)) {
        return -1;
    }
    for (size_t i = 0; i < sizeof(columns) / sizeof(*columns); i++) {
        if (seal_column(a, i, err)) {
            ks_rollback(a->ctx.db);
            return -1;
        }
    }
    if (ks_admin_record(a, NULL, NULL, NULL, NULL, err)) {
        ks_rollback(a->ctx.db);
        return -1;
    }
    return ks_commit(a->ctx.db, err);
}

/*
 * At every moment the file opens everything: a new key is added, then used for all that is there,
 * and once more for what others had begun before; then the old one goes. Whoever kills this in
 * between runs it again.
 */
int ks_cmd_rotate(struct ks_admin *a, struct ct_err *err)
{
    const struct timespec others = {2, 0};
    const char *step = ks_option(a, "step", "all");
    const bool all = strcmp(step, "all") == 0;
    const bool add = strcmp(step, "add") == 0;
    const bool use = strcmp(step, "use") == 0;
    const bool drop = strcmp(step, "drop") == 0;
    if (!all && !add && !use && !drop) {
        return ct_err_set(err, CT_USAGE, "--step is add, use or drop");
    }
    if (ks_admin_open(a, true, err) || ((all || add) && ks_seal_add(a->ctx.seal, err)) ||
        ((all || use) && (ks_seal_use(a->ctx.seal, err) || seal_all(a, err)))) {
        return -1;
    }
    if (add || use) {
        return 0;
    }
    nanosleep(&others, NULL);
    return seal_all(a, err) || ks_seal_drop_old(a->ctx.seal, err) ? -1 : 0;
}
