#include "kvfs/inspect_print.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "kvfs/domains.h"
#include "kvfs/term.h"

enum { NOTE_MAX = 512 };

/* The manifest that would govern a path, by what lies where. */
static const struct kvfs_inspected *manifest_of(const struct kvfs_inspection *all, const char *path,
                                                const char **inside)
{
    const struct kvfs_inspected *best = NULL;
    size_t best_len = 0;
    for (size_t i = 0; i < all->count; i++) {
        const struct kvfs_inspected *m = &all->items[i];
        size_t n = (size_t)(kvfs_base_name(m->path) - m->path);
        if (m->kind == KVFS_IS_MANIFEST && strncmp(m->path, path, n) == 0 &&
            (!best || n > best_len)) {
            best = m;
            best_len = n;
        }
    }
    *inside = path + best_len;
    return best;
}

static bool is_listed(const struct kvfs_inspected *manifest, const char *path)
{
    return manifest && json_object_get(manifest->listed, path);
}

static void add_note(char note[static NOTE_MAX], const char *text)
{
    size_t n = strlen(note);
    (void)snprintf(note + n, NOTE_MAX - n, "%s%s", n ? "; " : "", text);
}

static void note_tensors(const struct kvfs_inspected *i, bool listed, char note[static NOTE_MAX])
{
    char text[NOTE_MAX];
    char size[KVFS_SIZE_TEXT];
    if (i->plain_bytes) {
        (void)snprintf(text, sizeof(text), "%zu of %zu tensors are not encrypted (%s; %s%s)%s",
                       i->tensors - i->encrypted, i->tensors, kvfs_size_text(size, i->plain_bytes),
                       i->plain_first, i->tensors - i->encrypted > 1 ? ", …" : "",
                       listed ? ": only the manifest vouches for them" : "");
        add_note(note, text);
    }
}

/* What of it nothing authenticates, or only a manifest; "" if all is well. */
static void find_notes(const struct kvfs_inspection *all, const struct kvfs_inspected *i,
                       char note[static NOTE_MAX])
{
    const char *inside = NULL;
    const struct kvfs_inspected *m = manifest_of(all, i->path, &inside);
    bool listed = is_listed(m, inside);
    *note = '\0';
    if (i->kind == KVFS_IS_ENCRYPTED) {
        note_tensors(i, listed, note);
    }
    if (i->kind == KVFS_IS_MANIFEST || i->kind == KVFS_IS_BROKEN) {
        return;
    }
    if (m && !listed) {
        add_note(note, "the manifest does not list it");
    } else if (!m && i->kind != KVFS_IS_ENCRYPTED && i->kind != KVFS_IS_LINK) {
        add_note(note, i->kind == KVFS_IS_PLAIN ? "plain safetensors; nothing vouches for it"
                                                : "nothing vouches for it");
    }
}

/* ---- the table ---- */

static void put_encrypted(struct kvfs_grid *g, const struct kvfs_inspected *i)
{
    char size[KVFS_SIZE_TEXT];
    kvfs_grid_cell(g, "version %d", i->version);
    kvfs_grid_cell(g, "%s", ct_alg_name(i->alg));
    if (i->version == 1) {
        kvfs_grid_cell(g, "-");
    } else if (i->chunk_size % 1024) {
        kvfs_grid_cell(g, "%llu B", (unsigned long long)i->chunk_size);
    } else {
        kvfs_grid_cell(g, "%s", kvfs_size_text(size, i->chunk_size));
    }
    kvfs_grid_cell(g, "%zu/%zu", i->encrypted, i->tensors);
    kvfs_grid_cell(g, "%s", *i->enc_kid ? i->enc_kid : "-");
    kvfs_grid_cell(g, "%s", *i->sign_kid ? i->sign_kid : "-");
}

static void put_row(struct kvfs_grid *g, const struct kvfs_inspected *i)
{
    char size[KVFS_SIZE_TEXT];
    kvfs_grid_cell(g, "%s", i->path);
    kvfs_grid_cell(g, "%s", i->kind == KVFS_IS_LINK ? "" : kvfs_size_text(size, i->size));
    if (i->kind == KVFS_IS_ENCRYPTED) {
        put_encrypted(g, i);
        return;
    }
    kvfs_grid_cell(g, "%s", kvfs_inspected_name(i->kind));
    kvfs_grid_cell(g, "%s", "");
    kvfs_grid_cell(g, "%s", "");
    if (i->kind == KVFS_IS_PLAIN) {
        kvfs_grid_cell(g, "0/%zu", i->tensors);
    } else {
        kvfs_grid_cell(g, "%s", "");
    }
    kvfs_grid_cell(g, "%s", "");
    kvfs_grid_cell(g, "%s", i->kind == KVFS_IS_MANIFEST ? i->sign_kid : "");
}

