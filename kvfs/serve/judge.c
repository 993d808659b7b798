#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvfs/serve/paths.h"
#include "kvfs/serve/rules.h"
#include "kvfs/serve/serve.h"

enum { LINKS_MAX = 8 };

void kvfs_found_release(struct kvfs_found *f)
{
    ct_manifest_unref(f->verdict.manifest);
    free(f->target);
    *f = (struct kvfs_found){0};
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
    } else if (s->config.plain == KVFS_PLAIN_ALL ||
               (s->config.plain == KVFS_PLAIN_SAFE && f->measure.kind == CT_KIND_OTHER &&
                is_inert(path, source))) {
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
static const struct ct_entry *entry_of(const struct kvfs_rule *r, const struct kvfs_opened *opened,
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
static int consult_manifest(const struct kvfs_rule *r, const struct kvfs_opened *opened,
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

static int judge_file(struct kvfs_serve *s, const char *path, const struct kvfs_rule *r,
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

static int judge_dir(const struct kvfs_rule *r, const char *path, const struct kvfs_opened *opened,
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
    struct kvfs_rule r;
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
    if (kvfs_judge_rule(s, path, dir && !opened->is_link, &r, err)) {
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
    bool also =
        judge_source(s, other, &second, &second_opened, NULL) == 0 && second.kind == KVFS_NODE_FILE;
    if (also && first == 0) {
        found->kind = KVFS_NODE_FILE;
        refuse(found, CT_REJECTED, "there is a .safetensors and a .cryptotensors of this name");
    } else if (also) {
        struct kvfs_found f = *found;
        struct kvfs_opened o = *opened;
        *found = second;
        *opened = second_opened;
        second = f;
        second_opened = o;
    }
    kvfs_found_release(&second);
    kvfs_opened_release(&second_opened);
    return also ? 0 : first;
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
