/* What store.c and the two drivers share. Not for others. */
#ifndef KS_DRIVER_H
#define KS_DRIVER_H

#include "keyserver/store/store.h"

enum { KS_PARAMS_MAX = 24 };

struct ks_param {
    char type; /* i, s, b */
    int64_t i;
    const void *p; /* NULL: NULL */
    size_t n;
};

struct ks_driver {
    int (*begin)(struct ks_db *db, enum ks_tx kind, struct ct_err *err);
    int (*commit)(struct ks_db *db, struct ct_err *err);
    void (*rollback)(struct ks_db *db);
    int (*hold)(struct ks_db *db, enum ks_table table, const char *id, struct ct_err *err);
    int64_t (*exec)(struct ks_db *db, const char *sql, const struct ks_param *params, int count,
                    struct ct_err *err);
    struct ks_rows *(*query)(struct ks_db *db, const char *sql, const struct ks_param *params,
                             int count, struct ct_err *err);
    int (*next)(struct ks_rows *rows, struct ct_err *err);
    int64_t (*integer)(struct ks_rows *rows, int column);
    const char *(*text)(struct ks_rows *rows, int column);
    const uint8_t *(*blob)(struct ks_rows *rows, int column, size_t *len);
    bool (*is_null)(struct ks_rows *rows, int column);
    void (*rows_free)(struct ks_rows *rows);
    void (*close)(struct ks_db *db);
    /* What the dialects call differently. */
    const char *bytes, *serial, *lock; /* lock: ks_alone() */
};

struct ks_db { /* the first member of a driver's own */
    const struct ks_driver *driver;
};

struct ks_rows {
    const struct ks_driver *driver;
};

struct ks_db *ks_sqlite_open(const char *path, struct ct_err *err);
struct ks_db *ks_postgres_open(const char *where, struct ct_err *err);

#endif
