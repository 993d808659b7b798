#include "kvfs/mounter/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

#include "format/base/file.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

enum { FILE_MAX = 65536, READAHEAD = 1024, READAHEAD_MAX = 1 << 20, LOCK_TURNS = 20 };
enum { SILENCE = 10, SILENCE_MAX = 86400 };

static int set_number(const char *value, uint32_t most, uint32_t *out, struct ct_err *err)
{
    char *end = NULL;
    errno = 0;
    unsigned long long n = strtoull(value, &end, 10);
    if (*value < '0' || *value > '9' || *end || errno || n > most) {
        return ct_err_set(err, CT_USAGE, "'%s' is no number up to %u", value, most);
    }
    *out = (uint32_t)n;
    return 0;
}

static int set_path(const char *value, char *out, size_t cap, struct ct_err *err)
{
    if (*value != '/' || strlen(value) >= cap) {
        return ct_err_set(err, CT_USAGE, "'%s' is no absolute path of less than %zu characters",
                          value, cap);
    }
    memcpy(out, value, strlen(value) + 1);
    return 0;
}

static int set_target(struct km_config *c, char *value, struct ct_err *err)
{
    return set_path(value, c->target, sizeof(c->target), err);
}

static int set_socket(struct km_config *c, char *value, struct ct_err *err)
{
    return set_path(value, c->socket, sizeof(c->socket), err);
}

static int set_uid(struct km_config *c, char *value, struct ct_err *err)
{
    c->uid_set = true;
    return set_number(value, UINT32_MAX - 1, &c->uid, err);
}

static int set_gid(struct km_config *c, char *value, struct ct_err *err)
{
    c->gid_set = true;
    return set_number(value, UINT32_MAX - 1, &c->gid, err);
}

static int set_readahead(struct km_config *c, char *value, struct ct_err *err)
{
    return set_number(value, READAHEAD_MAX, &c->readahead_kb, err);
}

static int set_silence(struct km_config *c, char *value, struct ct_err *err)
{
    return set_number(value, SILENCE_MAX, &c->silence_s, err);
}

static int set_options(struct km_config *c, char *value, struct ct_err *err)
{
    static const struct {
        const char *name;
        size_t at;
    } known[] = {{"allow-other", offsetof(struct km_config, allow_other)},
                 {"nosymfollow", offsetof(struct km_config, nosymfollow)}};
    char *save = NULL;
    for (char *word = strtok_r(value, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
        size_t i = 0;
        while (i < COUNT(known) && strcmp(word, known[i].name) != 0) {
            i++;
        }
        if (i == COUNT(known)) {
            return ct_err_set(err, CT_USAGE, "'%s' is none of allow-other, nosymfollow", word);
        }
        *(bool *)((char *)c + known[i].at) = true;
    }
    return 0;
}

static const struct {
    const char *name;
    int (*set)(struct km_config *c, char *value, struct ct_err *err);
} rows[] = {{"target", set_target},  {"socket", set_socket},   {"uid", set_uid},
            {"gid", set_gid},        {"options", set_options}, {"readahead", set_readahead},
            {"silence", set_silence}};

static int take_line(struct km_config *c, char *line, bool seen[static COUNT(rows)],
                     struct ct_err *err)
{
    char *save = NULL;
    line[strcspn(line, "#")] = '\0';
    char *name = strtok_r(line, " \t", &save);
    char *value = strtok_r(NULL, " \t", &save);
    if (!name) {
        return 0;
    }
    for (size_t i = 0; i < COUNT(rows); i++) {
        if (strcmp(name, rows[i].name) == 0) {
            if (!value || strtok_r(NULL, " \t", &save)) {
                return ct_err_set(err, CT_USAGE, "%s takes one value", name);
            }
            if (seen[i]) {
                return ct_err_set(err, CT_USAGE, "%s is there twice", name);
            }
            seen[i] = true;
            return rows[i].set(c, value, err) ? ct_err_wrap(err, "%s", name) : 0;
        }
    }
    return ct_err_set(err, CT_USAGE, "'%s' is no setting", name);
}

static int parse(struct km_config *c, char *text, struct ct_err *err)
{
    bool seen[COUNT(rows)] = {false};
    unsigned number = 1;
    for (char *line = text; line; number++) {
        char *next = strchr(line, '\n');
        if (next) {
            *next++ = '\0';
        }
        if (take_line(c, line, seen, err)) {
            return ct_err_wrap(err, "line %u", number);
        }
        line = next;
    }
    if (!*c->target || !c->uid_set) {
        return ct_err_set(err, CT_USAGE, "target and uid have to be there");
    }
    c->gid = c->gid_set ? c->gid : c->uid;
    return 0;
}

/* The keeper of a mounter that died has the lock until it has unmounted. */
static int lock(int fd, struct ct_err *err)
{
    const struct timespec pause = {.tv_nsec = 100000000};
    for (int turn = 0; flock(fd, LOCK_EX | LOCK_NB); turn++) {
        if (errno != EWOULDBLOCK) {
            return ct_err_sys(err, errno, "flock");
        }
        if (turn == LOCK_TURNS) {
            return ct_err_set(err, CT_BUSY, "a mounter has it already");
        }
        (void)nanosleep(&pause, NULL);
    }
    return 0;
}

static int read_file(int fd, struct km_config *c, struct ct_err *err)
{
    struct stat st;
    ct_autobuf text = {0};
    if (fstat(fd, &st)) {
        return ct_err_sys(err, errno, "stat");
    }
    if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_mode & (S_IWGRP | S_IWOTH)) {
        return ct_err_set(err, CT_USAGE,
                          "it must be a file of uid %u that nobody else may write: chown %u, "
                          "chmod go-w",
                          geteuid(), geteuid());
    }
    if (lock(fd, err) || ct_read_fd(fd, FILE_MAX, &text, err)) {
        return -1;
    }
    if (memchr(text.data ? (const char *)text.data : "", '\0', text.len)) {
        return ct_err_set(err, CT_USAGE, "it is no text");
    }
    ct_buf_putc(&text, '\0');
    return ct_buf_ok(&text, err) ? -1 : parse(c, (char *)text.data, err);
}

int km_config_read(const char *path, struct km_config *out, struct ct_err *err)
{
    *out = (struct km_config){.readahead_kb = READAHEAD, .silence_s = SILENCE};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return ct_err_sys(err, errno, "%s", path);
    }
    if (read_file(fd, out, err)) {
        close(fd);
        return ct_err_wrap(err, "%s", path);
    }
    return fd;
}
