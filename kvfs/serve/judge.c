#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kvfs/serve/paths.h"
#include "kvfs/serve/serve.h"

enum { LINKS_MAX = 8, ABSENT_SECONDS = 1 };

/* What is known of one directory's kvfs.manifest. One that was found stays until a reload, so that
 * taking it away while the mount is up changes nothing; that there is none is asked again. */
struct governed {
    char *dir;
    struct ct_manifest *manifest; /* NULL: there is none, or it is refused */
    struct ct_err why;            /* refused */
    bool present;
    time_t asked;
    struct governed *next;
};

struct kvfs_judge {
    pthread_mutex_t lock;
    struct governed *dirs;
};

struct kvfs_judge *kvfs_judge_new(struct ct_err *err)
{
    struct kvfs_judge *j = calloc(1, sizeof(*j));
    if (!j) {
        ct_err_set(err, CT_NOMEM, "no memory for manifests");
        return NULL;
    }
    pthread_mutex_init(&j->lock, NULL);
    return j;
}

void kvfs_found_release(struct kvfs_found *f)
{
    ct_manifest_unref(f->verdict.manifest);
    free(f->target);
    *f = (struct kvfs_found){0};
}

/* ---- manifests ---- */

static void read_manifest(struct kvfs_serve *s, struct governed *g)
{
    char path[PATH_MAX];
    struct kvfs_opened opened;
    struct ct_err err = CT_ERR_INIT;
    g->asked = time(NULL);
    g->present = false;
    if (kvfs_path_join(path, g->dir, CT_MANIFEST_NAME) ||
        kvfs_source_open(s, path, &opened, &err)) {
        g->present = err.code != CT_NOTFOUND;
        g->why = err;
        return;
    }
    ct_autobuf text = {0};
    g->present = true;
    if (opened.fd < 0) {
        ct_err_set(&g->why, CT_REJECTED, CT_MANIFEST_NAME " is not a regular file");
    } else if (ct_read_fd(opened.fd, CT_MANIFEST_MAX, &text, &g->why)) {
        ct_err_wrap(&g->why, CT_MANIFEST_NAME);
    } else {
        (void)ct_manifest_parse(text.data, text.len, s->keys, &g->manifest, &g->why);
    }
    if (!g->manifest) {
        if (g->dir[0]) {
            ct_err_wrap(&g->why, "%s", g->dir);
        }
        ct_log(CT_LOG_WARN, "%s", g->why.msg);
    }
    kvfs_opened_release(&opened);
}

/* With the judge's lock held. NULL without memory. */
static struct governed *governed(struct kvfs_serve *s, const char *dir)
{
    struct governed *g = s->judge->dirs;
    while (g && strcmp(g->dir, dir) != 0) {
        g = g->next;
    }
    if (!g) {
        g = calloc(1, sizeof(*g));
        if (!g || !(g->dir = strdup(dir))) {
            free(g);
            return NULL;
        }
        g->next = s->judge->dirs;
        s->judge->dirs = g;
        read_manifest(s, g);
    } else if (!g->manifest && time(NULL) - g->asked >= ABSENT_SECONDS) {
        read_manifest(s, g);
    }
    return g;
}

struct rule {                     /* what governs a path */
    struct ct_manifest *manifest; /* a reference, or NULL */
    char rest[PATH_MAX];          /* the path, relative to its directory */
    char dir[PATH_MAX];
    bool refused; /* there is a manifest, and it is not valid: why */
    struct ct_err why;
};

/* Whether what `g` says of `dir`, which lies in its directory, takes precedence over a manifest
 * that lies in `dir`: that one may be genuine and of another release. */
static bool claims(const struct governed *g, const char *dir)
{
    return g->manifest && ct_manifest_has_dir(g->manifest, kvfs_path_below(dir, g->dir));
}

static void take_rule(const struct governed *g, struct rule *out)
{
    ct_manifest_unref(out->manifest);
    out->manifest = g->manifest ? ct_manifest_ref(g->manifest) : NULL;
    out->refused = !g->manifest;
    out->why = g->why;
    (void)snprintf(out->dir, sizeof(out->dir), "%s", g->dir);
}

