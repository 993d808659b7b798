#include "kvfs/keys_arg.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "format/base/file.h"
#include "format/base/log.h"

enum { KEY_FILE_MAX = 4 << 20 };

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

static bool is_public_name(const char *name)
{
    return strcmp(name, "public.jwk") == 0 || fnmatch("*.pub.jwk", name, 0) == 0;
}

/* Takes fd over. */
static int append(struct kvfs_key_files *files, int fd, const char *name, const struct stat *st,
                  struct ct_err *err)
{
    if (files->count == KVFS_KEY_FILES_LIMIT) {
        close(fd);
        return ct_err_set(err, CT_USAGE, "more than %d key files", KVFS_KEY_FILES_LIMIT);
    }
    if (S_ISREG(st->st_mode) && (st->st_mode & S_IROTH) && !is_public_name(name)) {
        ct_log(CT_LOG_WARN, "key file %s may be read by everybody on this machine (chmod go= it)",
               name);
    }
    struct kvfs_key_file *f = &files->items[files->count++];
    f->fd = fd;
    (void)snprintf(f->name, sizeof(f->name), "%s", name);
    return 0;
}

static int wanted(const struct dirent *d)
{
    return d->d_name[0] != '.' &&
           (fnmatch("*.jwk", d->d_name, 0) == 0 || fnmatch("*.jwks", d->d_name, 0) == 0 ||
            fnmatch("*.json", d->d_name, 0) == 0);
}

static int open_one(struct kvfs_key_files *files, int dirfd, const char *name, struct ct_err *err)
{
    struct stat st;
    int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0 || fstat(fd, &st)) {
        ct_err_sys(err, errno, "%s", name);
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    if (!S_ISREG(st.st_mode)) {
        close(fd);
        return ct_err_set(err, CT_USAGE, "%s is no regular file", name);
    }
    return append(files, fd, name, &st, err);
}

static int open_dir(struct kvfs_key_files *files, int dirfd, const char *path, struct ct_err *err)
{
    struct dirent **names = NULL;
    int n = scandirat(dirfd, ".", &names, wanted, alphasort);
    if (n < 0) {
        return ct_err_sys(err, errno, "key directory %s", path);
    }
    int rc = n > 0 ? 0
                   : ct_err_set(err, CT_NOKEY, "key directory %s holds no *.jwk, *.jwks or *.json",
                                path);
    for (int i = 0; i < n; i++) {
        if (rc == 0 && open_one(files, dirfd, names[i]->d_name, err)) {
            rc = ct_err_wrap(err, "key directory %s", path);
        }
        free(names[i]);
    }
    free(names);
    return rc;
}

int kvfs_key_files_open(struct kvfs_key_files *files, const char *path, struct ct_err *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0 || fstat(fd, &st)) {
        ct_err_sys(err, errno, "key file %s", path);
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    if (S_ISDIR(st.st_mode)) {
        int rc = open_dir(files, fd, path, err);
        close(fd);
        return rc;
    }
    if (!S_ISREG(st.st_mode) && !S_ISFIFO(st.st_mode)) {
        close(fd);
        return ct_err_set(err, CT_USAGE, "key file %s is neither a file nor a directory", path);
    }
    return append(files, fd, base_name(path), &st, err);
}

void kvfs_key_files_close(struct kvfs_key_files *files)
{
    for (size_t i = 0; i < files->count; i++) {
        close(files->items[i].fd);
    }
    files->count = 0;
}

int kvfs_keys_arg_add(struct kvfs_keys_arg *a, const char *path)
{
    if (a->count == KVFS_KEY_PATHS_MAX) {
        return -1;
    }
    a->paths[a->count++] = path;
    return 0;
}