static void print_table(const struct kvfs_inspection *all)
{
    static const char *const titles[] = {"FILE",  "SIZE",      "KIND",       "ALGORITHM",
                                         "CHUNK", "ENCRYPTED", "MASTER KEY", "SIGNED BY"};
    struct kvfs_grid g = KVFS_GRID(8, 1U << 1 | 1U << 4 | 1U << 5);
    for (size_t i = 0; i < 8; i++) {
        kvfs_grid_cell(&g, "%s", titles[i]);
    }
    for (size_t i = 0; i < all->count; i++) {
        put_row(&g, &all->items[i]);
    }
    kvfs_grid_print(&g, stdout, "");
    kvfs_grid_free(&g);
}

/* A list of files and what is to be said of them; neighbours of which the same is to be said share
 * a line. */
struct list {
    struct kvfs_grid grid;
    char path[256], note[NOTE_MAX];
    size_t same;
};

static void list_flush(struct list *l)
{
    if (l->same > 1) {
        kvfs_grid_cell(&l->grid, "%s and %zu more", l->path, l->same - 1);
    } else if (l->same) {
        kvfs_grid_cell(&l->grid, "%s", l->path);
    }
    if (l->same) {
        kvfs_grid_cell(&l->grid, "%s", l->note);
    }
    l->same = 0;
}

