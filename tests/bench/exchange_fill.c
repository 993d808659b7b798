/*
 * Many subscriptions at once, which by command would take minutes:
 *
 *     exchange_fill DATABASE SECRETS OWNER/NAME FIRST COUNT
 *
 * adds COUNT users with a deploy key and a subscription each, in one transaction, and prints the
 * keys.
 */
#include <stdio.h>
#include <stdlib.h>

#include "format/base/secret.h"
#include "keyserver/data/data.h"

static int add(struct ks_ctx *c, const struct ks_model *m, long number, struct ct_err *err)
{
    struct ks_user u;
    char name[32];
    char id[KS_ID + 1];
    char key[KS_APIKEY_TEXT];
    (void)snprintf(name, sizeof(name), "subscriber-%ld", number);
    if (ks_user_create(c, name, &u, err) ||
        ks_apikey_create(c, &u, "deploy", "bench", 0, id, key, err) ||
        ks_subscription_create(c, m, &u, 0, 0, id, err)) {
        return -1;
    }
    (void)puts(key);
    return 0;
}

static int fill(struct ks_ctx *c, char **argv, struct ct_err *err)
{
    struct ks_model m;
    char owner[KS_NAME_LEN + 1];
    char name[KS_NAME_LEN + 1];
    const long first = strtol(argv[4], NULL, 10);
    const long count = strtol(argv[5], NULL, 10);
    if (!kx_split_model(argv[3], owner, name)) {
        return ct_err_set(err, CT_USAGE, "a model is OWNER/NAME");
    }
    if (ks_begin(c->db, KS_WRITE, err) || ks_model_find(c, owner, name, &m, err)) {
        return -1;
    }
    for (long i = 0; i < count; i++) {
        if (add(c, &m, first + i, err)) {
            return -1;
        }
    }
    return ks_commit(c->db, err);
}

int main(int argc, char **argv)
{
    struct ks_ctx c = {0};
    struct ct_err err = CT_ERR_INIT;
    if (argc != 6) {
        (void)fputs("exchange_fill DATABASE SECRETS OWNER/NAME FIRST COUNT\n", stderr);
        return 2;
    }
    int r = ct_secret_init(&err) || ks_db_open(argv[1], &c.db, &err) ||
            ks_seal_open(argv[2], &c.seal, &err) || fill(&c, argv, &err);
    if (r) {
        (void)fprintf(stderr, "exchange_fill: %s\n", err.msg);
    }
    ks_db_close(c.db);
    ks_seal_free(c.seal);
    return r ? 1 : 0;
}
