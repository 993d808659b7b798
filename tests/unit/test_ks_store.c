#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "keyserver/crypto/seal.h"
#include "keyserver/crypto/stamp.h"
#include "keyserver/data/data.h"

static char dir[64], seals[96], database[96];

static void setup(void)
{
    struct ct_err err = CT_ERR_INIT;
    cr_assert_eq(ct_secret_init(NULL), 0);
    strcpy(dir, "/tmp/ks-test.XXXXXX");
    cr_assert(mkdtemp(dir));
    (void)snprintf(seals, sizeof(seals), "%s/secrets.jwks", dir);
    (void)snprintf(database, sizeof(database), "%s/k.db", dir);
    cr_assert_eq(ks_seal_create(seals, &err), 0, "%s", err.msg);
}

static void teardown(void)
{
    static const char *const names[] = {"secrets.jwks", "k.db", "k.db-wal", "k.db-shm"};
    for (size_t i = 0; i < 4; i++) {
        char path[128];
        (void)snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        (void)unlink(path);
    }
    (void)rmdir(dir);
}

TestSuite(store, .init = setup, .fini = teardown, .timeout = 60);

static const struct ks_place here = {"models", "row", "master_sealed", "owner", 7};

static void expect_unseal(struct ks_seal *s, const struct ks_place *at, const struct ct_buf *sealed,
                          enum ct_code code)
{
    struct ct_err err = CT_ERR_INIT;
    ct_autosecret out = NULL;
    int r = ks_unseal(s, at, sealed->data, sealed->len, &out, &err);
    cr_expect_eq(r == 0, code == CT_OK);
    cr_expect_eq(err.code, code, "%s", err.msg);
    cr_expect_eq(out != NULL, code == CT_OK);
    if (out) {
        cr_expect_arr_eq(ct_secret_peek(out), "secret", 6);
    }
}

/* A secret opens in the place that it was sealed for, and in no other. */
Test(store, places)
{
    struct ct_err err = CT_ERR_INIT;
    struct ks_seal *s = NULL;
    ct_autobuf sealed = {0};
    ct_autosecret secret = ct_secret_from("secret", 6, &err);
    cr_assert_eq(ks_seal_open(seals, &s, &err), 0, "%s", err.msg);
    cr_assert_eq(ks_seal(s, &here, secret, &sealed, &err), 0, "%s", err.msg);
    expect_unseal(s, &here, &sealed, CT_OK);
    const struct ks_place others[] = {
        {"users", "row", "master_sealed", "owner", 7},
        {"models", "row2", "master_sealed", "owner", 7},
        {"models", "row", "sign_sealed", "owner", 7},
        {"models", "row", "master_sealed", "owne", 7},
        {"models", "row", "master_sealed", "owner", 8},
        {"models", "row", "master_sealedo", "wner", 7},
    };
    for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++) {
        expect_unseal(s, &others[i], &sealed, CT_REJECTED);
    }
    for (size_t i = 9; i < sealed.len; i++) {
        sealed.data[i] ^= 1;
        expect_unseal(s, &here, &sealed, CT_REJECTED);
        sealed.data[i] ^= 1;
    }
    sealed.data[3] ^= 1; /* in the key's name */
    expect_unseal(s, &here, &sealed, CT_NOKEY);
    sealed.data[3] ^= 1;
    sealed.len = 20;
    expect_unseal(s, &here, &sealed, CT_REJECTED);
    ks_seal_free(s);
}

