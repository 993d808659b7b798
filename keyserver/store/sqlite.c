#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "format/base/file.h"
#include "keyserver/store/driver.h"

/* Prepared statements are kept in a table, found by the address of their text (a literal mostly).
 */
enum { CACHE = 128, BUSY_MS = 5000 };

/*
 * What all connections of this process to one file share. Writers queue for `writer`: SQLite's own
 * waiting is sleep and chance. A commit is on the disk when the log has been synced after it; those
 * that end while somebody syncs share the next time. So SQLite itself syncs with checkpoints only.
 */
struct shared {
    char *log; /* path of the write-ahead log */
    unsigned users;
    struct shared *next;
    pthread_mutex_t writer;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t change;
    bool syncing;
    uint64_t committed, synced, lost; /* numbers of commits; up to `lost` a sync failed */
};

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static struct shared *all;

struct sqlite_db {
    struct ks_db db;
    sqlite3 *handle;
    struct shared *shared;
    bool writing;
    int64_t changes; /* of this connection before the transaction */
    struct cached {
        sqlite3_stmt *stmt;
        bool used;
    } cache[CACHE];
};

struct sqlite_rows {
    struct ks_rows rows;
    struct sqlite_db *db;
    struct cached *slot; /* NULL: not cached */
    sqlite3_stmt *stmt;
};

static int failed(struct sqlite_db *db, int rc, struct ct_err *err)
{
    const char *text = sqlite3_errmsg(db->handle);
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return ct_err_set(err, CT_BUSY, "the database is busy");
    case SQLITE_FULL:
        return ct_err_sys(err, ENOSPC, "the database cannot be written");
    case SQLITE_NOMEM:
        return ct_err_set(err, CT_NOMEM, "no memory for the database");
    case SQLITE_CONSTRAINT:
        return ct_err_set(err, CT_EXISTS, "the database refuses: %s", text);
    case SQLITE_IOERR:
        return sqlite3_system_errno(db->handle) == ENOSPC
                   ? ct_err_sys(err, ENOSPC, "the database cannot be written")
                   : ct_err_set(err, CT_IO, "the database: %s", text);
    default:
        return ct_err_set(err, CT_IO, "the database: %s", text);
    }
}

static sqlite3_stmt *prepare(struct sqlite_db *db, const char *sql, struct cached **slot,
                             struct ct_err *err)
{
    size_t at = ((uintptr_t)sql >> 3) % CACHE;
    struct cached *c = &db->cache[at];
    *slot = NULL;
    if (!c->used && c->stmt && strcmp(sqlite3_sql(c->stmt), sql) == 0) {
        c->used = true;
        *slot = c;
        return c->stmt;
    }
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v3(db->handle, sql, -1, SQLITE_PREPARE_PERSISTENT, &stmt, NULL);
    if (rc != SQLITE_OK || !stmt) {
        failed(db, rc, err);
        return NULL;
    }
    if (!c->used) {
        (void)sqlite3_finalize(c->stmt);
        *c = (struct cached){stmt, true};
        *slot = c;
    }
    return stmt;
}

static void give_back(struct cached *slot, sqlite3_stmt *stmt)
{
    (void)sqlite3_reset(stmt);
    if (slot) {
        (void)sqlite3_clear_bindings(stmt);
        slot->used = false;
    } else {
        (void)sqlite3_finalize(stmt);
    }
}

/* SQLite takes $1 for a name, and numbers names as they come. Values are copied where the statement
 * outlives the caller's (`how`). */
static int bind_one(sqlite3_stmt *stmt, int number, const struct ks_param *p,
                    sqlite3_destructor_type how)
{
    char name[8];
    (void)snprintf(name, sizeof(name), "$%d", number);
    int at = sqlite3_bind_parameter_index(stmt, name);
    if (at == 0) {
        return SQLITE_OK;
    }
    if (p->type == 'i') {
        return sqlite3_bind_int64(stmt, at, p->i);
    }
    if (!p->p) {
        return sqlite3_bind_null(stmt, at);
    }
    return p->type == 's' ? sqlite3_bind_text64(stmt, at, p->p, p->n, how, SQLITE_UTF8)
                          : sqlite3_bind_blob64(stmt, at, p->p, p->n, how);
}

static int bind(struct sqlite_db *db, sqlite3_stmt *stmt, const struct ks_param *params, int count,
                sqlite3_destructor_type how, struct ct_err *err)
{
    for (int i = 0; i < count; i++) {
        int rc = bind_one(stmt, i + 1, &params[i], how);
        if (rc != SQLITE_OK) {
            return failed(db, rc, err);
        }
    }
    return 0;
}

