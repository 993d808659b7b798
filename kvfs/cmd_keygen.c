#include <errno.h>
#include <fcntl.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>

#include "format/base/file.h"
#include "format/keyring.h"
#include "kvfs/args.h"
#include "kvfs/keys_arg.h"
#include "kvfs/kvfs.h"
#include "kvfs/term.h"

#define OWNER "owner.jwks"
#define READER "reader.jwks"
#define PUBLIC "public.jwk"

enum { OPT_ALG = 0x100, OPT_KID, KID_MAX = 200 };

struct keygen {
    const char *dir;
    enum ct_alg alg;
    const char *prefix;
    char master_kid[KID_MAX + 16], sign_kid[KID_MAX + 16];
    struct ct_buf owner, reader, public;
};

static const struct argp_option options[] = {
    {"alg", OPT_ALG, "ALG", 0, "aes256gcm (default), aes128gcm or chacha20poly1305", 0},
    {"kid", OPT_KID, "NAME", 0, "Call the keys NAME-master and NAME-sign (default: at random)", 0},
    {"output", 'o', "DIR", 0, "The same as DIR", 0},
    {0},
};

static void set_dir(struct keygen *k, const char *dir, struct argp_state *state)
{
    if (k->dir) {
        argp_error(state, "more than one directory: %s and %s", k->dir, dir);
    }
    k->dir = dir;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct keygen *k = state->input;
    switch (key) {
    case OPT_ALG:
        k->alg = ct_alg_parse(arg, strlen(arg));
        if (k->alg == CT_ALG_NONE) {
            argp_error(state, "%s: the algorithms are aes256gcm, aes128gcm, chacha20poly1305", arg);
        }
        return 0;
    case OPT_KID:
        if (!*arg || strlen(arg) > KID_MAX || !ct_utf8_ok((const uint8_t *)arg, strlen(arg))) {
            argp_error(state, "--kid is 1 to %d bytes of UTF-8", KID_MAX);
        }
        k->prefix = arg;
        return 0;
    case 'o':
    case ARGP_KEY_ARG:
        set_dir(k, arg, state);
        return 0;
    case ARGP_KEY_END:
        if (!k->dir) {
            argp_error(state, "into which directory?");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* At random, not a thumbprint: that of a symmetric key would be a digest of the secret. */
static int name_keys(struct keygen *k, struct ct_err *err)
{
    uint8_t random[4];
    char hex[2 * sizeof(random) + 1];
    if (RAND_bytes(random, sizeof(random)) != 1) {
        return ct_err_set(err, CT_IO, "no random numbers");
    }
    ct_hex(hex, random, sizeof(random));
    const char *prefix = k->prefix ? k->prefix : hex;
    (void)snprintf(k->master_kid, sizeof(k->master_kid), "%s-master", prefix);
    (void)snprintf(k->sign_kid, sizeof(k->sign_kid), "%s-sign", prefix);
    return 0;
}

static int make_keys(struct keygen *k, struct ct_err *err)
{
    ct_autobuf master = {0};
    ct_autobuf sign = {0};
    if (name_keys(k, err) || ct_key_generate(k->alg, k->master_kid, &master, NULL, err) ||
        ct_key_generate(CT_ALG_NONE, k->sign_kid, &sign, &k->public, err)) {
        return -1;
    }
    struct {
        struct ct_buf *to;
        const struct ct_buf *second;
    } sets[] = {{&k->owner, &sign}, {&k->reader, &k->public}};
    for (size_t i = 0; i < 2; i++) {
        ct_buf_puts(sets[i].to, "{\"keys\":[\n");
        ct_buf_put(sets[i].to, master.data, master.len);
        ct_buf_puts(sets[i].to, ",\n");
        ct_buf_put(sets[i].to, sets[i].second->data, sets[i].second->len);
        ct_buf_puts(sets[i].to, "\n]}\n");
    }
    ct_buf_putc(&k->public, '\n');
    return ct_buf_ok(&k->owner, err) || ct_buf_ok(&k->reader, err) || ct_buf_ok(&k->public, err)
               ? -1
               : 0;
}

static int write_one(int dirfd, const char *name, mode_t mode, const struct ct_buf *text,
                     struct ct_err *err)
{
    struct ct_newfile f = {.fd = -1};
    if (ct_newfile_open(&f, dirfd, name, mode, err)) {
        return -1;
    }
    int rc = ct_write_full(f.fd, text->data, text->len, err) || ct_newfile_commit(&f, false, err);
    ct_newfile_abort(&f);
    return rc ? -1 : 0;
}

static int check_free(int dirfd, const char *dir, struct ct_err *err)
{
    static const char *const names[] = {OWNER, READER, PUBLIC};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        struct stat st;
        if (fstatat(dirfd, names[i], &st, AT_SYMLINK_NOFOLLOW) == 0) {
            return ct_err_set(err, CT_EXISTS, "%s/%s exists already, and no key is overwritten",
                              dir, names[i]);
        }
    }
    return 0;
}

static int write_all(const struct keygen *k, int dirfd, struct ct_err *err)
{
    const struct {
        const char *name;
        mode_t mode;
        const struct ct_buf *text;
    } files[] = {{OWNER, 0600, &k->owner}, {READER, 0600, &k->reader}, {PUBLIC, 0644, &k->public}};
    for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++) {
        if (write_one(dirfd, files[i].name, files[i].mode, files[i].text, err)) {
            while (i-- > 0) { /* one of a pair is of no use */
                (void)unlinkat(dirfd, files[i].name, 0);
            }
            return -1;
        }
    }
    return 0;
}

static int write_keys(const struct keygen *k, struct ct_err *err)
{
    bool made = mkdir(k->dir, 0700) == 0;
    if (!made && errno != EEXIST) {
        return ct_err_sys(err, errno, "%s", k->dir);
    }
    ct_autofd dirfd = open(k->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dirfd < 0) {
        return ct_err_sys(err, errno, "%s", k->dir);
    }
    if (check_free(dirfd, k->dir, err)) {
        return -1;
    }
    if (write_all(k, dirfd, err)) {
        if (made) {
            (void)rmdir(k->dir);
        }
        return ct_err_wrap(err, "%s", k->dir);
    }
    return 0;
}

static void print_keys(const struct keygen *k)
{
    const struct {
        const char *name, *use;
    } files[] = {
        {OWNER, "encrypts and signs; keep it where models are made"},
        {READER, "for those who mount: decrypts, checks signatures"},
        {PUBLIC, "checks signatures; no secret"},
    };
    struct kvfs_grid g = KVFS_GRID(2, 0);
    kvfs_grid_cell(&g, "master key");
    kvfs_grid_cell(&g, "%s (%s)", k->master_kid, ct_alg_name(k->alg));
    kvfs_grid_cell(&g, "signing key");
    kvfs_grid_cell(&g, "%s (ed25519)", k->sign_kid);
    for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++) {
        kvfs_grid_cell(&g, "%s/%s", k->dir, files[i].name);
        kvfs_grid_cell(&g, "%s", files[i].use);
    }
    kvfs_grid_print(&g, stdout, "");
    kvfs_grid_free(&g);
}

int cmd_keygen(int argc, char **argv)
{
    static const struct argp argp = {
        options,
        parse,
        "DIR",
        "Makes a master key, which encrypts, and an Ed25519 signing key. Writes " OWNER ", " READER
        " and " PUBLIC " into DIR; overwrites nothing.",
        NULL,
        NULL,
        NULL,
    };
    struct keygen k = {.alg = CT_ALG_AES256GCM};
    struct ct_err err = CT_ERR_INIT;
    kvfs_parse_args(&argp, "keygen", argc, argv, &k);
    kvfs_no_core();
    int rc =
        make_keys(&k, &err) || write_keys(&k, &err) ? kvfs_complain("keygen", &err) : KVFS_DONE;
    if (rc == KVFS_DONE) {
        print_keys(&k);
    }
    ct_buf_free(&k.owner);
    ct_buf_free(&k.reader);
    ct_buf_free(&k.public);
    return rc;
}