/* Another process's view of the file follows a rotation. */
Test(store, rotation)
{
    struct ct_err err = CT_ERR_INIT;
    struct ks_seal *s = NULL;
    struct ks_seal *other = NULL;
    ct_autobuf old = {0};
    ct_autobuf new = {0};
    ct_autobuf by_other = {0};
    ct_autosecret secret = ct_secret_from("secret", 6, &err);
    cr_assert_eq(ks_seal_open(seals, &s, &err), 0);
    cr_assert_eq(ks_seal_open(seals, &other, &err), 0);
    cr_assert_eq(ks_seal(s, &here, secret, &old, &err), 0);
    cr_assert_eq(ks_seal_add(s, &err), 0, "%s", err.msg);
    cr_assert_eq(ks_seal_use(s, &err), 0, "%s", err.msg);
    cr_assert_eq(ks_seal(s, &here, secret, &new, &err), 0);
    expect_unseal(s, &here, &old, CT_OK);
    expect_unseal(other, &here, &new, CT_OK);
    cr_assert_eq(ks_seal(other, &here, secret, &by_other, &err), 0);
    cr_assert_eq(ks_seal_drop_old(s, &err), 0, "%s", err.msg);
    expect_unseal(s, &here, &old, CT_NOKEY);
    expect_unseal(s, &here, &new, CT_OK);
    expect_unseal(s, &here, &by_other, CT_OK);
    cr_expect_eq(ks_seal_create(seals, &err), -1);
    cr_expect_eq(err.code, CT_EXISTS);
    ks_seal_free(s);
    ks_seal_free(other);
}

Test(store, stamps)
{
    struct ct_err err = CT_ERR_INIT;
    char text[KS_STAMP_TEXT + 1];
    struct ks_stamp s = {.kind = 'c', .version = 1, .expires = 1234567890123};
    struct ks_stamp out;
    ct_autosecret key = ct_secret_from("0123456789abcdef0123456789abcdef", 32, &err);
    ct_autosecret other = ct_secret_from("0123456789abcdef0123456789abcdeF", 32, &err);
    cr_assert_eq(ks_stamp_make(key, &s, text, &err), 0);
    cr_assert_eq(ks_stamp_read(key, 'c', text, &out, &err), 0, "%s", err.msg);
    cr_expect_eq(out.expires, s.expires);
    cr_expect_eq(out.version, 1);
    cr_expect_arr_eq(out.nonce, s.nonce, KS_STAMP_NONCE);
    cr_expect_eq(ks_stamp_read(key, 'a', text, &out, &err), -1);
    cr_expect_eq(ks_stamp_read(other, 'c', text, &out, &err), -1);
    for (size_t i = 0; i < KS_STAMP_TEXT; i++) {
        char was = text[i];
        text[i] = was == 'A' ? 'B' : 'A';
        cr_expect_eq(ks_stamp_read(key, 'c', text, &out, &err), -1, "%zu", i);
        text[i] = was;
    }
    cr_expect_eq(ks_stamp_read(key, 'c', "", &out, &err), -1);
}

Test(store, migrations)
{
    struct ct_err err = CT_ERR_INIT;
    struct ks_db *db = NULL;
    cr_assert_eq(ks_db_open(database, &db, &err), 0, "%s", err.msg);
    cr_expect_eq(ks_schema_check(db, &err), -1);
    cr_assert_eq(ks_migrate(db, &err), 0, "%s", err.msg);
    cr_assert_eq(ks_migrate(db, &err), 0, "%s", err.msg);
    cr_assert_eq(ks_schema_check(db, &err), 0, "%s", err.msg);
    cr_assert_eq(ks_begin(db, KS_WRITE, &err), 0);
    cr_assert(ks_exec(db, &err, "INSERT INTO schema_version (version) VALUES (99)", "") == 1);
    cr_assert_eq(ks_commit(db, &err), 0);
    cr_expect_eq(ks_schema_check(db, &err), -1);
    cr_expect_eq(err.code, CT_UNSUPPORTED);
    cr_expect_eq(ks_migrate(db, &err), -1);
    cr_expect_eq(err.code, CT_UNSUPPORTED);
    ks_db_close(db);
}