static int64_t sqlite_exec(struct ks_db *base, const char *sql, const struct ks_param *params,
                           int count, struct ct_err *err)
{
    struct sqlite_db *db = (struct sqlite_db *)base;
    struct cached *slot = NULL;
    sqlite3_stmt *stmt = prepare(db, sql, &slot, err);
    if (!stmt) {
        return -1;
    }
    int64_t r = bind(db, stmt, params, count, SQLITE_STATIC, err);
    if (r == 0) {
        int rc = sqlite3_step(stmt);
        r = rc == SQLITE_DONE || rc == SQLITE_ROW ? sqlite3_changes64(db->handle)
                                                  : failed(db, rc, err);
    }
    give_back(slot, stmt);
    return r;
}

static void sqlite_rows_free(struct ks_rows *base)
{
    struct sqlite_rows *rows = (struct sqlite_rows *)base;
    give_back(rows->slot, rows->stmt);
    free(rows);
}

static struct ks_rows *sqlite_query(struct ks_db *base, const char *sql,
                                    const struct ks_param *params, int count, struct ct_err *err)
{
    struct sqlite_db *db = (struct sqlite_db *)base;
    struct sqlite_rows *rows = calloc(1, sizeof(*rows));
    if (!rows) {
        ct_err_set(err, CT_NOMEM, "no memory for rows");
        return NULL;
    }
    rows->rows.driver = base->driver;
    rows->db = db;
    rows->stmt = prepare(db, sql, &rows->slot, err);
    if (!rows->stmt) {
        free(rows);
        return NULL;
    }
    if (bind(db, rows->stmt, params, count, SQLITE_TRANSIENT, err)) {
        sqlite_rows_free(&rows->rows);
        return NULL;
    }
    return &rows->rows;
}

static int sqlite_next(struct ks_rows *base, struct ct_err *err)
{
    struct sqlite_rows *rows = (struct sqlite_rows *)base;
    int rc = sqlite3_step(rows->stmt);
    return rc == SQLITE_ROW ? 1 : rc == SQLITE_DONE ? 0 : failed(rows->db, rc, err);
}

static int64_t sqlite_integer(struct ks_rows *rows, int column)
{
    return sqlite3_column_int64(((struct sqlite_rows *)rows)->stmt, column);
}

static const char *sqlite_text(struct ks_rows *rows, int column)
{
    const unsigned char *text = sqlite3_column_text(((struct sqlite_rows *)rows)->stmt, column);
    return text ? (const char *)text : "";
}

static const uint8_t *sqlite_blob(struct ks_rows *rows, int column, size_t *len)
{
    sqlite3_stmt *stmt = ((struct sqlite_rows *)rows)->stmt;
    const uint8_t *p = sqlite3_column_blob(stmt, column);
    *len = p ? (size_t)sqlite3_column_bytes(stmt, column) : 0;
    return p;
}

static bool sqlite_is_null(struct ks_rows *rows, int column)
{
    return sqlite3_column_type(((struct sqlite_rows *)rows)->stmt, column) == SQLITE_NULL;
}

