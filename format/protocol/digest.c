#include "format/protocol/digest.h"

#include <string.h>

#include "format/base/sha256.h"
#include "format/base/sort.h"

int kx_hex_sha256(const void *p, size_t n, char out[static KX_HEX + 1], struct ct_err *err)
{
    uint8_t digest[CT_SHA256_LEN];
    if (ct_sha256(p, n, digest, err)) {
        return -1;
    }
    ct_hex(out, digest, sizeof(digest));
    return 0;
}

static int digest_of(const struct ct_buf *text, char out[static KX_HEX + 1], struct ct_err *err)
{
    return ct_buf_ok(text, err) ? -1 : kx_hex_sha256(text->data, text->len, out, err);
}

/* ---- names ---- */

bool kx_is_hex(const char *text, size_t digits)
{
    return text && strlen(text) == digits && strspn(text, "0123456789abcdef") == digits;
}

static bool is_alnum(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

bool kx_is_name(const char *text)
{
    size_t n = text ? strlen(text) : 0;
    if (n < 1 || n > 64 || !is_alnum(*text)) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (!is_alnum(text[i]) && !strchr("._-", text[i])) {
            return false;
        }
    }
    return true;
}

bool kx_is_text(const char *text, size_t max)
{
    size_t n = text ? strlen(text) : 0;
    if (n < 1 || n > max || !ct_utf8_ok((const uint8_t *)text, n)) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f) {
            return false;
        }
    }
    return true;
}

bool kx_is_path(const char *text)
{
    if (!kx_is_text(text, 255) || strchr(text, '\\')) {
        return false;
    }
    for (const char *p = text;; p++) {
        size_t n = strcspn(p, "/");
        if (n == 0 || (n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.')) {
            return false;
        }
        p += n;
        if (!*p) {
            return true;
        }
    }
}

bool kx_is_profile(const char *text)
{
    size_t n = text ? strlen(text) : 0;
    return n >= 1 && n <= 32 && strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-") == n;
}

bool kx_split_model(const char *text, char *owner, char *name)
{
    const char *slash = text ? strchr(text, '/') : NULL;
    size_t n = slash ? (size_t)(slash - text) : 0;
    if (n < 1 || n > 64 || strlen(slash + 1) > 64) {
        return false;
    }
    memcpy(owner, text, n);
    owner[n] = '\0';
    memcpy(name, slash + 1, strlen(slash + 1) + 1);
    return kx_is_name(owner) && kx_is_name(name);
}

/* ---- measurements ---- */

struct item {
    const char *kind, *name, *sha256;
};

static int by_kind_and_name(const void *a, const void *b)
{
    const struct item *x = a;
    const struct item *y = b;
    int r = strcmp(x->kind, y->kind);
    return r ? r : strcmp(x->name, y->name);
}

static bool is_kind(const char *kind)
{
    static const char *const kinds[] = {"executable", "library", "tree", "policy"};
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        if (strcmp(kind, kinds[i]) == 0) {
            return true;
        }
    }
    return false;
}

static int take_item(const json_t *value, struct item *out, struct ct_err *err)
{
    if (json_unpack((json_t *)value, "{s:s,s:s,s:s!}", "kind", &out->kind, "name", &out->name,
                    "sha256", &out->sha256) ||
        !is_kind(out->kind) || !kx_is_text(out->name, 255) || !kx_is_hex(out->sha256, KX_HEX)) {
        return ct_err_set(err, CT_MALFORMED, "measurements: an item is not kind, name, sha256");
    }
    return 0;
}

static int put_items(struct item *items, size_t n, struct ct_buf *text, struct ct_err *err)
{
    if (ct_sort(items, n, sizeof(*items), by_kind_and_name, err)) {
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        if (i && by_kind_and_name(&items[i - 1], &items[i]) == 0) {
            return ct_err_set(err, CT_MALFORMED, "measurements: an item twice");
        }
        ct_buf_printf(text, "%s %s %s\n", items[i].kind, items[i].sha256, items[i].name);
    }
    return 0;
}

static int take_items(const json_t *items, struct item *list, struct ct_err *err)
{
    size_t i = 0;
    const json_t *value = NULL;
    json_array_foreach(items, i, value)
    {
        if (take_item(value, &list[i], err)) {
            return -1;
        }
    }
    return 0;
}