static void list_add(struct list *l, const char *path, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void list_add(struct list *l, const char *path, const char *fmt, ...)
{
    char note[NOTE_MAX];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(note, sizeof(note), fmt, ap);
    va_end(ap);
    if (l->same == 0 || strcmp(note, l->note) != 0) {
        list_flush(l);
        (void)snprintf(l->path, sizeof(l->path), "%s", path);
        memcpy(l->note, note, sizeof(note));
    }
    l->same++;
}

static void list_print(struct list *l, const char *title)
{
    list_flush(l);
    if (l->grid.cells) {
        (void)printf("\n%s\n", title);
        kvfs_grid_print(&l->grid, stdout, "  ");
    }
    kvfs_grid_free(&l->grid);
}

static void print_unauthenticated(const struct kvfs_inspection *all)
{
    struct list l = {.grid = KVFS_GRID(2, 0)};
    for (size_t i = 0; i < all->count; i++) {
        char note[NOTE_MAX];
        find_notes(all, &all->items[i], note);
        if (*note) {
            list_add(&l, all->items[i].path, "%s", note);
        }
    }
    list_print(&l, "Not authenticated:");
}

static bool has_policy(const struct kvfs_inspected *i)
{
    return i->kind == KVFS_IS_ENCRYPTED &&
           !(kvfs_policy_is_default(i->policy.local, i->policy.local_len) &&
             kvfs_policy_is_default(i->policy.remote, i->policy.remote_len));
}

static void print_facts(const struct kvfs_inspection *all)
{
    struct list l = {.grid = KVFS_GRID(2, 0)};
    for (size_t k = 0; k < all->count; k++) {
        const struct kvfs_inspected *i = &all->items[k];
        if (i->kind == KVFS_IS_LINK || i->kind == KVFS_IS_WEIGHTS) {
            list_add(&l, i->path, "%s%s", i->kind == KVFS_IS_LINK ? "leads to " : "", i->why);
        }
        if (i->kind == KVFS_IS_MANIFEST) {
            list_add(&l, i->path, "generation %llu, lists %zu", (unsigned long long)i->generation,
                     json_object_size(i->listed));
        }
        if (*i->unknown) {
            list_add(&l, i->path, "dtypes that kvfs does not know: %s", i->unknown);
        }
        if (*i->jku) {
            list_add(&l, i->path, "master key at %s", i->jku);
        }
        if (has_policy(i)) {
            list_add(&l, i->path, "has a policy (-v prints it)");
        }
    }
    list_print(&l, "Also:");
}

static void print_policy(const char *path, const char *which, const char *text, size_t n)
{
    kvfs_printf_safe(stdout, "%s: %s policy", path, which);
    (void)fputs(kvfs_policy_is_default(text, n) ? ": allows\n" : "\n", stdout);
    while (n && !kvfs_policy_is_default(text, n)) {
        const char *end = memchr(text, '\n', n);
        size_t len = end ? (size_t)(end - text) : n;
        (void)fputs("    ", stdout);
        kvfs_print_safe(stdout, text, len);
        (void)fputc('\n', stdout);
        text += len + (end != NULL);
        n -= len + (end != NULL);
    }
}

static size_t print_malformed(const struct kvfs_inspection *all)
{
    struct list l = {.grid = KVFS_GRID(2, 0)};
    size_t n = 0;
    for (size_t i = 0; i < all->count; i++) {
        if (all->items[i].kind == KVFS_IS_BROKEN) {
            list_add(&l, all->items[i].path, "%s", all->items[i].why);
            n++;
        }
    }
    list_print(&l, "Malformed or unknown:");
    return n;
}

int kvfs_inspection_print(const struct kvfs_inspection *all, bool policies)
{
    bool signed_ones = false;
    if (all->count == 0) {
        return 0;
    }
    print_table(all);
    print_facts(all);
    print_unauthenticated(all);
    for (size_t k = 0; k < all->count; k++) {
        const struct kvfs_inspected *i = &all->items[k];
        signed_ones |= i->kind == KVFS_IS_ENCRYPTED || i->kind == KVFS_IS_MANIFEST;
        if (policies && i->kind == KVFS_IS_ENCRYPTED) {
            (void)fputc('\n', stdout);
            print_policy(i->path, "local", i->policy.local, i->policy.local_len);
            print_policy(i->path, "remote", i->policy.remote, i->policy.remote_len);
        }
    }
    size_t bad = print_malformed(all);
    if (signed_ones) {
        (void)fputs("\nNo signature and no tag was checked: kvfs verify does, with keys.\n",
                    stdout);
    }
    return bad ? -1 : 0;
}

/* ---- JSON ---- */

/* Text from files that need not be UTF-8 is spelled as for terminals. */
static json_t *safe_text(const char *text, size_t n)
{
    ct_autobuf b = {0};
    kvfs_put_safe(&b, text, n);
    return b.failed ? NULL : json_stringn((const char *)b.data, b.len);
}

static void put_text(json_t *o, const char *name, const char *text)
{
    if (*text) {
        (void)json_object_set_new(o, name, safe_text(text, strlen(text)));
    }
}

static void put_int(json_t *o, const char *name, uint64_t v)
{
    (void)json_object_set_new(o, name, json_integer((json_int_t)v));
}

static void put_policy(json_t *o, const char *name, const char *text, size_t n)
{
    if (text) {
        json_t *whole = json_stringn(text, n);
        (void)json_object_set_new(o, name, whole ? whole : safe_text(text, n));
    }
}

static void put_model(json_t *o, const struct kvfs_inspected *i)
{
    if (i->version) {
        put_int(o, "version", (uint64_t)i->version);
        put_text(o, "algorithm", ct_alg_name(i->alg));
    }
    if (i->version == 2) {
        put_int(o, "chunk_size", i->chunk_size);
    }
    put_text(o, "master_kid", i->enc_kid);
    put_text(o, "jku", i->jku);
    if (i->kind == KVFS_IS_ENCRYPTED || i->kind == KVFS_IS_PLAIN) {
        put_int(o, "tensors", i->tensors);
        put_int(o, "encrypted", i->encrypted);
        put_int(o, "unencrypted_bytes", i->plain_bytes);
        put_text(o, "unknown_dtypes", i->unknown);
    }
    if (i->kind == KVFS_IS_ENCRYPTED) {
        put_policy(o, "policy_local", i->policy.local, i->policy.local_len);
        put_policy(o, "policy_remote", i->policy.remote, i->policy.remote_len);
    }
}

static json_t *one_json(const struct kvfs_inspection *all, const struct kvfs_inspected *i)
{
    char note[NOTE_MAX];
    const char *inside = NULL;
    json_t *o = json_object();
    put_text(o, "path", i->path);
    put_text(o, "kind", kvfs_inspected_name(i->kind));
    put_int(o, "size", i->size);
    put_model(o, i);
    put_text(o, "signed_by", i->sign_kid);
    if (i->kind == KVFS_IS_MANIFEST) {
        put_int(o, "generation", i->generation);
        put_int(o, "entries", json_object_size(i->listed));
    } else {
        const struct kvfs_inspected *m = manifest_of(all, i->path, &inside);
        (void)json_object_set_new(o, "listed", json_boolean(is_listed(m, inside)));
    }
    put_text(o, i->kind == KVFS_IS_LINK ? "target" : "why", i->why);
    find_notes(all, i, note);
    put_text(o, "not_authenticated", note);
    return o;
}

int kvfs_inspection_json(const struct kvfs_inspection *all)
{
    size_t bad = 0;
    json_t *files = json_array();
    for (size_t i = 0; i < all->count; i++) {
        bad += all->items[i].kind == KVFS_IS_BROKEN;
        (void)json_array_append_new(files, one_json(all, &all->items[i]));
    }
    json_t *top = json_pack("{s:b, s:I, s:o}", "signatures_checked", 0, "malformed",
                            (json_int_t)bad, "files", files);
    int failed = !top || json_dumpf(top, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII);
    (void)fputc('\n', stdout);
    json_decref(top);
    return bad || failed ? -1 : 0;
}
