#include <errno.h>
#include <libpq-fe.h>
#include <stdio.h>
#include <string.h>

#include "format/base/secret.h"
#include "keyserver/store/driver.h"

/*
 * Statements are prepared once a connection, under a name that their text's address gives. Numbers
 * and text go as text, bytes as binary; all answers are binary. Writing transactions are READ
 * COMMITTED: each statement sees what is committed by then, and rows that a decision rests on are
 * held (ks_hold).
 */
enum { CACHE = 256, LOCK_MS = 10000 };

struct postgres_db {
    struct ks_db db;
    char *where;
    PGconn *conn;
    const char *prepared[CACHE];
};

struct postgres_rows {
    struct ks_rows rows;
    PGresult *result;
    int row; /* the current one; -1 before the first */
};

/* ---- errors ---- */

/* A server's message can hold values of a row; its first line names the rule that was broken. */
static int failed(struct postgres_db *db, const PGresult *result, struct ct_err *err)
{
    const char *state = result ? PQresultErrorField(result, PG_DIAG_SQLSTATE) : NULL;
    const char *primary = result ? PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY) : NULL;
    if (!state) {
        return PQstatus(db->conn) != CONNECTION_OK
                   ? ct_err_sys(err, ECONNRESET, "the database is gone")
                   : ct_err_set(err, CT_IO, "the database does not answer");
    }
    if (strncmp(state, "40", 2) == 0 || strcmp(state, "55P03") == 0) {
        return ct_err_set(err, CT_BUSY, "the database is busy");
    }
    if (strncmp(state, "23", 2) == 0) {
        return ct_err_set(err, CT_EXISTS, "the database refuses: %s", primary ? primary : state);
    }
    if (strcmp(state, "53100") == 0) {
        return ct_err_sys(err, ENOSPC, "the database cannot be written");
    }
    return ct_err_set(err, CT_IO, "the database: %s", primary ? primary : state);
}

static bool is_good(const PGresult *result)
{
    ExecStatusType status = PQresultStatus(result);
    return status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK;
}

static int simple(struct postgres_db *db, const char *sql, struct ct_err *err)
{
    PGresult *result = PQexec(db->conn, sql);
    int r = is_good(result) ? 0 : failed(db, result, err);
    PQclear(result);
    return r;
}

/* ---- connection ---- */

static void swallow(void *arg, const char *message)
{
    (void)arg;
    (void)message;
}

static int setup(struct postgres_db *db, struct ct_err *err)
{
    char lock[64];
    memset(db->prepared, 0, sizeof(db->prepared));
    (void)PQsetNoticeProcessor(db->conn, swallow, NULL);
    (void)snprintf(lock, sizeof(lock), "SET lock_timeout = %d", LOCK_MS);
    return simple(db, "SET client_encoding = 'UTF8'", err) || simple(db, lock, err) ? -1 : 0;
}

/* libpq's own words can hold the connection string: only what kind of failure it was is told. */
static int reconnect(struct postgres_db *db, struct ct_err *err)
{
    const char *const names[] = {"dbname", "connect_timeout", "application_name", NULL};
    const char *const values[] = {db->where, "5", "kvfs-keyserver", NULL};
    PQfinish(db->conn);
    db->conn = PQconnectdbParams(names, values, 1);
    if (PQstatus(db->conn) != CONNECTION_OK) {
        return ct_err_sys(err, ECONNREFUSED, "no connection to the database");
    }
    return setup(db, err);
}

/* ---- statements ---- */

enum { OID_BYTEA = 17, OID_INT8 = 20, OID_TEXT = 25 };

struct bound {
    Oid types[KS_PARAMS_MAX];
    const char *values[KS_PARAMS_MAX];
    int lengths[KS_PARAMS_MAX], formats[KS_PARAMS_MAX];
    char numbers[KS_PARAMS_MAX][24];
};

