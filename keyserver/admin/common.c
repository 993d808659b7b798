#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "format/base/file.h"
#include "keyserver/admin/admin.h"

/* ---- options ---- */

const char *ks_option(const struct ks_admin *a, const char *name, const char *otherwise)
{
    size_t n = strlen(name);
    for (size_t i = a->option_count; i-- > 0;) {
        const char *have = a->options[i].name;
        if (strncmp(have, name, n) == 0 && (have[n] == '=' || !have[n])) {
            return a->options[i].value;
        }
    }
    return otherwise;
}

int ks_option_number(const struct ks_admin *a, const char *name, int64_t otherwise, int64_t max,
                     int64_t *out, struct ct_err *err)
{
    char *end = NULL;
    const char *text = ks_option(a, name, NULL);
    *out = otherwise;
    if (!text) {
        return 0;
    }
    *out = strtoll(text, &end, 10);
    return *text < '0' || *text > '9' || *end || *out > max
               ? ct_err_set(err, CT_USAGE, "--%s is a whole number up to %lld", name,
                            (long long)max)
               : 0;
}

int ks_option_time(const struct ks_admin *a, const char *name, int64_t *out, struct ct_err *err)
{
    struct tm tm = {0};
    const char *text = ks_option(a, name, NULL);
    *out = 0;
    if (!text || strcmp(text, "never") == 0) {
        return 0;
    }
    const char *end = strptime(text, "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (!end) {
        tm = (struct tm){0};
        end = strptime(text, "%Y-%m-%d", &tm);
    }
    *out = end && !*end ? timegm(&tm) : -1;
    return *out > 0 ? 0
                    : ct_err_set(err, CT_USAGE,
                                 "--%s is a date, a time (2026-12-31T23:59:59Z) or never", name);
}

/* ---- places ---- */

int ks_path(const struct ks_admin *a, const char *name, char out[KS_PATH], struct ct_err *err)
{
    int n = snprintf(out, KS_PATH, "%s/%s", a->dir, name);
    return n > 0 && n < KS_PATH ? 0 : ct_err_set(err, CT_USAGE, "the path is too long");
}

int ks_seal_path(const struct ks_admin *a, char out[KS_PATH], struct ct_err *err)
{
    const char *given = ks_option(a, "secrets", NULL);
    const char *credentials = getenv("CREDENTIALS_DIRECTORY");
    if (given) {
        (void)snprintf(out, KS_PATH, "%s", given);
        return 0;
    }
    if (credentials) {
        (void)snprintf(out, KS_PATH, "%s/kvfs-keyserver-secrets", credentials);
        if (access(out, R_OK) == 0) {
            return 0;
        }
    }
    return ks_path(a, "secrets.jwks", out, err);
}

/* DIR/database holds a connection string, if it is there. */
static int find_database(struct ks_admin *a, struct ct_err *err)
{
    char path[KS_PATH];
    ct_autobuf text = {0};
    if (ks_path(a, "database", path, err)) {
        return -1;
    }
    if (access(path, F_OK)) {
        return ks_path(a, "keyserver.db", a->database, err);
    }
    if (ct_read_file(AT_FDCWD, path, KS_PATH - 1, &text, err)) {
        return -1;
    }
    (void)snprintf(a->database, sizeof(a->database), "%.*s", (int)text.len, (char *)text.data);
    a->database[strcspn(a->database, "\n")] = '\0';
    return 0;
}

int ks_admin_open(struct ks_admin *a, bool current, struct ct_err *err)
{
    char path[KS_PATH];
    if (find_database(a, err) || ks_seal_path(a, path, err)) {
        return -1;
    }
    if (access(a->database, F_OK) && *a->database == '/' && current) {
        return ct_err_set(err, CT_NOTFOUND, "%s is not there: run init", a->database);
    }
    return ks_seal_open(path, &a->ctx.seal, err) || ks_db_open(a->database, &a->ctx.db, err) ||
                   (current && ks_schema_check(a->ctx.db, err))
               ? -1
               : 0;
}

void ks_admin_close(struct ks_admin *a)
{
    ks_db_close(a->ctx.db);
    ks_seal_free(a->ctx.seal);
}

/* ---- what is named ---- */

int ks_admin_user(struct ks_admin *a, const char *word, struct ks_user *out, struct ct_err *err)
{
    int r = ks_user_find(&a->ctx, word, out, err);
    return r < 0 ? -1 : r ? ct_err_set(err, CT_NOTFOUND, "there is no user %.64s", word) : 0;
}

int ks_admin_model(struct ks_admin *a, const char *word, struct ks_model *out, struct ct_err *err)
{
    char owner[KS_NAME_LEN + 1];
    char name[KS_NAME_LEN + 1];
    if (!kx_split_model(word, owner, name)) {
        return ct_err_set(err, CT_USAGE, "a model is OWNER/NAME");
    }
    int r = ks_model_find(&a->ctx, owner, name, out, err);
    return r < 0 ? -1 : r ? ct_err_set(err, CT_NOTFOUND, "there is no model %s", word) : 0;
}

