#include "kvfs/mount/seen.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "format/base/file.h"
#include "format/protocol/jose.h"

#define SEEN_NAME "seen.json"
#define SEEN_LOCK "seen.lock"
#define SEEN_DEFAULT "/var/lib/kvfs"

enum { SEEN_MAX = 4 << 20 };

int kvfs_seen_open(const char *given, struct ct_err *err)
{
    char first[4096];
    const char *named = given ? given : getenv("STATE_DIRECTORY");
    const char *dir = named ? named : SEEN_DEFAULT;
    size_t n = given ? strlen(dir) : strcspn(dir, ":"); /* systemd may name several */
    if (n >= sizeof(first)) {
        return ct_err_set(err, CT_USAGE, "option state-dir: the path is too long");
    }
    memcpy(first, dir, n);
    first[n] = '\0';
    int fd = open(first, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && (named || errno != ENOENT)) {
        return ct_err_sys(err, errno, "state directory %s", first);
    }
    return fd;
}

static json_t *read_all(int dirfd, struct ct_err *err)
{
    ct_autobuf text = {0};
    struct ct_err why = CT_ERR_INIT;
    if (ct_read_file(dirfd, SEEN_NAME, SEEN_MAX, &text, &why)) {
        if (why.sys == ENOENT) {
            return json_object();
        }
        *err = why;
        return NULL;
    }
    json_t *all = kx_json_parse(text.data, text.len, err);
    if (all && !json_is_object(all)) {
        json_decref(all);
        all = NULL;
        ct_err_set(err, CT_MALFORMED, "not an object");
    }
    return all;
}

static int write_all(int dirfd, const json_t *all, struct ct_err *err)
{
    struct ct_newfile f = {.fd = -1};
    char *text = json_dumps(all, JSON_INDENT(1) | JSON_SORT_KEYS);
    int r = !text ? ct_err_set(err, CT_NOMEM, "no memory")
            : ct_newfile_open(&f, dirfd, SEEN_NAME, 0600, err) ||
                    ct_write_full(f.fd, text, strlen(text), err) || ct_newfile_commit(&f, true, err)
                ? -1
                : 0;
    ct_newfile_abort(&f);
    free(text);
    return r;
}

/* With the lock held, if something is to be noted. */
static int look(int dirfd, const char *server_key, const char *model, int64_t generation,
                int64_t *out, struct ct_err *err)
{
    json_t *all = read_all(dirfd, err);
    if (!all) {
        return -1;
    }
    json_t *of = json_object_get(all, server_key);
    const json_t *have = json_object_get(of, model);
    int r = 0;
    if ((of && !json_is_object(of)) || (have && !json_is_integer(have))) {
        r = ct_err_set(err, CT_MALFORMED, "not the numbers of generations");
    } else {
        *out = json_integer_value(have);
        if (generation > *out) {
            if (!of) {
                of = json_object();
                json_object_set_new(all, server_key, of);
            }
            json_object_set_new(of, model, json_integer(generation));
            *out = generation;
            r = write_all(dirfd, all, err);
        }
    }
    json_decref(all);
    return r;
}

/* A file of its own: whoever may list the directory could lock that, and we would wait. */
static int take_lock(int dirfd, struct ct_err *err)
{
    int fd = openat(dirfd, SEEN_LOCK, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd >= 0 && flock(fd, LOCK_EX)) {
        ct_closep(&fd);
        fd = -1;
    }
    return fd >= 0 ? fd : ct_err_sys(err, errno, "state directory: " SEEN_LOCK);
}

int kvfs_seen(int dirfd, const char *server_key, const char *model, int64_t generation,
              int64_t *out, struct ct_err *err)
{
    /* It is replaced as a whole: who only asks needs no lock, and may not be allowed to have it. */
    ct_autofd lock = generation > 0 ? take_lock(dirfd, err) : -1;
    if (generation > 0 && lock < 0) {
        return -1;
    }
    return look(dirfd, server_key, model, generation, out, err)
               ? ct_err_wrap(err, "state directory: " SEEN_NAME)
               : 0;
}