/* The nearest manifest at or above the directory of `path` (of a directory its own one), unless one
 * above it lists something there. */
static int find_rule(struct kvfs_serve *s, const char *path, bool is_dir, struct rule *out,
                     struct ct_err *err)
{
    char dir[PATH_MAX];
    bool found = false;
    int r = 0;
    memset(out, 0, sizeof(*out));
    (void)snprintf(dir, sizeof(dir), "%s", path);
    if (!is_dir) {
        kvfs_path_up(dir);
    }
    pthread_mutex_lock(&s->judge->lock);
    for (;;) {
        const struct governed *g = governed(s, dir);
        if (!g) {
            r = ct_err_set(err, CT_NOMEM, "no memory for manifests");
            break;
        }
        if (g->present && (!found || claims(g, out->dir))) {
            take_rule(g, out);
            found = true;
        }
        if (!dir[0]) {
            break;
        }
        kvfs_path_up(dir);
    }
    pthread_mutex_unlock(&s->judge->lock);
    if (r) {
        ct_manifest_unref(out->manifest);
        return -1;
    }
    (void)snprintf(out->rest, sizeof(out->rest), "%s", kvfs_path_below(path, out->dir));
    return 0;
}

void kvfs_judge_reload(struct kvfs_serve *s)
{
    pthread_mutex_lock(&s->judge->lock);
    struct governed *g = s->judge->dirs;
    s->judge->dirs = NULL;
    pthread_mutex_unlock(&s->judge->lock);
    while (g) {
        struct governed *next = g->next;
        ct_manifest_unref(g->manifest);
        free(g->dir);
        free(g);
        g = next;
    }
}

/* ---- verdicts ---- */

static void refuse(struct kvfs_found *f, enum ct_code code, const char *why)
{
    f->verdict.kind = KVFS_VERDICT_REFUSED;
    ct_err_set(&f->verdict.why, code, "%s", why);
}

