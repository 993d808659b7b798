#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "format/base/secret.h"
#include "kvfs/kvfs.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary; /* NULL: not for users */
} commands[] = {
    {"mount", cmd_mount, "mount a directory of encrypted models"},
    {"umount", cmd_umount, "unmount it"},
    {"status", cmd_status, "what a mount serves and refuses, and the latest failures"},
    {"warm", cmd_warm, "decrypt files before they are read"},
    {"seal", cmd_seal, "take back everything that a mount has given out"},
    {"reload", cmd_reload, "look at the source of a mount anew"},
    {"keygen", cmd_keygen, "make a master key and a signing key"},
    {"encrypt", cmd_encrypt, "encrypt a model"},
    {"rewrap", cmd_rewrap, "change the keys of an encrypted model: header only"},
    {"rekey", cmd_rekey, "encrypt an encrypted model anew"},
    {"inspect", cmd_inspect, "what a file says of itself; needs no key"},
    {"verify", cmd_verify, "read and authenticate every byte"},
    {"audit", cmd_audit, "verify what mounts recorded"},
    {"guard", cmd_guard, "judge the container that kvfs is to run in"},
    {"measure", cmd_measure, "the digest that a key server's baseline has to have"},
    {"login", cmd_login, "log in to a key server, to publish"},
    {"logout", cmd_logout, "end that"},
    {"publish", cmd_publish, "encrypt a model with a key server's keys, and publish it there"},
    {"worker", cmd_worker, NULL},
    {"courier", cmd_courier, NULL},
};

static void usage(FILE *to)
{
    (void)fputs("Usage: kvfs COMMAND [ARGUMENT...]\n\n", to);
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (commands[i].summary) {
            (void)fprintf(to, "  %-8s  %s\n", commands[i].name, commands[i].summary);
        }
    }
    (void)fputs("\nkvfs COMMAND --help tells more, and so does man kvfs.\n", to);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Descriptors that are opened later must not become stdin, stdout or stderr. */
static void open_stdio(void)
{
    int fd;
    while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd <= STDERR_FILENO) {
    }
    if (fd > STDERR_FILENO) {
        close(fd);
    }
}

static int dispatch(int argc, char **argv)
{
    const char *word = argv[1];
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(word, commands[i].name) == 0) {
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        usage(stdout);
        return KVFS_DONE;
    }
    if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0) {
        (void)puts("kvfs " KVFS_VERSION);
        return KVFS_DONE;
    }
    /* mount(8) without our helper has mount.fuse3 run `kvfs SRC MNT -o OPTIONS`. */
    if (strchr(word, '/') && argc > 2) {
        return cmd_mount(argc, argv);
    }
    (void)fprintf(stderr, "kvfs: there is no command '%s'; kvfs --help lists them\n", word);
    return KVFS_USAGE;
}

int main(int argc, char **argv)
{
    struct ct_err err = CT_ERR_INIT;
    open_stdio();
    if (ct_secret_init(&err)) {
        (void)fprintf(stderr, "kvfs: %s\n", err.msg);
        return KVFS_FAILED;
    }
    if (argc > 0 && strcmp(base_name(argv[0]), KVFS_MOUNT_HELPER) == 0) {
        return cmd_mount(argc, argv);
    }
    if (argc < 2) {
        usage(stderr);
        return KVFS_USAGE;
    }
    return dispatch(argc, argv);
}