int ks_admin_record(struct ks_admin *a, const char *user, const char *model, const char *lease,
                    const char *detail, struct ct_err *err)
{
    char event[64];
    const struct ks_command *c = a->command;
    (void)snprintf(event, sizeof(event), "admin.%s%s%s", c->noun, c->verb ? "." : "",
                   c->verb ? c->verb : "");
    const struct ks_event e = {event, "ok", user, model, lease, "local", detail};
    return ks_audit(&a->ctx, &e, err);
}

/* ---- printing ---- */

static int print_json(json_t *value, struct ct_err *err)
{
    char *text = json_dumps(value, JSON_INDENT(2));
    if (!text) {
        return ct_err_set(err, CT_NOMEM, "no memory for the answer");
    }
    (void)puts(text);
    ct_wiping_free(text);
    return 0;
}

int ks_admin_print(const struct ks_admin *a, json_t *object, struct ct_err *err)
{
    const char *name = NULL;
    json_t *value = NULL;
    kx_autojson mine = object;
    if (a->json || !mine) {
        return print_json(mine, err);
    }
    json_object_foreach(mine, name, value)
    {
        if (json_is_integer(value)) {
            (void)printf("%s %lld\n", name, (long long)json_integer_value(value));
        } else {
            const char *text = json_string_value(value);
            (void)printf("%s %s\n", name, text ? text : "-");
        }
    }
    return 0;
}

struct column {
    char name[32];
    char kind; /* s, t, n, b */
};

static size_t read_columns(const char *text, struct column *out, size_t max)
{
    size_t n = 0;
    while (*text && n < max) {
        size_t len = strcspn(text, " ");
        size_t name = strcspn(text, " :");
        out[n].kind = name < len ? text[name + 1] : 's';
        (void)snprintf(out[n++].name, sizeof(out[0].name), "%.*s", (int)name, text);
        text += len + (text[len] == ' ');
    }
    return n;
}

static json_t *cell(struct ks_rows *rows, int i, char kind)
{
    char when[32];
    int64_t n = kind == 's' ? 0 : ks_int(rows, i);
    switch (kind) {
    case 'b':
        return json_boolean(n);
    case 'n':
        return json_integer(n);
    case 't':
        ks_rfc3339(n, when);
        return n ? json_string(when) : json_null();
    default:
        return ks_is_null(rows, i) ? json_null() : json_string(ks_text(rows, i));
    }
}

static json_t *collect(struct ks_rows *rows, const struct column *columns, size_t count,
                       struct ct_err *err)
{
    int r = 0;
    kx_autojson list = json_array();
    while ((r = ks_next(rows, err)) == 1) {
        json_t *object = json_object();
        for (size_t i = 0; i < count; i++) {
            (void)json_object_set_new(object, columns[i].name, cell(rows, (int)i, columns[i].kind));
        }
        (void)json_array_append_new(list, object);
    }
    return r < 0 ? NULL : json_incref(list);
}

static void cell_text(const json_t *value, char *out, size_t cap)
{
    if (json_is_integer(value)) {
        (void)snprintf(out, cap, "%lld", (long long)json_integer_value(value));
    } else if (json_is_boolean(value)) {
        (void)snprintf(out, cap, "%s", json_is_true(value) ? "yes" : "no");
    } else {
        const char *text = json_string_value(value);
        (void)snprintf(out, cap, "%s", text && *text ? text : "-");
    }
}

static void print_table(const json_t *list, const struct column *columns, size_t count)
{
    enum { CELL = 256 };
    char text[CELL];
    size_t i = 0;
    const json_t *row = NULL;
    int widths[16] = {0};
    for (size_t c = 0; c < count; c++) {
        widths[c] = (int)strlen(columns[c].name);
        json_array_foreach(list, i, row)
        {
            cell_text(json_object_get(row, columns[c].name), text, sizeof(text));
            int n = (int)strlen(text);
            widths[c] = n > widths[c] ? n : widths[c];
        }
        (void)printf("%-*s%s", widths[c], columns[c].name, c + 1 < count ? "  " : "\n");
    }
    json_array_foreach(list, i, row)
    {
        for (size_t c = 0; c < count; c++) {
            cell_text(json_object_get(row, columns[c].name), text, sizeof(text));
            (void)printf("%-*s%s", widths[c], text, c + 1 < count ? "  " : "\n");
        }
    }
}

int ks_admin_list(struct ks_admin *a, struct ks_rows *rows, const char *columns, struct ct_err *err)
{
    struct column list[16] = {0};
    size_t count = read_columns(columns, list, 16);
    ks_autorows mine = rows;
    kx_autojson all = mine ? collect(mine, list, count, err) : NULL;
    if (!all) {
        return -1;
    }
    if (a->json) {
        return print_json(all, err);
    }
    print_table(all, list, count);
    return 0;
}