static bool looks_executable(const uint8_t *start, size_t n)
{
    /* Pickle (protocol 2 and up), zip (torch.save, npz), GGUF, HDF5, ELF. */
    static const struct {
        const char *magic;
        size_t n;
    } magics[] = {{"\x80\x02", 2},
                  {"\x80\x03", 2},
                  {"\x80\x04", 2},
                  {"\x80\x05", 2},
                  {"PK\x03\x04", 4},
                  {"GGUF", 4},
                  {"\x89HDF", 4},
                  {"\x7f"
                   "ELF",
                   4}};
    for (size_t i = 0; i < sizeof(magics) / sizeof(magics[0]); i++) {
        if (n >= magics[i].n && memcmp(start, magics[i].magic, magics[i].n) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_inert(const char *path, struct ct_source *source)
{
    static const char *const kinds[] = {".json",  ".jsonl",    ".txt",  ".md", ".jinja",
                                        ".model", ".tiktoken", ".yaml", ".yml"};
    uint8_t start[8];
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (kvfs_path_ends(path, kinds[i])) {
            ssize_t n = source->ops->pread(source, start, sizeof(start), 0, NULL);
            return n >= 0 && !looks_executable(start, (size_t)n);
        }
    }
    return false;
}

/* Without a manifest: by content, and by what plain= lets through. */
static void judge_content(struct kvfs_serve *s, const char *path, struct ct_source *source,
                          const struct ct_err *measured, struct kvfs_found *f)
{
    bool named = kvfs_path_ends(path, ".safetensors") || kvfs_path_ends(path, ".cryptotensors");
    if (measured->code != CT_OK && (named || f->measure.kind == CT_KIND_ENCRYPTED)) {
        f->verdict.kind = KVFS_VERDICT_REFUSED;
        f->verdict.why = *measured;
    } else if (f->measure.kind == CT_KIND_ENCRYPTED) {
        f->verdict.kind = KVFS_VERDICT_MODEL;
    } else if (named && f->measure.kind == CT_KIND_OTHER) {
        refuse(f, CT_MALFORMED, "not a safetensors file");
    } else if (f->measure.reserved) {
        refuse(f, CT_REJECTED, "it has CryptoTensors fields but is not encrypted");
    } else if (s->config.plain == KVFS_PLAIN_ALL) {
        f->verdict.kind = KVFS_VERDICT_PASSED;
    } else if (s->config.plain == KVFS_PLAIN_SAFE && f->measure.kind == CT_KIND_OTHER &&
               is_inert(path, source)) {
        f->verdict.kind = KVFS_VERDICT_PASSED;
    } else {
        refuse(f, CT_REJECTED,
               "nothing vouches for it (not encrypted, no manifest; see the option plain)");
    }
}

static void judge_entry(const struct ct_entry *e, struct kvfs_found *f)
{
    f->verdict.entry = e;
    if (e->kind == CT_ENTRY_FILE) {
        f->verdict.kind = KVFS_VERDICT_VOUCHED;
    } else if (f->measure.kind != CT_KIND_ENCRYPTED) {
        refuse(f, CT_REJECTED, "the manifest lists an encrypted model, and this is none");
    } else {
        f->verdict.kind = KVFS_VERDICT_MODEL;
    }
}

/* The entry that judges what a path leads to: through listed links, to a file or shard. A directory
 * at the end of links: NULL with *dir. */
static const struct ct_entry *entry_of(const struct rule *r, const struct kvfs_opened *opened,
                                       bool *dir, struct ct_err *why)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s", r->rest);
    for (int links = 0; links < LINKS_MAX; links++) {
        const struct ct_entry *e = ct_manifest_find(r->manifest, path);
        if (!e) {
            /* Only listed links lead to a directory: what stands in the place of one is none. */
            bool listed = ct_manifest_has_dir(r->manifest, path);
            *dir = listed && links > 0;
            if (!*dir) {
                ct_err_set(why, listed ? CT_REJECTED : CT_NOTFOUND,
                           listed ? "the manifest lists a directory here"
                                  : "the manifest does not list it");
            }
            return NULL;
        }
        if (e->kind != CT_ENTRY_LINK) {
            return e;
        }
        if (links == 0 && (!opened->target || strcmp(opened->target, e->target) != 0)) {
            ct_err_set(why, CT_REJECTED, "the manifest lists a link to %.200s here", e->target);
            return NULL;
        }
        if (kvfs_path_follow(path, e->target)) {
            ct_err_set(why, CT_REJECTED, "the link leads out of what the manifest governs");
            return NULL;
        }
    }
    ct_err_set(why, CT_REJECTED, "too many links");
    return NULL;
}

/* What the manifest says of it: *entry. 0 too when it refuses the file, which is then judged. */
static int consult_manifest(const struct rule *r, const struct kvfs_opened *opened,
                            struct kvfs_found *f, const struct ct_entry **entry, struct ct_err *err)
{
    struct ct_err why = CT_ERR_INIT;
    bool dir = false;
    f->verdict.manifest = ct_manifest_ref(r->manifest);
    *entry = entry_of(r, opened, &dir, &why);
    if (!*entry && why.code == CT_NOTFOUND) {
        return ct_err_set(err, CT_NOTFOUND, "%s", why.msg);
    }
    if (!*entry) {
        refuse(f, CT_REJECTED, dir ? "the manifest lists a directory here" : why.msg);
    } else {
        judge_entry(*entry, f);
    }
    return 0;
}

static int judge_file(struct kvfs_serve *s, const char *path, const struct rule *r,
                      const struct kvfs_opened *opened, struct kvfs_found *f, struct ct_err *err)
{
    struct ct_err measured = CT_ERR_INIT;
    const struct ct_entry *e = NULL;
    int result = 0;
    f->kind = KVFS_NODE_FILE;
    ct_version_of(&opened->st, &f->version);
    f->measure.view_size = f->version.size;
    int copy = dup(opened->fd);
    struct ct_source *source = copy < 0 ? NULL : ct_source_fd(copy, err);
    if (!source) {
        return ct_err_set(err, CT_NOMEM, "no descriptor for %s", path);
    }
    (void)ct_header_measure(source, &f->version, &f->measure, &measured);
    if (r->refused) {
        f->verdict.kind = KVFS_VERDICT_REFUSED;
        f->verdict.why = r->why;
    } else if (r->manifest) {
        result = consult_manifest(r, opened, f, &e, err);
    } else if (s->config.manifest == KVFS_MANIFEST_REQUIRE) {
        refuse(f, CT_REJECTED, "no manifest vouches for it, and manifest=require asks for one");
    } else {
        judge_content(s, path, source, &measured, f);
    }
    ct_source_close(source);
    return result;
}

static int judge_dir(const struct rule *r, const char *path, const struct kvfs_opened *opened,
                     struct kvfs_found *f, struct ct_err *err)
{
    f->kind = opened->is_link ? KVFS_NODE_LINK : KVFS_NODE_DIR;
    if (!opened->is_link) {
        /* A manifest below makes its directory seen; its own root always is. */
        bool listed = !r->manifest || !r->rest[0] || ct_manifest_has_dir(r->manifest, r->rest);
        return listed ? 0 : ct_err_set(err, CT_NOTFOUND, "the manifest does not list it");
    }
    if (r->manifest) {
        struct ct_err why = CT_ERR_INIT;
        bool dir = false;
        (void)entry_of(r, opened, &dir, &why);
        if (!dir) {
            f->kind = KVFS_NODE_FILE;
            f->verdict.manifest = ct_manifest_ref(r->manifest);
            refuse(f, CT_REJECTED, why.code ? why.msg : "the manifest lists a file here");
            return why.code == CT_NOTFOUND ? ct_err_set(err, CT_NOTFOUND, "%s", why.msg) : 0;
        }
    }
    char end[PATH_MAX];
    (void)snprintf(end, sizeof(end), "%s", path);
    if (kvfs_path_follow(end, opened->target)) {
        f->kind = KVFS_NODE_FILE;
        refuse(f, CT_LEAVES, "an absolute link, or one that leaves the mounted directory");
        return 0;
    }
    f->target = strdup(opened->target);
    return f->target ? 0 : ct_err_set(err, CT_NOMEM, "no memory for a link");
}

/* What cannot be opened keeps its place, refused. */
static int judge_unopened(const struct ct_err *why, const struct kvfs_opened *opened,
                          struct kvfs_found *f)
{
    f->kind = KVFS_NODE_FILE;
    f->st = opened->st;
    f->verdict.kind = KVFS_VERDICT_REFUSED;
    f->verdict.why = *why;
    return 0;
}

static int judge_source(struct kvfs_serve *s, const char *path, struct kvfs_found *f,
                        struct kvfs_opened *opened, struct ct_err *err)
{
    struct rule r;
    struct ct_err why = CT_ERR_INIT;
    *f = (struct kvfs_found){0};
    if (kvfs_source_open(s, path, opened, &why)) {
        if (why.code == CT_NOTFOUND || why.code == CT_NOMEM) {
            if (err) {
                *err = why;
            }
            return -1;
        }
        return judge_unopened(&why, opened, f);
    }
    f->st = opened->st;
    bool dir = S_ISDIR(opened->st.st_mode);
    if (!dir && !S_ISREG(opened->st.st_mode)) {
        return ct_err_set(err, CT_NOTFOUND, "neither file nor directory");
    }
    if (find_rule(s, path, dir && !opened->is_link, &r, err)) {
        return -1;
    }
    int result =
        dir ? judge_dir(&r, path, opened, f, err) : judge_file(s, path, &r, opened, f, err);
    ct_manifest_unref(r.manifest);
    return result;
}

/* ---- names of the view ---- */

bool kvfs_judge_view_name(const char *name, char *out, size_t cap)
{
    if (strcmp(name, CT_MANIFEST_NAME) == 0 || strlen(name) >= cap) {
        return false;
    }
    (void)snprintf(out, cap, "%s", name);
    if (kvfs_path_ends(name, ".cryptotensors")) {
        size_t stem = strlen(name) - strlen(".cryptotensors");
        (void)snprintf(out + stem, cap - stem, ".safetensors");
    }
    return true;
}

static int judge_renamed(struct kvfs_serve *s, const char *path, struct kvfs_found *found,
                         struct kvfs_opened *opened, struct ct_err *err)
{
    char other[PATH_MAX];
    struct kvfs_found second;
    struct kvfs_opened second_opened;
    size_t stem = strlen(path) - strlen(".safetensors");
    if (stem + sizeof(".cryptotensors") > sizeof(other)) {
        return judge_source(s, path, found, opened, err);
    }
    (void)snprintf(other, sizeof(other), "%.*s.cryptotensors", (int)stem, path);
    int first = judge_source(s, path, found, opened, err);
    if (first && err->code != CT_NOTFOUND) {
        return -1;
    }
    int also = judge_source(s, other, &second, &second_opened, NULL);
    if (also || second.kind != KVFS_NODE_FILE) {
        kvfs_found_release(&second);
        kvfs_opened_release(&second_opened);
        return first;
    }
    if (first) {
        kvfs_found_release(found);
        kvfs_opened_release(opened);
        *found = second;
        *opened = second_opened;
        return 0;
    }
    kvfs_found_release(&second);
    kvfs_opened_release(&second_opened);
    found->kind = KVFS_NODE_FILE;
    refuse(found, CT_REJECTED, "there is a .safetensors and a .cryptotensors of this name");
    return 0;
}

int kvfs_judge_path(struct kvfs_serve *s, const char *path, struct kvfs_found *found,
                    struct kvfs_opened *opened, struct ct_err *err)
{
    struct ct_err mine = CT_ERR_INIT;
    const char *name = strrchr(path, '/');
    name = name ? name + 1 : path;
    *found = (struct kvfs_found){0};
    *opened = (struct kvfs_opened){.fd = -1};
    int r = strcmp(name, CT_MANIFEST_NAME) == 0    ? ct_err_set(&mine, CT_NOTFOUND, "not shown")
            : kvfs_path_ends(name, ".safetensors") ? judge_renamed(s, path, found, opened, &mine)
                                                   : judge_source(s, path, found, opened, &mine);
    /* A directory may be called so; a file of that ending goes by its other name. */
    if (r == 0 && kvfs_path_ends(name, ".cryptotensors") && found->kind == KVFS_NODE_FILE) {
        r = ct_err_set(&mine, CT_NOTFOUND, "shown with the ending .safetensors");
    }
    if (r) {
        kvfs_found_release(found);
        kvfs_opened_release(opened);
        if (err) {
            *err = mine;
        }
    }
    return r;
}

/* ---- for status ---- */

static json_t *missing_of(struct kvfs_serve *s, const char *dir, const struct ct_manifest *m)
{
    json_t *all = json_array();
    for (size_t i = 0; i < ct_manifest_count(m); i++) {
        char path[PATH_MAX];
        struct kvfs_opened opened;
        struct ct_err err = CT_ERR_INIT;
        const struct ct_entry *e = ct_manifest_at(m, i);
        if (kvfs_path_join(path, dir, e->path) == 0 && kvfs_source_open(s, path, &opened, &err) &&
            err.code == CT_NOTFOUND) {
            json_array_append_new(all, json_string(e->path));
        }
        kvfs_opened_release(&opened);
    }
    return all;
}

json_t *kvfs_judge_manifests(struct kvfs_serve *s)
{
    json_t *all = json_array();
    pthread_mutex_lock(&s->judge->lock);
    for (const struct governed *g = s->judge->dirs; g; g = g->next) {
        if (g->manifest) {
            json_array_append_new(
                all, json_pack("{s:s,s:I,s:I,s:s,s:o}", "directory", g->dir, "generation",
                               (json_int_t)ct_manifest_generation(g->manifest), "entries",
                               (json_int_t)ct_manifest_count(g->manifest), "digest",
                               ct_manifest_digest(g->manifest), "missing",
                               missing_of(s, g->dir, g->manifest)));
        } else if (g->present) {
            json_array_append_new(all,
                                  json_pack("{s:s,s:s}", "directory", g->dir, "error", g->why.msg));
        }
    }
    pthread_mutex_unlock(&s->judge->lock);
    return all;
}
