#include <stdarg.h>
#include <string.h>

#include "keyserver/store/driver.h"

int ks_db_open(const char *where, struct ks_db **out, struct ct_err *err)
{
    bool postgres =
        strncmp(where, "postgresql://", 13) == 0 || strncmp(where, "postgres://", 11) == 0;
    *out = postgres ? ks_postgres_open(where, err) : ks_sqlite_open(where, err);
    return *out ? 0 : -1;
}

void ks_db_close(struct ks_db *db)
{
    if (db) {
        db->driver->rollback(db);
        db->driver->close(db);
    }
}

int ks_begin(struct ks_db *db, enum ks_tx kind, struct ct_err *err)
{
    return db->driver->begin(db, kind, err);
}

int ks_commit(struct ks_db *db, struct ct_err *err)
{
    if (db->driver->commit(db, err)) {
        db->driver->rollback(db);
        return -1;
    }
    return 0;
}

void ks_rollback(struct ks_db *db)
{
    db->driver->rollback(db);
}

int ks_hold(struct ks_db *db, enum ks_table table, const char *id, struct ct_err *err)
{
    return db->driver->hold(db, table, id, err);
}

int ks_alone(struct ks_db *db, struct ct_err *err)
{
    return ks_exec(db, err, db->driver->lock, "") < 0 ? -1 : 0;
}

static int take_params(const char *format, va_list ap, struct ks_param *out)
{
    static const char nothing[] = "";
    int n = 0;
    for (; format[n] && n < KS_PARAMS_MAX; n++) {
        struct ks_param *p = &out[n];
        *p = (struct ks_param){.type = format[n]};
        if (p->type == 'i') {
            p->i = va_arg(ap, int64_t);
        } else if (p->type == 's') {
            p->p = va_arg(ap, const char *);
            p->n = p->p ? strlen(p->p) : 0;
        } else {
            p->p = va_arg(ap, const void *);
            p->n = va_arg(ap, size_t);
            p->p = p->p ? p->p : nothing; /* no bytes are not NULL */
        }
    }
    return n;
}

int64_t ks_exec(struct ks_db *db, struct ct_err *err, const char *sql, const char *format, ...)
{
    struct ks_param params[KS_PARAMS_MAX];
    va_list ap;
    va_start(ap, format);
    int n = take_params(format, ap, params);
    va_end(ap);
    return db->driver->exec(db, sql, params, n, err);
}

struct ks_rows *ks_query(struct ks_db *db, struct ct_err *err, const char *sql, const char *format,
                         ...)
{
    struct ks_param params[KS_PARAMS_MAX];
    va_list ap;
    va_start(ap, format);
    int n = take_params(format, ap, params);
    va_end(ap);
    return db->driver->query(db, sql, params, n, err);
}

int ks_one(struct ks_db *db, struct ks_rows **out, struct ct_err *err, const char *sql,
           const char *format, ...)
{
    struct ks_param params[KS_PARAMS_MAX];
    va_list ap;
    va_start(ap, format);
    int n = take_params(format, ap, params);
    va_end(ap);
    *out = db->driver->query(db, sql, params, n, err);
    int r = *out ? ks_next(*out, err) : -1;
    if (r != 1) {
        ks_rows_free(*out);
        *out = NULL;
    }
    return r;
}

int ks_next(struct ks_rows *rows, struct ct_err *err)
{
    return rows->driver->next(rows, err);
}

int64_t ks_int(struct ks_rows *rows, int column)
{
    return rows->driver->integer(rows, column);
}

const char *ks_text(struct ks_rows *rows, int column)
{
    return rows->driver->text(rows, column);
}

const uint8_t *ks_blob(struct ks_rows *rows, int column, size_t *len)
{
    return rows->driver->blob(rows, column, len);
}

bool ks_is_null(struct ks_rows *rows, int column)
{
    return rows->driver->is_null(rows, column);
}

void ks_rows_free(struct ks_rows *rows)
{
    if (rows) {
        rows->driver->rows_free(rows);
    }
}