static void bind(const struct ks_param *params, int count, struct bound *b)
{
    for (int i = 0; i < count; i++) {
        const struct ks_param *p = &params[i];
        b->types[i] = p->type == 'i' ? OID_INT8 : p->type == 'b' ? OID_BYTEA : OID_TEXT;
        b->values[i] = p->p;
        b->lengths[i] = (int)p->n;
        b->formats[i] = p->type == 'b';
        if (p->type == 'i') {
            (void)snprintf(b->numbers[i], sizeof(b->numbers[i]), "%lld", (long long)p->i);
            b->values[i] = b->numbers[i];
        }
    }
}

/* Whether the statement is prepared, or was now: 1, 0, -1. Only what has parameters, and so is a
 * literal that stays where it is. */
static int prepare(struct postgres_db *db, const char *sql, const struct bound *b, int count,
                   char name[static 32], struct ct_err *err)
{
    const size_t at = ((uintptr_t)sql >> 3) % CACHE;
    (void)snprintf(name, 32, "s%zu", at);
    if (count == 0 || (db->prepared[at] && db->prepared[at] != sql)) {
        return 0;
    }
    if (db->prepared[at] == sql) {
        return 1;
    }
    PGresult *result = PQprepare(db->conn, name, sql, count, b->types);
    int r = is_good(result) ? 1 : failed(db, result, err);
    PQclear(result);
    db->prepared[at] = r == 1 ? sql : NULL;
    return r;
}

static PGresult *run(struct postgres_db *db, const char *sql, const struct ks_param *params,
                     int count, struct ct_err *err)
{
    struct bound b = {0};
    char name[32];
    bind(params, count, &b);
    int prepared = prepare(db, sql, &b, count, name, err);
    if (prepared < 0) {
        return NULL;
    }
    PGresult *result =
        prepared ? PQexecPrepared(db->conn, name, count, b.values, b.lengths, b.formats, 1)
                 : PQexecParams(db->conn, sql, count, b.types, b.values, b.lengths, b.formats, 1);
    if (!is_good(result)) {
        failed(db, result, err);
        PQclear(result);
        return NULL;
    }
    return result;
}

static int64_t postgres_exec(struct ks_db *base, const char *sql, const struct ks_param *params,
                             int count, struct ct_err *err)
{
    PGresult *result = run((struct postgres_db *)base, sql, params, count, err);
    if (!result) {
        return -1;
    }
    int64_t n = strtoll(PQcmdTuples(result), NULL, 10);
    PQclear(result);
    return n;
}

static struct ks_rows *postgres_query(struct ks_db *base, const char *sql,
                                      const struct ks_param *params, int count, struct ct_err *err)
{
    struct postgres_rows *rows = calloc(1, sizeof(*rows));
    if (!rows) {
        ct_err_set(err, CT_NOMEM, "no memory for rows");
        return NULL;
    }
    rows->rows.driver = base->driver;
    rows->row = -1;
    rows->result = run((struct postgres_db *)base, sql, params, count, err);
    if (!rows->result) {
        free(rows);
        return NULL;
    }
    return &rows->rows;
}

static void postgres_rows_free(struct ks_rows *base)
{
    PQclear(((struct postgres_rows *)base)->result);
    free(base);
}

/* ---- values: binary, numbers in network order ---- */

static int postgres_next(struct ks_rows *base, struct ct_err *err)
{
    struct postgres_rows *rows = (struct postgres_rows *)base;
    (void)err;
    return ++rows->row < PQntuples(rows->result);
}

static int64_t postgres_integer(struct ks_rows *base, int column)
{
    const struct postgres_rows *rows = (struct postgres_rows *)base;
    const uint8_t *p = (const uint8_t *)PQgetvalue(rows->result, rows->row, column);
    int n = PQgetlength(rows->result, rows->row, column);
    uint64_t v = n == 4 && p[0] & 0x80 ? UINT64_C(0xffffffff00000000) : 0;
    if (n == 4 || n == 8) {
        uint64_t bits = 0;
        for (int i = 0; i < n; i++) {
            bits = bits << 8 | p[i];
        }
        v |= bits;
    }
    return (int64_t)v;
}

static const char *postgres_text(struct ks_rows *base, int column)
{
    const struct postgres_rows *rows = (struct postgres_rows *)base;
    return PQgetvalue(rows->result, rows->row, column);
}

