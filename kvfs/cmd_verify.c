#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/file.h"
#include "kvfs/args.h"
#include "kvfs/keys_arg.h"
#include "kvfs/kvfs.h"
#include "kvfs/progress.h"
#include "kvfs/term.h"
#include "kvfs/verify.h"
#include "kvfs/weights.h"

/* What became of one item. */
enum outcome { VERIFIED, WRONG, UNVOUCHED, UNLISTED, NOTHING };

struct verify {
    const char *path;
    struct kvfs_keys_arg keys;
    struct kvfs_verify how;
    bool quiet;

    struct kvfs_walk walk;
    struct kvfs_domains domains;
    size_t count[NOTHING + 1];
    uint64_t bytes;
    struct ct_buf unvouched, unlisted; /* names, for one line each */
};

static const struct argp_option options[] = {
    {"threads", 'j', "N", 0, "Threads to read with (default: one a CPU)", 0},
    {"quiet", 'q', NULL, 0, "Print only what is wrong, and warnings", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct verify *v = state->input;
    uint64_t n = 0;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &v->keys;
        return 0;
    case 'j':
        if (kvfs_parse_u64(arg, 1024, &n) || n == 0) {
            argp_error(state, "--threads is a number from 1 to 1024");
        }
        v->how.threads = (unsigned)n;
        return 0;
    case 'q':
        v->quiet = true;
        return 0;
    case ARGP_KEY_ARG:
        if (v->path) {
            argp_error(state, "more than one thing to verify: %s and %s", v->path, arg);
        }
        v->path = arg;
        return 0;
    case ARGP_KEY_END:
        if (!v->path) {
            argp_error(state, "which file or directory?");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- what is said ---- */

static void say_ok(const struct verify *v, const char *path, uint64_t bytes)
{
    char size[KVFS_SIZE_TEXT];
    if (!v->quiet) {
        kvfs_progress_line("ok     %s  %s", path, kvfs_size_text(size, bytes));
    }
}

static enum outcome say_wrong(const char *path, const char *why)
{
    kvfs_progress_line("WRONG  %s: %s", path, why);
    return WRONG;
}

static void add_name(struct ct_buf *names, const char *path)
{
    ct_buf_puts(names, names->len ? ", " : "");
    ct_buf_puts(names, path);
}

static enum outcome report(const struct verify *v, const char *path,
                           const struct kvfs_verified *done)
{
    const struct ct_damages *d = &done->damages;
    if (!done->wrong) {
        say_ok(v, path, done->bytes);
    }
    if (done->wrong && done->why.code != CT_OK) {
        (void)say_wrong(path, done->why.msg);
    }
    for (size_t i = 0; i < d->count; i++) {
        (void)say_wrong(path, d->items[i].what);
    }
    if (done->damage_count > d->count) {
        kvfs_progress_line("WRONG  %s: and %" PRIu64 " more", path, done->damage_count - d->count);
    }
    if (done->model && done->info.unauthenticated_bytes) {
        char size[KVFS_SIZE_TEXT];
        kvfs_warn("verify", "%s: nothing vouches for %zu of %zu tensors (%s): not encrypted", path,
                  done->info.tensors - done->info.encrypted, done->info.tensors,
                  kvfs_size_text(size, done->info.unauthenticated_bytes));
    }
    if (done->policy.code != CT_OK) {
        kvfs_warn("verify", "%s: would be refused to you now: %s", path, done->policy.msg);
    }
    return done->wrong ? WRONG : VERIFIED;
}

/* ---- one item ---- */

static enum outcome verify_plain(struct verify *v, struct ct_source *in,
                                 const struct ct_version *version, const struct kvfs_item *item,
                                 const struct kvfs_recognised *what, const struct ct_entry *entry)
{
    struct kvfs_verified done;
    if (entry && entry->kind == CT_ENTRY_FILE) {
        (void)kvfs_verify_plain(in, version, entry, &done);
        enum outcome outcome = report(v, item->path, &done);
        kvfs_verified_release(&done);
        return outcome;
    }
    ct_source_close(in);
    (void)kvfs_progress_add(NULL, version->size);
    if (entry) {
        return say_wrong(item->path, "the manifest says that it is encrypted, and it is not");
    }
    if (what->what == KVFS_WHAT_BROKEN) {
        return say_wrong(item->path, what->why);
    }
    return UNVOUCHED;
}

static enum outcome verify_model(struct verify *v, struct ct_source *in,
                                 const struct ct_version *version, const struct kvfs_item *item,
                                 const struct kvfs_domain *domain, const struct ct_entry *entry)
{
    struct kvfs_verified done;
    const struct ct_manifest *manifest = entry ? domain->manifest : NULL;
    const char *path = domain ? kvfs_path_in(domain, item->path) : item->path;
    (void)kvfs_verify_model(&v->how, in, version, manifest, path, &done);
    enum outcome outcome = report(v, item->path, &done);
    v->bytes += done.bytes;
    kvfs_verified_release(&done);
    return outcome;
}

static enum outcome verify_file(struct verify *v, int fd, const struct kvfs_item *item,
                                const struct kvfs_domain *domain, const struct ct_entry *entry)
{
    struct ct_version version;
    struct kvfs_recognised what;
    struct ct_err err = CT_ERR_INIT;
    ct_version_of(&item->st, &version);
    struct ct_source *in = ct_source_fd(fd, &err);
    kvfs_progress_item(item->path);
    if (!in || kvfs_recognise(in, &version, item->path, &what, &err)) {
        ct_source_close(in);
        return say_wrong(item->path, err.msg);
    }
    bool model = what.what == KVFS_WHAT_ENCRYPTED && (!entry || entry->kind != CT_ENTRY_FILE);
    if (!model && entry && entry->kind == CT_ENTRY_SHARD && what.what == KVFS_WHAT_BROKEN) {
        ct_source_close(in);
        return say_wrong(item->path, what.why);
    }
    return model ? verify_model(v, in, &version, item, domain, entry)
                 : verify_plain(v, in, &version, item, &what, entry);
}

static enum outcome verify_link(struct verify *v, const struct kvfs_item *item,
                                const struct ct_entry *entry)
{
    struct stat st;
    struct ct_err err = CT_ERR_INIT;
    if (kvfs_resolve_beneath(v->walk.fd, item->path, &st, &err)) {
        const char *inside = strstr(err.msg, ": ");
        return say_wrong(item->path, inside ? inside + 2 : err.msg);
    }
    if (!entry) {
        return NOTHING; /* what it leads to is looked at by itself */
    }
    if (entry->kind != CT_ENTRY_LINK || strcmp(entry->target, item->target) != 0) {
        return say_wrong(item->path, "leads elsewhere than the manifest says");
    }
    return VERIFIED;
}

static enum outcome verify_item(struct verify *v, const struct kvfs_item *found)
{
    struct kvfs_item item = *found;
    struct ct_err err = CT_ERR_INIT;
    const struct kvfs_domain *domain = kvfs_domain_of(&v->domains, item.path);
    const struct ct_manifest *m = domain ? domain->manifest : NULL;
    const struct ct_entry *entry = m ? ct_manifest_find(m, kvfs_path_in(domain, item.path)) : NULL;
    if (item.kind == KVFS_ITEM_DIR || kvfs_is_manifest(&item)) {
        return NOTHING;
    }
    enum outcome outcome = NOTHING;
    if (item.kind == KVFS_ITEM_LINK) {
        outcome = verify_link(v, &item, entry);
    } else if (item.kind == KVFS_ITEM_SPECIAL) {
        outcome = UNVOUCHED;
    } else {
        int fd = kvfs_open_regular(v->walk.fd, item.path, &item.st, &err);
        outcome = fd < 0 ? say_wrong(item.path, err.sys ? strerrordesc_np(err.sys) : err.msg)
                         : verify_file(v, fd, &item, domain, entry);
    }
    if (m && !entry) {
        add_name(&v->unlisted, item.path);
    } else if (outcome == UNVOUCHED) {
        add_name(&v->unvouched, item.path);
    }
    return outcome;
}

/* ---- all of them ---- */

static void verify_manifests(struct verify *v)
{
    for (size_t i = 0; i < v->domains.count; i++) {
        const struct kvfs_domain *d = &v->domains.items[i];
        char path[PATH_MAX];
        (void)snprintf(path, sizeof(path), "%s%s" CT_MANIFEST_NAME, d->dir, *d->dir ? "/" : "");
        if (!d->manifest) {
            const char *why =
                strncmp(d->why.msg, CT_MANIFEST_NAME ": ", 15) == 0 ? d->why.msg + 15 : d->why.msg;
            v->count[say_wrong(path, why)]++;
        } else {
            v->count[VERIFIED]++;
            if (!v->quiet) {
                kvfs_progress_line("ok     %s  generation %" PRIu64, path,
                                   ct_manifest_generation(d->manifest));
            }
        }
    }
}

static bool is_there(const struct verify *v, const struct kvfs_domain *d, const char *path)
{
    char whole[2 * PATH_MAX];
    size_t lo = 0;
    size_t hi = v->walk.count;
    (void)snprintf(whole, sizeof(whole), "%s%s%s", d->dir, *d->dir ? "/" : "", path);
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(v->walk.items[mid].path, whole);
        if (c == 0) {
            return v->walk.items[mid].kind != KVFS_ITEM_DIR;
        }
        lo = c < 0 ? mid + 1 : lo;
        hi = c < 0 ? hi : mid;
    }
    return false;
}

static void verify_presence(struct verify *v)
{
    for (size_t i = 0; i < v->domains.count; i++) {
        const struct kvfs_domain *d = &v->domains.items[i];
        for (size_t j = 0; d->manifest && j < ct_manifest_count(d->manifest); j++) {
            const char *path = ct_manifest_at(d->manifest, j)->path;
            if (!is_there(v, d, path)) {
                v->count[say_wrong(path, "the manifest lists it, but it is not there")]++;
            }
        }
    }
}

static int verify_dir(struct verify *v, struct ct_err *err)
{
    uint64_t total = 0;
    if (kvfs_walk_dir(v->path, NULL, NULL, &v->walk, err) ||
        kvfs_domains_find(&v->domains, &v->walk, v->how.keys, true, err)) {
        return -1;
    }
    for (size_t i = 0; i < v->walk.count; i++) {
        const struct kvfs_item *item = &v->walk.items[i];
        total += item->kind == KVFS_ITEM_FILE ? (uint64_t)item->st.st_size : 0;
    }
    kvfs_progress_start(total, v->quiet);
    verify_manifests(v);
    for (size_t i = 0; i < v->walk.count; i++) {
        if (kvfs_check_interrupted(err)) {
            return -1;
        }
        v->count[verify_item(v, &v->walk.items[i])]++;
    }
    verify_presence(v);
    return kvfs_check_interrupted(err);
}

/* A file is judged by the manifest beside it, if there is one. */
static int find_manifest_beside(struct verify *v, struct ct_err *err)
{
    struct kvfs_item item = {.path = (char *)CT_MANIFEST_NAME, .kind = KVFS_ITEM_FILE};
    struct stat st;
    struct kvfs_walk beside = {.fd = kvfs_open_dir_of(v->path, err), .items = &item, .count = 1};
    if (beside.fd < 0) {
        return -1;
    }
    bool there = fstatat(beside.fd, CT_MANIFEST_NAME, &st, AT_SYMLINK_NOFOLLOW) == 0;
    int rc = there ? kvfs_domains_find(&v->domains, &beside, v->how.keys, true, err) : 0;
    close(beside.fd);
    return rc;
}

static int verify_one(struct verify *v, struct ct_err *err)
{
    struct kvfs_item item = {.path = (char *)kvfs_base_name(v->path), .kind = KVFS_ITEM_FILE};
    int fd = open(v->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, &item.st)) {
        ct_err_sys(err, errno, "%s", v->path);
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    if (!S_ISREG(item.st.st_mode) || find_manifest_beside(v, err)) {
        close(fd);
        return S_ISREG(item.st.st_mode)
                   ? -1
                   : ct_err_set(err, CT_USAGE, "%s is neither a file nor a directory", v->path);
    }
    kvfs_progress_start((uint64_t)item.st.st_size, v->quiet);
    verify_manifests(v);
    const struct kvfs_domain *d = v->domains.count ? &v->domains.items[0] : NULL;
    const struct ct_entry *e = d && d->manifest ? ct_manifest_find(d->manifest, item.path) : NULL;
    enum outcome outcome = verify_file(v, fd, &item, d, e);
    v->count[outcome]++;
    if (d && d->manifest && !e) {
        add_name(&v->unlisted, item.path);
    } else if (outcome == UNVOUCHED) {
        add_name(&v->unvouched, item.path);
    }
    return kvfs_check_interrupted(err);
}

static void warn_names(struct ct_buf *names, const char *what)
{
    if (names->len) {
        ct_buf_putc(names, '\0');
        if (!names->failed) {
            kvfs_warn("verify", "%s: %s", what, (const char *)names->data);
        }
    }
}

static void print_summary(const struct verify *v, double seconds)
{
    char files[64];
    char size[KVFS_SIZE_TEXT];
    char speed[KVFS_SIZE_TEXT];
    if (v->count[WRONG]) {
        kvfs_progress_line("%s wrong, %zu in order",
                           kvfs_count_text(files, v->count[WRONG], "file"), v->count[VERIFIED]);
    } else if (!v->quiet) {
        kvfs_progress_line("%s in order; %s decrypted in %.1f s (%s/s)",
                           kvfs_count_text(files, v->count[VERIFIED], "file"),
                           kvfs_size_text(size, v->bytes), seconds,
                           kvfs_size_text(speed, (uint64_t)((double)v->bytes /
                                                            (seconds > 0.001 ? seconds : 0.001))));
    }
}

static int run(struct verify *v, struct ct_err *err)
{
    struct stat st;
    kvfs_autokeyring *ring = NULL;
    if (stat(v->path, &st)) {
        return ct_err_sys(err, errno, "%s", v->path);
    }
    if (kvfs_keys_load(&v->keys, &ring, err)) {
        return -1;
    }
    v->how.keys = ct_keyring_source(ring);
    int rc = S_ISDIR(st.st_mode) ? verify_dir(v, err) : verify_one(v, err);
    double seconds = kvfs_progress_end();
    if (rc) {
        return -1;
    }
    warn_names(&v->unlisted, "not in the manifest, and not shown by a mount");
    warn_names(&v->unvouched, "nothing vouches for");
    print_summary(v, seconds);
    if (v->count[VERIFIED] + v->count[WRONG] == 0) {
        return ct_err_set(err, CT_USAGE, "%s holds nothing that could be verified", v->path);
    }
    return 0;
}

int cmd_verify(int argc, char **argv)
{
    static const struct argp_child children[] = {{&kvfs_keys_argp, 0, "Keys:", 1}, {0}};
    static const struct argp argp = {
        options,
        parse,
        "FILE|DIR",
        "Reads and authenticates every byte: headers, signatures, every chunk's tag, and all that "
        "a manifest lists. Policies are parsed; what they say here and now is told, but does not "
        "count.",
        children,
        NULL,
        NULL,
    };
    struct verify v = {.walk.fd = -1};
    struct ct_err err = CT_ERR_INIT;
    kvfs_parse_args(&argp, "verify", argc, argv, &v);
    int rc = run(&v, &err)    ? kvfs_complain("verify", &err)
             : v.count[WRONG] ? KVFS_FAILED
                              : KVFS_DONE;
    kvfs_walk_free(&v.walk);
    kvfs_domains_free(&v.domains);
    ct_buf_free(&v.unlisted);
    ct_buf_free(&v.unvouched);
    return rc;
}
