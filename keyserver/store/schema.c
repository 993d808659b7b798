#include <stdio.h>
#include <string.h>

#include "keyserver/store/driver.h"

/*
 * Migrations, in order; never changed once released, only added to. @BYTES and @SERIAL are what the
 * dialect calls them. One statement a string.
 *
 * Ids are 32 random hexadecimal digits; times seconds since the epoch; `sealed` columns are
 * encrypted (crypto/seal.h). A time of 0 is "not".
 */
static const char *const version_1[] = {
    "CREATE TABLE secrets (id TEXT PRIMARY KEY, kind TEXT NOT NULL, created BIGINT NOT NULL,"
    " expires BIGINT NOT NULL, public TEXT, sealed @BYTES NOT NULL)",

    "CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created BIGINT NOT NULL,"
    " disabled BIGINT NOT NULL DEFAULT 0, sign_kid TEXT NOT NULL, sign_pub @BYTES NOT NULL,"
    " sign_sealed @BYTES NOT NULL)",

    "CREATE TABLE apikeys (id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users(id),"
    " scope TEXT NOT NULL, hash @BYTES NOT NULL UNIQUE, label TEXT NOT NULL, created BIGINT NOT "
    "NULL,"
    " expires BIGINT NOT NULL DEFAULT 0, revoked BIGINT NOT NULL DEFAULT 0)",

    "CREATE TABLE sessions (id TEXT PRIMARY KEY, apikey_id TEXT NOT NULL REFERENCES apikeys(id),"
    " access @BYTES NOT NULL UNIQUE, refresh @BYTES NOT NULL UNIQUE, previous @BYTES UNIQUE,"
    " access_expires BIGINT NOT NULL, refresh_expires BIGINT NOT NULL,"
    " ended BIGINT NOT NULL DEFAULT 0)",

    "CREATE TABLE models (id TEXT PRIMARY KEY, owner_id TEXT NOT NULL REFERENCES users(id),"
    " name TEXT NOT NULL, description TEXT NOT NULL, created BIGINT NOT NULL,"
    " generation BIGINT NOT NULL DEFAULT 0, last_generation BIGINT NOT NULL DEFAULT 0,"
    " pending TEXT NOT NULL DEFAULT '',"
    " master_kid TEXT NOT NULL, master_sealed @BYTES NOT NULL, lease_seconds BIGINT NOT NULL,"
    " lease_grace BIGINT NOT NULL, assurance TEXT NOT NULL, profiles TEXT NOT NULL,"
    " UNIQUE (owner_id, name))",

    "CREATE TABLE generations (model_id TEXT NOT NULL REFERENCES models(id), number BIGINT NOT "
    "NULL,"
    " created BIGINT NOT NULL, manifest_sha256 TEXT, PRIMARY KEY (model_id, number))",

    "CREATE TABLE files (model_id TEXT NOT NULL REFERENCES models(id), generation BIGINT NOT NULL,"
    " path TEXT NOT NULL, sha256 TEXT NOT NULL, immutable TEXT NOT NULL, body BIGINT NOT NULL,"
    " size BIGINT NOT NULL, policy TEXT NOT NULL, header @BYTES NOT NULL,"
    " PRIMARY KEY (model_id, generation, path))",

    "CREATE TABLE policies (model_id TEXT NOT NULL REFERENCES models(id), generation BIGINT NOT "
    "NULL,"
    " policy TEXT NOT NULL)",
    "CREATE INDEX policies_of ON policies (model_id, generation)",

    "CREATE TABLE stages (model_id TEXT NOT NULL REFERENCES models(id), stage TEXT NOT NULL,"
    " touched BIGINT NOT NULL, PRIMARY KEY (model_id, stage))",
    "CREATE TABLE staged (model_id TEXT NOT NULL REFERENCES models(id), stage TEXT NOT NULL,"
    " path TEXT NOT NULL, sha256 TEXT NOT NULL, immutable TEXT NOT NULL, body BIGINT NOT NULL,"
    " size BIGINT NOT NULL, policy TEXT NOT NULL, header @BYTES NOT NULL,"
    " PRIMARY KEY (model_id, stage, path))",

    "CREATE TABLE subscriptions (id TEXT PRIMARY KEY, model_id TEXT NOT NULL REFERENCES models(id),"
    " user_id TEXT NOT NULL REFERENCES users(id), created BIGINT NOT NULL,"
    " expires BIGINT NOT NULL DEFAULT 0, ended BIGINT NOT NULL DEFAULT 0, max_leases BIGINT NOT "
    "NULL,"
    " leases BIGINT NOT NULL DEFAULT 0, master_kid TEXT NOT NULL, master_sealed @BYTES NOT NULL,"
    " sign_kid TEXT NOT NULL, sign_pub @BYTES NOT NULL, sign_sealed @BYTES NOT NULL)",
    "CREATE UNIQUE INDEX subscriptions_running ON subscriptions (model_id, user_id)"
    " WHERE ended = 0",

    "CREATE TABLE personal (subscription_id TEXT NOT NULL REFERENCES subscriptions(id),"
    " generation BIGINT NOT NULL, path TEXT NOT NULL, sha256 TEXT NOT NULL, header @BYTES NOT NULL,"
    " PRIMARY KEY (subscription_id, generation, path))",

    "CREATE TABLE baselines (id TEXT PRIMARY KEY, model_id TEXT NOT NULL REFERENCES models(id),"
    " digest TEXT NOT NULL, assurance TEXT NOT NULL, label TEXT NOT NULL, created BIGINT NOT NULL,"
    " withdrawn BIGINT NOT NULL DEFAULT 0, UNIQUE (model_id, digest))",

    "CREATE TABLE challenges (nonce @BYTES PRIMARY KEY, expires BIGINT NOT NULL)",

    "CREATE TABLE tickets (hash TEXT PRIMARY KEY, expires BIGINT NOT NULL,"
    " calls BIGINT NOT NULL DEFAULT 0, done BIGINT NOT NULL DEFAULT 0, apikey_id TEXT NOT NULL,"
    " user_id TEXT NOT NULL, model_id TEXT NOT NULL, subscription_id TEXT, generation BIGINT NOT "
    "NULL,"
    " challenge TEXT NOT NULL, claims TEXT NOT NULL)",

    "CREATE TABLE leases (id TEXT PRIMARY KEY, created BIGINT NOT NULL, expires BIGINT NOT NULL,"
    " grace BIGINT NOT NULL, ended BIGINT NOT NULL DEFAULT 0, revoked BIGINT NOT NULL DEFAULT 0,"
    " reason TEXT, apikey_id TEXT NOT NULL, user_id TEXT NOT NULL, model_id TEXT NOT NULL,"
    " subscription_id TEXT, generation BIGINT NOT NULL, claims TEXT NOT NULL,"
    " audit_count BIGINT NOT NULL DEFAULT 0, audit_head TEXT NOT NULL)",
    "CREATE INDEX leases_of_subscription ON leases (subscription_id, expires)",
    "CREATE INDEX leases_of_model ON leases (model_id, expires)",

    "CREATE TABLE audit_records (lease_id TEXT NOT NULL REFERENCES leases(id),"
    " sequence BIGINT NOT NULL, record TEXT NOT NULL, PRIMARY KEY (lease_id, sequence))",

    "CREATE TABLE audit (id @SERIAL, at BIGINT NOT NULL, event TEXT NOT NULL, code TEXT NOT NULL,"
    " user_name TEXT, model TEXT, lease_id TEXT, address TEXT, detail TEXT)",
    "CREATE INDEX audit_at ON audit (at)",

    "CREATE TABLE changes (one BIGINT PRIMARY KEY, counter BIGINT NOT NULL)",
    "INSERT INTO changes (one, counter) VALUES (1, 0)",
    NULL,
};