static int simple(struct sqlite_db *db, const char *sql, struct ct_err *err)
{
    int rc = sqlite3_exec(db->handle, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK ? 0 : failed(db, rc, err);
}

static void stop_writing(struct sqlite_db *db)
{
    if (db->writing) {
        db->writing = false;
        pthread_mutex_unlock(&db->shared->writer);
    }
}

/* SQLite holds no locks on the log, which closing a descriptor would take away. */
static int sync_log(const struct shared *s, struct ct_err *err)
{
    ct_autofd fd = open(s->log, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && fdatasync(fd) == 0 ? 0
                                         : ct_err_sys(err, errno, "the database cannot be written");
}

/* An error is told once by the kernel, and holds for all that were waiting for the same sync. */
static int wait_synced(struct shared *s, struct ct_err *err)
{
    int r = 0;
    pthread_mutex_lock(&s->lock);
    const uint64_t mine = ++s->committed;
    while (s->synced < mine && s->lost < mine) {
        if (s->syncing) {
            pthread_cond_wait(&s->change, &s->lock);
            continue;
        }
        const uint64_t upto = s->committed;
        s->syncing = true;
        pthread_mutex_unlock(&s->lock);
        r = sync_log(s, err);
        pthread_mutex_lock(&s->lock);
        s->syncing = false;
        *(r ? &s->lost : &s->synced) = upto;
        pthread_cond_broadcast(&s->change);
    }
    if (r == 0 && s->lost >= mine) {
        r = ct_err_set(err, CT_IO, "the database cannot be written");
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

static int sqlite_begin(struct ks_db *base, enum ks_tx kind, struct ct_err *err)
{
    struct sqlite_db *db = (struct sqlite_db *)base;
    if (kind == KS_READ) {
        return simple(db, "BEGIN", err);
    }
    pthread_mutex_lock(&db->shared->writer);
    db->writing = true;
    db->changes = sqlite3_total_changes64(db->handle);
    if (simple(db, "BEGIN IMMEDIATE", err)) {
        stop_writing(db);
        return -1;
    }
    return 0;
}

static int sqlite_commit(struct ks_db *base, struct ct_err *err)
{
    struct sqlite_db *db = (struct sqlite_db *)base;
    if (simple(db, "COMMIT", err)) {
        return -1;
    }
    const bool changed = db->writing && sqlite3_total_changes64(db->handle) != db->changes;
    stop_writing(db);
    return changed ? wait_synced(db->shared, err) : 0;
}

static void sqlite_rollback(struct ks_db *base)
{
    struct sqlite_db *db = (struct sqlite_db *)base;
    if (!sqlite3_get_autocommit(db->handle)) {
        (void)simple(db, "ROLLBACK", NULL);
    }
    stop_writing(db);
}

/* Only one writes at a time, and sees one moment. */
static int sqlite_hold(struct ks_db *db, enum ks_table table, const char *id, struct ct_err *err)
{
    (void)db;
    (void)table;
    (void)id;
    (void)err;
    return 0;
}

static struct shared *shared_new(const char *log)
{
    struct shared *s = calloc(1, sizeof(*s));
    char *copy = strdup(log);
    if (s && copy) {
        *s = (struct shared){.log = copy, .next = all};
        pthread_mutex_init(&s->writer, NULL);
        pthread_mutex_init(&s->lock, NULL);
        pthread_cond_init(&s->change, NULL);
        all = s;
        return s;
    }
    free(copy);
    free(s);
    return NULL;
}

static struct shared *shared_get(const char *path, struct ct_err *err)
{
    ct_autobuf log = {0};
    ct_buf_puts(&log, path);
    ct_buf_puts(&log, "-wal");
    ct_buf_putc(&log, '\0');
    if (ct_buf_ok(&log, err)) {
        return NULL;
    }
    pthread_mutex_lock(&all_lock);
    struct shared *s = all;
    while (s && strcmp(s->log, (char *)log.data) != 0) {
        s = s->next;
    }
    s = s ? s : shared_new((char *)log.data);
    if (s) {
        s->users++;
    } else {
        ct_err_set(err, CT_NOMEM, "no memory for a database");
    }
    pthread_mutex_unlock(&all_lock);
    return s;
}

static void shared_put(struct shared *s)
{
    pthread_mutex_lock(&all_lock);
    if (s && --s->users == 0) {
        struct shared **at = &all;
        while (*at != s) {
            at = &(*at)->next;
        }
        *at = s->next;
        pthread_cond_destroy(&s->change);
        pthread_mutex_destroy(&s->lock);
        pthread_mutex_destroy(&s->writer);
        free(s->log);
        free(s);
    }
    pthread_mutex_unlock(&all_lock);
}

static void sqlite_close(struct ks_db *base)
{
    struct sqlite_db *db = (struct sqlite_db *)base;
    for (size_t i = 0; i < CACHE; i++) {
        (void)sqlite3_finalize(db->cache[i].stmt);
    }
    (void)sqlite3_close(db->handle);
    shared_put(db->shared);
    free(db);
}

static const struct ks_driver driver = {
    .begin = sqlite_begin,
    .commit = sqlite_commit,
    .rollback = sqlite_rollback,
    .hold = sqlite_hold,
    .exec = sqlite_exec,
    .query = sqlite_query,
    .next = sqlite_next,
    .integer = sqlite_integer,
    .text = sqlite_text,
    .blob = sqlite_blob,
    .is_null = sqlite_is_null,
    .rows_free = sqlite_rows_free,
    .close = sqlite_close,
    .bytes = "BLOB",
    .serial = "INTEGER PRIMARY KEY AUTOINCREMENT",
    .lock = "SELECT 1", /* BEGIN IMMEDIATE did */
};

struct ks_db *ks_sqlite_open(const char *path, struct ct_err *err)
{
    struct sqlite_db *db = calloc(1, sizeof(*db));
    if (!db) {
        ct_err_set(err, CT_NOMEM, "no memory for a database");
        return NULL;
    }
    db->db.driver = &driver;
    db->shared = shared_get(path, err);
    if (!db->shared) {
        free(db);
        return NULL;
    }
    int rc = sqlite3_open_v2(path, &db->handle,
                             SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX |
                                 SQLITE_OPEN_EXRESCODE,
                             NULL);
    if (rc != SQLITE_OK) {
        failed(db, rc, err);
        ct_err_wrap(err, "%s", path);
        sqlite_close(&db->db);
        return NULL;
    }
    (void)sqlite3_busy_timeout(db->handle, BUSY_MS);
    /* NORMAL, and wait_synced(): what was answered survives a power cut, a revocation above all. */
    if (simple(db, "PRAGMA journal_mode = WAL", err) ||
        simple(db, "PRAGMA synchronous = NORMAL", err) ||
        simple(db, "PRAGMA foreign_keys = ON", err) ||
        simple(db, "PRAGMA secure_delete = ON", err) ||
        simple(db, "PRAGMA trusted_schema = OFF", err)) {
        ct_err_wrap(err, "%s", path);
        sqlite_close(&db->db);
        return NULL;
    }
    return &db->db;
}
