#include <string.h>

#include "format/manifest_parts.h"

static int check_text(const char *text, const char *what, enum ct_code code, struct ct_err *err)
{
    size_t n = text ? strlen(text) : 0;
    if (n == 0 || n > CT_MANIFEST_PATH_MAX) {
        return ct_err_set(err, code, "a %s of %zu bytes", what, n);
    }
    if (!ct_utf8_ok((const uint8_t *)text, n)) {
        return ct_err_set(err, code, "%.200s: a manifest can only list a %s in UTF-8", text, what);
    }
    if (text[0] == '/') {
        return ct_err_set(err, code, "%.200s: the %s is not relative", text, what);
    }
    return 0;
}

static int check_path(const char *path, enum ct_code code, struct ct_err *err)
{
    if (check_text(path, "path", code, err)) {
        return -1;
    }
    const char *name = path;
    for (const char *p = path;; p = name) {
        name = strchrnul(p, '/');
        size_t n = (size_t)(name - p);
        if (n == 0 || (n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.')) {
            return ct_err_set(err, code, "%.200s: the path has an empty, `.` or `..` component",
                              path);
        }
        if (n > CT_MANIFEST_NAME_MAX) {
            return ct_err_set(err, code, "%.200s: the path has a component of %zu bytes", path, n);
        }
        if (*name == '\0') {
            return strcmp(p, CT_MANIFEST_NAME) != 0
                       ? 0
                       : ct_err_set(err, code, "%.200s: a manifest does not list manifests", path);
        }
        name++;
    }
}

static int check_file(const struct ct_entry *e, enum ct_code code, struct ct_err *err)
{
    const struct ct_digests *d = &e->pieces;
    uint64_t want = e->size > CT_DIGEST_PIECE ? ct_digest_count(e->size) : 0;
    bool whole = d->begin == 0 && d->end == e->size && d->piece == CT_DIGEST_PIECE;
    if (e->size > CT_MANIFEST_INT_MAX || d->count != want || (want && (!whole || !d->sha256))) {
        return ct_err_set(err, code, "%.200s: digests and size do not agree", e->path);
    }
    return 0;
}

static int check_shard(const struct ct_entry *e, enum ct_code code, struct ct_err *err)
{
    uint64_t at = 0;
    if (e->size > CT_MANIFEST_INT_MAX || (e->plain_count && !e->plain)) {
        return ct_err_set(err, code, "%.200s: digests and size do not agree", e->path);
    }
    for (size_t i = 0; i < e->plain_count; i++) {
        const struct ct_digests *d = &e->plain[i];
        if (d->begin < at || d->end <= d->begin || d->end > e->size ||
            d->piece != CT_DIGEST_PIECE || !d->sha256 ||
            d->count != ct_digest_count(d->end - d->begin)) {
            return ct_err_set(err, code, "%.200s: unencrypted range %zu is wrong", e->path, i);
        }
        at = d->end;
    }
    return 0;
}

int ct_entry_check(const struct ct_entry *e, enum ct_code code, struct ct_err *err)
{
    if (check_path(e->path, code, err)) {
        return -1;
    }
    switch (e->kind) {
    case CT_ENTRY_FILE:
        return check_file(e, code, err);
    case CT_ENTRY_SHARD:
        return check_shard(e, code, err);
    case CT_ENTRY_LINK:
        return check_text(e->target, "link target", code, err) ? ct_err_wrap(err, "%s", e->path)
                                                               : 0;
    }
    return ct_err_set(err, code, "%.200s: no such kind of entry", e->path);
}

int ct_entry_compare(const void *a, const void *b)
{
    return strcmp(((const struct ct_entry *)a)->path, ((const struct ct_entry *)b)->path);
}

/* Whether `entries` has one whose path is the first n bytes of `path`. */
static bool has_path(const struct ct_entry *entries, size_t count, const char *path, size_t n)
{
    size_t lo = 0;
    size_t hi = count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const char *at = entries[mid].path;
        int c = ct_cmp_bytes(at, strlen(at), path, n);
        if (c == 0) {
            return true;
        }
        lo = c < 0 ? mid + 1 : lo;
        hi = c < 0 ? hi : mid;
    }
    return false;
}

int ct_entries_check(const struct ct_entry *entries, size_t count, enum ct_code code,
                     struct ct_err *err)
{
    for (size_t i = 0; i < count; i++) {
        const char *path = entries[i].path;
        int c = i ? strcmp(entries[i - 1].path, path) : -1;
        if (c >= 0) {
            return ct_err_set(err, code, "%.200s: the path is listed %s", path,
                              c ? "out of order" : "twice");
        }
        for (const char *p = path; (p = strchr(p, '/')); p++) {
            if (has_path(entries, i, path, (size_t)(p - path))) {
                return ct_err_set(err, code, "%.200s: lies beneath an entry that is no directory",
                                  path);
            }
        }
    }
    return 0;
}