static const char *const version_2[] = {
    /* Found by model and user, ended or not. */
    "CREATE INDEX subscriptions_of ON subscriptions (model_id, user_id)",
    "ALTER TABLE models DROP COLUMN pending",
    /* What each step of the counter was for: id of a lease or model, or * for anything. */
    "CREATE TABLE changed (number BIGINT PRIMARY KEY, subject TEXT NOT NULL)",
    /* Where a lease's chain of records was cut: number of the last that went, digest after it. */
    "ALTER TABLE leases ADD COLUMN audit_pruned BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE leases ADD COLUMN audit_pruned_head TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE audit_records ADD COLUMN at BIGINT NOT NULL DEFAULT 0",
    "UPDATE audit_records SET at = (SELECT l.created FROM leases l WHERE l.id = lease_id)",
    "CREATE INDEX audit_records_at ON audit_records (at)",
    "CREATE INDEX leases_expires ON leases (expires)",
    NULL,
};

static const char *const *const migrations[] = {version_1, version_2};
enum { VERSIONS = sizeof(migrations) / sizeof(*migrations) };

static int run(struct ks_db *db, const char *text, struct ct_err *err)
{
    ct_autobuf sql = {0};
    for (const char *p = text; *p;) {
        const char *at = strchr(p, '@');
        ct_buf_put(&sql, p, at ? (size_t)(at - p) : strlen(p));
        if (!at) {
            break;
        }
        bool bytes = strncmp(at, "@BYTES", 6) == 0;
        ct_buf_puts(&sql, bytes ? db->driver->bytes : db->driver->serial);
        p = at + (bytes ? 6 : 7);
    }
    ct_buf_putc(&sql, '\0');
    return ct_buf_ok(&sql, err) || ks_exec(db, err, (const char *)sql.data, "") < 0 ? -1 : 0;
}

