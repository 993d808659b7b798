/*
 * The seam to the database: SQL that SQLite and PostgreSQL both take, with parameters $1, $2, …
 *
 * A `ks_db` is one connection and belongs to one thread at a time. All writing happens between
 * ks_begin(KS_WRITE) and ks_commit(). In a reading transaction everything read is of one moment; a
 * writing one sees what others commit meanwhile, unless it writes or holds (ks_hold) the row first.
 * A transaction that lost against another one fails with CT_BUSY: roll back and run it again. Other
 * errors: CT_EXISTS (a unique column), CT_IO (with err->sys ENOSPC when full, ECONNRESET when the
 * database is gone; the connection is made anew at the next ks_begin()).
 *
 * Parameter formats: i int64_t, s const char * (NULL is NULL), b const void * and size_t.
 */
#ifndef KS_STORE_H
#define KS_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/base/bytes.h"

struct ks_db;
struct ks_rows;

enum ks_tx { KS_READ, KS_WRITE };

/* `where` is a file's path or a PostgreSQL connection string (postgresql://… or postgres://…). */
int ks_db_open(const char *where, struct ks_db **out, struct ct_err *err);
void ks_db_close(struct ks_db *db); /* NULL is allowed */
static inline void ks_db_closep(struct ks_db **db)
{
    ks_db_close(*db);
}
#define ks_autodb __attribute__((cleanup(ks_db_closep))) struct ks_db *

int ks_begin(struct ks_db *db, enum ks_tx kind, struct ct_err *err);
int ks_commit(struct ks_db *db, struct ct_err *err); /* rolls back when it fails */
void ks_rollback(struct ks_db *db);                  /* harmless outside a transaction */

/* Keeps a row as it is until the (writing) transaction ends; what is read of it from now on is
 * current. Others may hold it too. */
enum ks_table { KS_APIKEYS, KS_USERS, KS_MODELS, KS_SUBSCRIPTIONS };
int ks_hold(struct ks_db *db, enum ks_table table, const char *id, struct ct_err *err);

/* Of all transactions that call this, over all servers, one runs at a time. */
int ks_alone(struct ks_db *db, struct ct_err *err);

/* Runs a statement; returns how many rows it changed, or -1. */
int64_t ks_exec(struct ks_db *db, struct ct_err *err, const char *sql, const char *format, ...);
/* For a statement that gives rows. To be freed before the transaction ends. */
struct ks_rows *ks_query(struct ks_db *db, struct ct_err *err, const char *sql, const char *format,
                         ...);
/* 1: there is a row; 0: no more; -1. */
int ks_next(struct ks_rows *rows, struct ct_err *err);
/* Of the current row, by column from 0; valid until the next ks_next(). NULL reads as 0, "" and no
 * bytes. */
int64_t ks_int(struct ks_rows *rows, int column);
const char *ks_text(struct ks_rows *rows, int column);
const uint8_t *ks_blob(struct ks_rows *rows, int column, size_t *len);
bool ks_is_null(struct ks_rows *rows, int column);
void ks_rows_free(struct ks_rows *rows); /* NULL is allowed */
static inline void ks_rows_freep(struct ks_rows **rows)
{
    ks_rows_free(*rows);
}
#define ks_autorows __attribute__((cleanup(ks_rows_freep))) struct ks_rows *

/* The first row: 1 and *out (to be freed), 0 if there is none, -1. */
int ks_one(struct ks_db *db, struct ks_rows **out, struct ct_err *err, const char *sql,
           const char *format, ...);

/* ---- the schema (store/schema.c) ---- */

/* Makes or brings up to date; may be run again at any time, also by several at once. CT_UNSUPPORTED
 * when the database is newer than this program. */
int ks_migrate(struct ks_db *db, struct ct_err *err);
/* CT_STALE when the schema is not this program's: run `migrate`. */
int ks_schema_check(struct ks_db *db, struct ct_err *err);

#endif