static const struct argp_option options[] = {
    {"key", 'k', "FILE|DIR", 0, "JWK or JWK Set, or a directory of them; may be repeated", 0},
    {"key-dir", 'K', "DIR", 0, "Master keys that a header names by file:// are looked for in here",
     0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct kvfs_keys_arg *a = state->input;
    switch (key) {
    case 'k':
        if (kvfs_keys_arg_add(a, arg)) {
            argp_error(state, "--key is given more than %d times", KVFS_KEY_PATHS_MAX);
        }
        return 0;
    case 'K':
        a->key_dir = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp kvfs_keys_argp = {.options = options, .parser = parse};

static int read_files(const struct kvfs_keys_arg *a, struct ct_keyring *ring, struct ct_err *err)
{
    struct kvfs_key_files *files = calloc(1, sizeof(*files));
    if (!files) {
        return ct_err_set(err, CT_NOMEM, "no memory for key files");
    }
    int rc = 0;
    for (size_t i = 0; i < a->count && rc == 0; i++) {
        rc = kvfs_key_files_open(files, a->paths[i], err);
    }
    for (size_t i = 0; i < files->count && rc == 0; i++) {
        ct_autobuf text = {0};
        rc = ct_read_fd(files->items[i].fd, KEY_FILE_MAX, &text, err);
        if (rc == 0) {
            rc = ct_keyring_add(ring, text.data, text.len, files->items[i].name, err);
        } else {
            ct_err_wrap(err, "key file %s", files->items[i].name);
        }
    }
    kvfs_key_files_close(files);
    free(files);
    return rc;
}

static int read_env(struct ct_keyring *ring, struct ct_err *err)
{
    char *text = getenv(KVFS_KEYS_ENV);
    if (!text || !*text) {
        return ct_err_set(err, CT_NOKEY, "no keys: say --key FILE, or set " KVFS_KEYS_ENV);
    }
    size_t n = strlen(text);
    int rc = ct_keyring_add(ring, (const uint8_t *)text, n, KVFS_KEYS_ENV, err);
    ct_wipe(text, n);
    (void)unsetenv(KVFS_KEYS_ENV);
    return rc;
}

/* What --key-dir gives to the ring; lives as long as the process. */
struct key_dir {
    int fd;
    char *root;
};

static int open_jku(void *ctx, const char *path, struct ct_err *err)
{
    const struct key_dir *d = ctx;
    return kvfs_key_dir_open(d->fd, d->root, path, err);
}

static int use_key_dir(struct ct_keyring *ring, const char *path, struct ct_err *err)
{
    static struct key_dir dir;
    dir.root = realpath(path, NULL);
    dir.fd = dir.root ? open(dir.root, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    if (dir.fd < 0) {
        return ct_err_sys(err, errno, "key directory %s", path);
    }
    ct_keyring_set_jku(ring, open_jku, &dir);
    return 0;
}

void kvfs_no_core(void)
{
    const struct rlimit none = {0, 0};
    (void)setrlimit(RLIMIT_CORE, &none);
    /* core(5): no memory of any kind, in a core that is taken all the same (by a debugger). */
    ct_autofd fd = open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);
    ssize_t ignored = fd < 0 ? 0 : write(fd, "0", 1);
    (void)ignored;
}

int kvfs_keys_load(const struct kvfs_keys_arg *a, struct ct_keyring **out, struct ct_err *err)
{
    kvfs_no_core();
    kvfs_autokeyring *ring = ct_keyring_new(err);
    if (!ring) {
        return -1;
    }
    if (a->key_dir && use_key_dir(ring, a->key_dir, err)) {
        return -1;
    }
    /* A directory of keys that headers point into may be all there is. */
    if (a->count ? read_files(a, ring, err) : read_env(ring, err)) {
        return -1;
    }
    *out = ring;
    ring = NULL;
    return 0;
}

int kvfs_key_dir_open(int dirfd, const char *root, const char *path, struct ct_err *err)
{
    const struct open_how how = {
        .flags = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
    };
    const char *inside = path;
    if (*path == '/') {
        size_t n = strlen(root);
        n = n == 1 ? 0 : n; /* "/" itself */
        if (strncmp(path, root, n) != 0 || path[n] != '/') {
            return ct_err_set(err, CT_NOKEY, "the key file %s is not in the key directory %s", path,
                              root);
        }
        inside = path + n + strspn(path + n, "/");
    }
    long fd = syscall(SYS_openat2, dirfd, inside, &how, sizeof(how));
    if (fd < 0) {
        if (errno == ENOENT || errno == EXDEV) {
            return ct_err_set(err, CT_NOKEY, "the key file %s is not in the key directory %s", path,
                              root);
        }
        return ct_err_sys(err, errno, "the key file %s in the key directory %s", path, root);
    }
    return (int)fd;
}