static int64_t version_now(struct ks_db *db, struct ct_err *err)
{
    ks_autorows rows = NULL;
    int r = ks_one(db, &rows, err, "SELECT COALESCE(MAX(version), 0) FROM schema_version", "");
    return r < 0 ? -1 : r ? ks_int(rows, 0) : 0;
}

static int newer(int64_t version, struct ct_err *err)
{
    return ct_err_set(err, CT_UNSUPPORTED,
                      "the database has schema %lld, this program knows %d: use a newer one",
                      (long long)version, VERSIONS);
}

static int migrate(struct ks_db *db, struct ct_err *err)
{
    /* The lock keeps a second migration waiting. */
    if (ks_alone(db, err) ||
        ks_exec(db, err, "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY)",
                "") < 0) {
        return -1;
    }
    int64_t version = version_now(db, err);
    if (version < 0 || version > VERSIONS) {
        return version < 0 ? -1 : newer(version, err);
    }
    for (; version < VERSIONS; version++) {
        for (const char *const *sql = migrations[version]; *sql; sql++) {
            if (run(db, *sql, err)) {
                return -1;
            }
        }
        if (ks_exec(db, err, "INSERT INTO schema_version (version) VALUES ($1)", "i", version + 1) <
            0) {
            return -1;
        }
    }
    return 0;
}

int ks_migrate(struct ks_db *db, struct ct_err *err)
{
    if (ks_begin(db, KS_WRITE, err)) {
        return -1;
    }
    if (migrate(db, err)) {
        ks_rollback(db);
        return -1;
    }
    return ks_commit(db, err);
}

int ks_schema_check(struct ks_db *db, struct ct_err *err)
{
    if (ks_begin(db, KS_READ, err)) {
        return -1;
    }
    int64_t version = version_now(db, err);
    ks_rollback(db);
    if (version < 0) {
        return ct_err_wrap(err, "no key server's database (see init)");
    }
    if (version > VERSIONS) {
        return newer(version, err);
    }
    return version == VERSIONS ? 0
                               : ct_err_set(err, CT_STALE,
                                            "the database has schema %lld, this program needs %d: "
                                            "run migrate",
                                            (long long)version, VERSIONS);
}