static const uint8_t *postgres_blob(struct ks_rows *base, int column, size_t *len)
{
    const struct postgres_rows *rows = (struct postgres_rows *)base;
    *len = (size_t)PQgetlength(rows->result, rows->row, column);
    return (const uint8_t *)PQgetvalue(rows->result, rows->row, column);
}

static bool postgres_is_null(struct ks_rows *base, int column)
{
    const struct postgres_rows *rows = (struct postgres_rows *)base;
    return PQgetisnull(rows->result, rows->row, column);
}

/* ---- transactions ---- */

static int postgres_begin(struct ks_db *base, enum ks_tx kind, struct ct_err *err)
{
    struct postgres_db *db = (struct postgres_db *)base;
    const char *sql = kind == KS_READ ? "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
                                      : "BEGIN ISOLATION LEVEL READ COMMITTED";
    /* A connection that died since the last transaction may say so only now. */
    if (db->conn && PQstatus(db->conn) == CONNECTION_OK && simple(db, sql, err) == 0) {
        return 0;
    }
    return reconnect(db, err) || simple(db, sql, err) ? -1 : 0;
}

/* COMMIT of a transaction that failed is answered with ROLLBACK. */
static int postgres_commit(struct ks_db *base, struct ct_err *err)
{
    struct postgres_db *db = (struct postgres_db *)base;
    PGresult *result = PQexec(db->conn, "COMMIT");
    int r = !is_good(result) ? failed(db, result, err)
            : strcmp(PQcmdStatus(result), "COMMIT") == 0
                ? 0
                : ct_err_set(err, CT_BUSY, "the database rolled back");
    PQclear(result);
    return r;
}

static void postgres_rollback(struct ks_db *base)
{
    struct postgres_db *db = (struct postgres_db *)base;
    PGTransactionStatusType status = PQtransactionStatus(db->conn);
    if (status == PQTRANS_INTRANS || status == PQTRANS_INERROR) {
        (void)simple(db, "ROLLBACK", NULL);
    }
}

static int postgres_hold(struct ks_db *base, enum ks_table table, const char *id,
                         struct ct_err *err)
{
    static const char *const sql[] = {
        [KS_APIKEYS] = "SELECT 1 FROM apikeys WHERE id = $1 FOR SHARE",
        [KS_USERS] = "SELECT 1 FROM users WHERE id = $1 FOR SHARE",
        [KS_MODELS] = "SELECT 1 FROM models WHERE id = $1 FOR SHARE",
        [KS_SUBSCRIPTIONS] = "SELECT 1 FROM subscriptions WHERE id = $1 FOR SHARE",
    };
    const struct ks_param param = {.type = 's', .p = id, .n = strlen(id)};
    return postgres_exec(base, sql[table], &param, 1, err) < 0 ? -1 : 0;
}

static void postgres_close(struct ks_db *base)
{
    struct postgres_db *db = (struct postgres_db *)base;
    PQfinish(db->conn);
    ct_wiping_free(db->where);
    free(db);
}

static const struct ks_driver driver = {
    .begin = postgres_begin,
    .commit = postgres_commit,
    .rollback = postgres_rollback,
    .hold = postgres_hold,
    .exec = postgres_exec,
    .query = postgres_query,
    .next = postgres_next,
    .integer = postgres_integer,
    .text = postgres_text,
    .blob = postgres_blob,
    .is_null = postgres_is_null,
    .rows_free = postgres_rows_free,
    .close = postgres_close,
    .bytes = "BYTEA",
    .serial = "BIGSERIAL PRIMARY KEY",
    .lock = "SELECT pg_advisory_xact_lock(7305792816249)",
};

struct ks_db *ks_postgres_open(const char *where, struct ct_err *err)
{
    struct postgres_db *db = calloc(1, sizeof(*db));
    if (db) {
        db->where = strdup(where);
    }
    if (!db || !db->where) {
        free(db);
        ct_err_set(err, CT_NOMEM, "no memory for a database");
        return NULL;
    }
    db->db.driver = &driver;
    if (reconnect(db, err)) {
        postgres_close(&db->db);
        return NULL;
    }
    return &db->db;
}