int kx_measurement_digest(const json_t *measurements, char out[static KX_HEX + 1],
                          struct ct_err *err)
{
    const char *profile = NULL;
    json_t *items = NULL;
    if (json_unpack((json_t *)measurements, "{s:s,s:o!}", "profile", &profile, "items", &items) ||
        !kx_is_profile(profile) || !json_is_array(items) || json_array_size(items) == 0 ||
        json_array_size(items) > KX_ITEMS_MAX) {
        return ct_err_set(err, CT_MALFORMED, "measurements: not a profile and 1 to %d items",
                          KX_ITEMS_MAX);
    }
    const size_t n = json_array_size(items);
    ct_autobuf text = {0};
    struct item *list = calloc(n, sizeof(*list));
    if (!list) {
        return ct_err_set(err, CT_NOMEM, "no memory for measurements");
    }
    ct_buf_printf(&text, "kvfs-measurement-v1\nprofile %s\n", profile);
    int r = take_items(items, list, err) || put_items(list, n, &text, err) ? -1 : 0;
    free(list);
    return r ? -1 : digest_of(&text, out, err);
}

int kx_evidence_digest(const char *challenge, const char *sign, const char *decrypt,
                       const char *audit, const char *measurement, char out[static KX_HEX + 1],
                       struct ct_err *err)
{
    ct_autobuf text = {0};
    ct_buf_printf(&text, "kvfs-evidence-v1\n%s\n%s\n%s\n%s\n%s\n", challenge, sign, decrypt, audit,
                  measurement);
    return digest_of(&text, out, err);
}

/* ---- headers ---- */

struct header {
    const char *path, *sha256;
};

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct header *)a)->path, ((const struct header *)b)->path);
}

static int put_headers(struct header *list, size_t n, struct ct_buf *text, struct ct_err *err)
{
    if (ct_sort(list, n, sizeof(*list), by_path, err)) {
        return -1;
    }
    ct_buf_puts(text, "kvfs-headers-v1\n");
    for (size_t i = 0; i < n; i++) {
        if (i && by_path(&list[i - 1], &list[i]) == 0) {
            return ct_err_set(err, CT_MALFORMED, "headers: a path twice");
        }
        ct_buf_printf(text, "%s %s\n", list[i].sha256, list[i].path);
    }
    return 0;
}

static int take_headers(const json_t *headers, struct header *list, struct ct_err *err)
{
    size_t i = 0;
    const json_t *value = NULL;
    json_array_foreach(headers, i, value)
    {
        list[i].path = json_string_value(json_object_get(value, "path"));
        list[i].sha256 = json_string_value(json_object_get(value, "sha256"));
        if (!kx_is_path(list[i].path) || !kx_is_hex(list[i].sha256, KX_HEX)) {
            return ct_err_set(err, CT_MALFORMED, "headers: one is not a path and a digest");
        }
    }
    return 0;
}

int kx_headers_digest(const json_t *headers, char out[static KX_HEX + 1], struct ct_err *err)
{
    const size_t n = json_array_size(headers);
    ct_autobuf text = {0};
    if (!json_is_array(headers) || n > KX_HEADERS_MAX) {
        return ct_err_set(err, CT_MALFORMED, "headers: at most %d", KX_HEADERS_MAX);
    }
    struct header *list = calloc(n + 1, sizeof(*list));
    if (!list) {
        return ct_err_set(err, CT_NOMEM, "no memory for headers");
    }
    int r = take_headers(headers, list, err) || put_headers(list, n, &text, err) ? -1 : 0;
    free(list);
    return r ? -1 : digest_of(&text, out, err);
}

/* ---- audit chain ---- */

int kx_audit_start(const char *lease, char out[static KX_HEX + 1], struct ct_err *err)
{
    ct_autobuf text = {0};
    ct_buf_printf(&text, "kvfs-audit-v1\n%s\n", lease);
    return digest_of(&text, out, err);
}

int kx_audit_next(char head[static KX_HEX + 1], int64_t number, const char *record,
                  struct ct_err *err)
{
    ct_autobuf text = {0};
    ct_buf_printf(&text, "%s\n%lld\n", head, (long long)number);
    ct_buf_puts(&text, record);
    return digest_of(&text, head, err);
}
