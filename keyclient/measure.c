#include "keyclient/measure.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/file.h"
#include "format/base/sha256.h"
#include "format/protocol/digest.h"

enum { BLOCK = 1 << 14 };

struct mapping {
    ino_t ino;
    char path[4096];
};

/* A line of /proc/self/maps: whether it is code out of a file. */
static bool parse_line(const char *line, struct mapping *m)
{
    unsigned long long ino = 0;
    char perms[5];
    int at = 0;
    // NOLINTNEXTLINE(cert-err34-c): the kernel wrote it
    if (sscanf(line, "%*s %4s %*s %*s %llu %n", perms, &ino, &at) != 2 || perms[2] != 'x' ||
        ino == 0 || line[at] != '/') {
        return false;
    }
    m->ino = ino;
    (void)snprintf(m->path, sizeof(m->path), "%.*s", (int)strcspn(line + at, "\n"), line + at);
    return true;
}

static int digest_fd(int fd, char out[static KX_HEX + 1], struct ct_err *err)
{
    uint8_t digest[CT_SHA256_LEN];
    ct_autosha256 *sha = ct_sha256_new(err);
    uint8_t block[BLOCK];
    ssize_t n = sha ? 1 : 0;
    while (n > 0) {
        n = read(fd, block, sizeof(block));
        if (n > 0 && ct_sha256_update(sha, block, (size_t)n, err)) {
            return -1;
        }
    }
    if (n < 0) {
        return ct_err_sys(err, errno, "read");
    }
    if (!sha || ct_sha256_take(sha, digest, err)) {
        return -1;
    }
    ct_hex(out, digest, sizeof(digest));
    return 0;
}

static int add_item(json_t *items, const char *kind, const char *path, int fd, struct ct_err *err)
{
    char digest[KX_HEX + 1];
    const char *slash = strrchr(path, '/');
    if (digest_fd(fd, digest, err)) {
        return ct_err_wrap(err, "%s", path);
    }
    return json_array_append_new(items, json_pack("{s:s,s:s,s:s}", "kind", kind, "name",
                                                  slash ? slash + 1 : path, "sha256", digest))
               ? ct_err_set(err, CT_NOMEM, "no memory for measurements")
               : 0;
}

static int add_library(json_t *items, const struct mapping *m, struct ct_err *err)
{
    struct stat st;
    ct_autofd fd = open(m->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st)) {
        return ct_err_sys(err, errno, "%s", m->path);
    }
    /* The device is not compared: overlay and btrfs show another one in maps than in stat. */
    if (st.st_ino != m->ino) {
        return ct_err_set(err, CT_STALE, "%s was replaced since it was loaded: start anew",
                          m->path);
    }
    return add_item(items, "library", m->path, fd, err);
}

static int add_mapped(json_t *items, const struct stat *self, struct ct_err *err)
{
    static struct mapping m;
    char *line = NULL;
    size_t cap = 0;
    ino_t last = self->st_ino;
    int r = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    if (!maps) {
        return ct_err_sys(err, errno, "/proc/self/maps");
    }
    while (r == 0 && getline(&line, &cap, maps) > 0) {
        /* A library has one run of lines, and mostly one of code. */
        if (parse_line(line, &m) && m.ino != self->st_ino && m.ino != last) {
            last = m.ino;
            r = add_library(items, &m, err);
        }
    }
    free(line);
    (void)fclose(maps);
    return r;
}

json_t *kc_measure(const char *profile, const struct kc_measured *more, size_t n,
                   struct ct_err *err)
{
    struct stat self;
    json_t *items = json_array();
    ct_autofd fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &self)) {
        ct_err_sys(err, errno, "/proc/self/exe");
    } else if (add_item(items, "executable", "kvfs", fd, err) == 0 &&
               add_mapped(items, &self, err) == 0) {
        for (size_t i = 0; i < n; i++) {
            json_array_append_new(items, json_pack("{s:s,s:s,s:s}", "kind", more[i].kind, "name",
                                                   more[i].name, "sha256", more[i].sha256));
        }
        return json_pack("{s:s,s:o}", "profile", profile, "items", items);
    }
    json_decref(items);
    return NULL;
}