Test(store, values)
{
    struct ct_err err = CT_ERR_INIT;
    size_t n = 0;
    struct ks_db *db = NULL;
    ks_autorows rows = NULL;
    cr_assert_eq(ks_db_open(database, &db, &err), 0);
    cr_assert_eq(ks_begin(db, KS_WRITE, &err), 0);
    cr_assert_geq(ks_exec(db, &err, "CREATE TABLE v (i BIGINT, s TEXT UNIQUE, b BLOB)", ""), 0);
    cr_assert_eq(ks_exec(db, &err, "INSERT INTO v (i, s, b) VALUES ($1, $2, $3)", "isb", INT64_MIN,
                         "x'; DROP TABLE v; --", "a\0b", (size_t)3),
                 1);
    cr_assert_eq(ks_exec(db, &err, "INSERT INTO v (i, s, b) VALUES ($1, $2, $3)", "isb", (int64_t)0,
                         NULL, NULL, (size_t)0),
                 1);
    cr_expect_eq(ks_exec(db, &err, "INSERT INTO v (i, s) VALUES ($2, $1)", "si",
                         "x'; DROP TABLE v; --", (int64_t)1),
                 -1);
    cr_expect_eq(err.code, CT_EXISTS);
    ks_rollback(db);
    cr_expect_eq(ks_one(db, &rows, &err, "SELECT 1 FROM v", ""), -1); /* rolled back, table too */
    cr_assert_eq(ks_begin(db, KS_READ, &err), 0);
    cr_assert_eq(ks_one(db, &rows, &err, "SELECT CAST($1 AS TEXT), NULL, $2", "sb", "\xc3\xa9",
                        "\xff", (size_t)1),
                 1, "%s", err.msg);
    cr_expect_str_eq(ks_text(rows, 0), "\xc3\xa9");
    cr_expect(ks_is_null(rows, 1));
    cr_expect_str_eq(ks_text(rows, 1), "");
    cr_expect_eq(*ks_blob(rows, 2, &n), 0xff);
    cr_expect_eq(n, 1);
    ks_rows_free(rows);
    rows = NULL;
    ks_rollback(db);
    ks_db_close(db);
}

/* A subscription's row that SQL moved to another user or model does not open there. */
Test(store, moved_rows)
{
    struct ct_err err = CT_ERR_INIT;
    struct ks_ctx c = {0};
    struct ks_user alice;
    struct ks_user bob;
    struct ks_user eve;
    struct ks_model m;
    char id[KS_ID + 1];
    cr_assert_eq(ks_seal_open(seals, &c.seal, &err), 0);
    cr_assert_eq(ks_db_open(database, &c.db, &err), 0);
    cr_assert_eq(ks_migrate(c.db, &err), 0);
    cr_assert_eq(ks_begin(c.db, KS_WRITE, &err), 0);
    cr_assert_eq(ks_user_create(&c, "alice", &alice, &err), 0, "%s", err.msg);
    cr_assert_eq(ks_user_create(&c, "bob", &bob, &err), 0);
    cr_assert_eq(ks_user_create(&c, "eve", &eve, &err), 0);
    cr_assert_eq(ks_user_create(&c, "eve", &eve, &err), -1);
    cr_assert_eq(err.code, CT_EXISTS);
    cr_assert_eq(ks_user_find(&c, "eve", &eve, &err), 0);
    cr_assert_eq(ks_model_create(&c, &alice, "m", "", &m, &err), 0, "%s", err.msg);
    cr_assert_eq(ks_subscription_create(&c, &m, &bob, 0, 0, id, &err), 0, "%s", err.msg);
    struct ks_keys keys;
    cr_expect_eq(ks_keys_of_subscription(&c, id, &keys, &err), 0, "%s", err.msg);
    ks_keys_free(&keys);
    cr_assert_eq(ks_exec(c.db, &err, "UPDATE subscriptions SET user_id = $1", "s", eve.id), 1);
    cr_expect_eq(ks_keys_of_subscription(&c, id, &keys, &err), -1);
    cr_expect_eq(err.code, CT_REJECTED);
    ks_keys_free(&keys);
    cr_assert_eq(ks_exec(c.db, &err,
                         "UPDATE users SET sign_sealed = (SELECT sign_sealed FROM users WHERE"
                         " name = 'alice') WHERE name = 'eve'",
                         ""),
                 1);
    uint8_t pub[CT_ED25519_PUB];
    char kid[KS_KID + 1];
    ct_autosecret seed = NULL;
    cr_expect_eq(ks_user_sign_key(&c, eve.id, &seed, pub, kid, &err), -1);
    cr_expect_eq(err.code, CT_REJECTED);
    ks_rollback(c.db);
    ks_db_close(c.db);
    ks_seal_free(c.seal);
}
