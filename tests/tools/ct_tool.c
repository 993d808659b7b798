/*
 * format/ from a command line, for tests: one file at a time, no directory walks.
 *
 *   ct_tool encrypt  [options] KEYS KID SIGN-KID IN OUT
 *   ct_tool rewrap   [options] OLD-KEYS KEYS KID SIGN-KID IN OUT
 *   ct_tool rekey    [options] OLD-KEYS KEYS KID SIGN-KID IN OUT
 *   ct_tool decrypt  KEYS IN OUT
 *   ct_tool manifest KEYS SIGN-KID GENERATION DIR PATH...   writes DIR/kvfs.manifest
 *   ct_tool check    KEYS DIR                               lists DIR/kvfs.manifest
 *
 *   -v VERSION  -c CHUNK-SIZE  -t TENSOR (only these; again for more)  -j THREADS  -p POLICY
 *   -m URI  -s URI  where the header says the master key and the signing key are to be had (jku)
 */
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "format/model.h"
#include "format/writer.h"

static struct ct_err err;
static struct ct_write_options options = {.version = 2, .chunk_size = CT_CHUNK_DEFAULT};
static const char *chosen[1024];
static size_t chosen_count;
static struct ct_span master_jku, sign_jku;

static int report(const char *what)
{
    (void)fprintf(stderr, "ct_tool: %s: %s: %s\n", what, ct_code_name(err.code), err.msg);
    return 1;
}

static bool is_chosen(void *ctx, struct ct_span name)
{
    (void)ctx;
    for (size_t i = 0; i < chosen_count; i++) {
        if (ct_span_is(name, chosen[i], strlen(chosen[i]))) {
            return true;
        }
    }
    return false;
}

static struct ct_keyring *load(const char *path)
{
    ct_autobuf json = {0};
    struct ct_keyring *r = ct_keyring_new(&err);
    if (!r || ct_read_file(AT_FDCWD, path, 1 << 20, &json, &err) ||
        ct_keyring_add(r, json.data, json.len, path, &err)) {
        exit(report(path));
    }
    return r;
}

static struct ct_source *open_source(int dirfd, const char *path, struct ct_version *v)
{
    int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);
    struct ct_source *s = fd >= 0 ? ct_source_fd(fd, &err) : NULL;
    if (!s || s->ops->version(s, v, &err)) {
        perror(path);
        exit(1);
    }
    return s;
}

static struct ct_write_keys choose_keys(struct ct_keyring *r, const char *kid, const char *sign)
{
    uint8_t pub[CT_ED25519_PUB];
    struct ct_write_keys k = {.master_jku = master_jku, .sign_jku = sign_jku};
    if (ct_keyring_master(r, kid, &k.master, &k.alg, &k.master_kid, &err) ||
        ct_keyring_signer(r, sign, &k.seed, &k.sign_kid, pub, &err)) {
        exit(report("keys"));
    }
    return k;
}

/* The directory that `path` lies in; *name is the last component. */
static int parent_of(char *path, const char **name)
{
    char *slash = strrchr(path, '/');
    *name = slash ? slash + 1 : path;
    if (!slash) {
        return open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
    *slash = '\0';
    return open(path[0] ? path : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static int write_file(const char *verb, char **args)
{
    const bool fresh = strcmp(verb, "encrypt") == 0;
    struct ct_keyring *old = fresh ? NULL : load(*args++);
    struct ct_keyring *ring = load(args[0]);
    const struct ct_write_keys keys = choose_keys(ring, args[1], args[2]);
    struct ct_version v;
    struct ct_source *in = open_source(AT_FDCWD, args[3], &v);
    struct ct_entry e;
    struct ct_entry_arena *arena = NULL;
    const char *name = NULL;
    ct_autofd dir = parent_of(args[4], &name);
    int r = 0;
    if (fresh) {
        r = ct_encrypt_file(in, &v, &keys, &options, dir, name, &e, &arena, &err);
    } else if (strcmp(verb, "rewrap") == 0) {
        r = ct_rewrap_file(in, &v, ct_keyring_source(old), &keys, &options, dir, name, &err);
    } else {
        r = ct_rekey_file(in, &v, ct_keyring_source(old), &keys, &options, dir, name, &e, &arena,
                          &err);
    }
    ct_entry_arena_free(arena);
    ct_source_close(in);
    ct_keyring_free(old);
    ct_keyring_free(ring);
    return r ? report(args[3]) : 0;
}

static int put_view(struct ct_model *m, int fd)
{
    size_t n = 0;
    const uint8_t *head = ct_model_header(m, &n);
    static uint8_t buf[CT_EXTENT_MAX];
    if (ct_write_full(fd, head, n, &err)) {
        return -1;
    }
    for (uint32_t i = 0; i < ct_model_extent_count(m); i++) {
        struct ct_extent e;
        struct ct_damages damages = {0};
        ct_model_extent(m, i, &e);
        int r = ct_model_read(m, i, buf, &damages, &err);
        if (r == 0 && damages.count) {
            r = ct_err_set(&err, damages.items[0].code, "%s", damages.items[0].what);
        }
        ct_damages_free(&damages);
        if (r || ct_write_full(fd, buf, e.len, &err)) {
            return -1;
        }
    }
    return 0;
}

static int decrypt(char **args)
{
    struct ct_keyring *ring = load(args[0]);
    struct ct_model *m = NULL;
    struct ct_open how = {.keys = ct_keyring_source(ring), .path = ""};
    how.source = open_source(AT_FDCWD, args[1], &how.version);
    ct_autofd fd = open(args[2], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int r = fd < 0 ? ct_err_set(&err, CT_IO, "cannot create %s", args[2]) : 0;
    if (r == 0) {
        r = ct_model_open(&how, &m, &err) || put_view(m, fd) ? -1 : 0;
    }
    ct_model_unref(m);
    ct_keyring_free(ring);
    return r ? report(args[1]) : 0;
}

static int add_path(struct ct_manifest_builder *b, struct ct_keyring *ring, int dir,
                    const char *path)
{
    struct ct_entry e = {.kind = CT_ENTRY_LINK};
    struct ct_entry_arena *arena = NULL;
    struct ct_version v;
    struct ct_measure measure;
    char target[PATH_MAX] = "";
    if (readlinkat(dir, path, target, sizeof(target) - 1) >= 0) {
        e.target = target;
        e.path = path;
        return ct_manifest_builder_add(b, &e, &err);
    }
    struct ct_source *s = open_source(dir, path, &v);
    int r = ct_header_measure(s, &v, &measure, &err);
    if (r == 0) {
        r = measure.kind == CT_KIND_ENCRYPTED
                ? ct_shard_entry(s, &v, ct_keyring_source(ring), &e, &arena, &err)
                : ct_copy_file(s, &v, NULL, -1, NULL, 0, &e, &arena, &err);
    }
    e.path = path;
    if (r == 0) {
        r = ct_manifest_builder_add(b, &e, &err);
    }
    ct_entry_arena_free(arena);
    ct_source_close(s);
    return r;
}

static int make_manifest(char **args, int paths)
{
    struct ct_keyring *ring = load(args[0]);
    const struct ct_secret *seed = NULL;
    struct ct_span kid;
    uint8_t pub[CT_ED25519_PUB];
    ct_autobuf jws = {0};
    ct_autofd dir = open(args[3], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct ct_newfile file = {.fd = -1};
    struct ct_manifest_builder *b = ct_manifest_builder_new(strtoull(args[2], NULL, 10), &err);
    int r = b && dir >= 0 ? ct_keyring_signer(ring, args[1], &seed, &kid, pub, &err) : -1;
    for (int i = 0; r == 0 && i < paths; i++) {
        r = add_path(b, ring, dir, args[4 + i]);
    }
    if (r == 0) {
        r = ct_manifest_builder_sign(b, seed, kid, &jws, &err) ||
                    ct_newfile_open(&file, dir, CT_MANIFEST_NAME, 0644, &err) ||
                    ct_write_full(file.fd, jws.data, jws.len, &err) ||
                    ct_newfile_commit(&file, true, &err)
                ? -1
                : 0;
    }
    ct_newfile_abort(&file);
    ct_manifest_builder_free(b);
    ct_keyring_free(ring);
    return r ? report(args[3]) : 0;
}

static int check_manifest(char **args)
{
    static const char *const kinds[] = {"file", "link", "shard"};
    struct ct_keyring *ring = load(args[0]);
    struct ct_manifest *m = NULL;
    ct_autobuf jws = {0};
    ct_autofd dir = open(args[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = ct_read_file(dir, CT_MANIFEST_NAME, CT_MANIFEST_MAX, &jws, &err) ||
                    ct_manifest_parse(jws.data, jws.len, ct_keyring_source(ring), &m, &err)
                ? -1
                : 0;
    if (r == 0) {
        printf("generation %" PRIu64 "\n", ct_manifest_generation(m));
        for (size_t i = 0; i < ct_manifest_count(m); i++) {
            const struct ct_entry *e = ct_manifest_at(m, i);
            char hex[2 * CT_DIGEST + 1];
            ct_hex(hex, e->sha256, CT_DIGEST);
            printf("%s %" PRIu64 " %s %s\n", kinds[e->kind], e->size, hex, e->path);
        }
    }
    ct_manifest_unref(m);
    ct_keyring_free(ring);
    return r ? report(args[1]) : 0;
}

static int usage(void)
{
    (void)fputs("usage: see the comment in tests/tools/ct_tool.c\n", stderr);
    return 2;
}

static int read_options(int argc, char **argv)
{
    for (int c = 0; (c = getopt(argc, argv, "+v:c:t:j:p:m:s:")) != -1;) {
        switch (c) {
        case 'v':
            options.version = (int)strtol(optarg, NULL, 10);
            break;
        case 'c':
            options.chunk_size = strtoull(optarg, NULL, 10);
            break;
        case 'j':
            options.threads = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'p':
            options.policy_local = optarg;
            break;
        case 'm':
            master_jku = (struct ct_span){optarg, strlen(optarg)};
            break;
        case 's':
            sign_jku = (struct ct_span){optarg, strlen(optarg)};
            break;
        case 't':
            if (chosen_count < sizeof(chosen) / sizeof(*chosen)) {
                chosen[chosen_count++] = optarg;
            }
            options.choose = is_chosen;
            break;
        default:
            return -1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 2 || ct_secret_init(&err) || read_options(argc - 1, argv + 1)) {
        return usage();
    }
    const char *verb = argv[1];
    char **args = argv + 1 + optind;
    int n = argc - 1 - optind;
    if ((strcmp(verb, "encrypt") == 0 && n == 5) || (strcmp(verb, "rewrap") == 0 && n == 6) ||
        (strcmp(verb, "rekey") == 0 && n == 6)) {
        return write_file(verb, args);
    }
    if (strcmp(verb, "decrypt") == 0 && n == 3) {
        return decrypt(args);
    }
    if (strcmp(verb, "manifest") == 0 && n >= 4) {
        return make_manifest(args, n - 4);
    }
    if (strcmp(verb, "check") == 0 && n == 2) {
        return check_manifest(args);
    }
    return usage();
}
