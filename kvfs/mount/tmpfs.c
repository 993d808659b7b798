#include "kvfs/mount/tmpfs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/base/file.h"
#include "format/base/log.h"
#include "kvfs/mount/limits.h"

/* Not in the kernel headers of Debian 12. */
struct backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};
#define BACKING_OPEN _IOW(229, 1, struct backing_map)
#define BACKING_CLOSE _IOW(229, 2, uint32_t)

struct resident {
    int fd; /* -1: free */
    uint64_t size;
    int32_t backing;
};

struct kvfs_tmpfs {
    int clone_fd;
    int dir;
    struct resident files[KVFS_TMPFS_FILES];
};

static int make_tmpfs(uint64_t limit, struct ct_err *err)
{
    char size[32];
    (void)snprintf(size, sizeof(size), "%llu", (unsigned long long)limit);
    ct_autofd fs = fsopen("tmpfs", FSOPEN_CLOEXEC);
    if (fs < 0 || fsconfig(fs, FSCONFIG_SET_STRING, "huge", "always", 0) ||
        fsconfig(fs, FSCONFIG_SET_STRING, "size", size, 0) ||
        fsconfig(fs, FSCONFIG_SET_STRING, "mode", "0700", 0)) {
        return ct_err_sys(err, errno, "tmpfs with huge pages");
    }
    /* Kernels before 6.4 can't; they have no passthrough either. */
    if (fsconfig(fs, FSCONFIG_SET_FLAG, "noswap", NULL, 0) ||
        fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0)) {
        return ct_err_sys(err, errno, "tmpfs without swap");
    }
    int dir =
        fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
    return dir >= 0 ? dir : ct_err_sys(err, errno, "tmpfs");
}

/* The mount option does not count then, and nobody says so. */
static bool huge_denied(void)
{
    ct_autobuf text = {0};
    return ct_read_file(AT_FDCWD, "/sys/kernel/mm/transparent_hugepage/shmem_enabled", 256, &text,
                        NULL) == 0 &&
           memmem(text.data, text.len, "[deny]", 6);
}

struct kvfs_tmpfs *kvfs_tmpfs_new(int clone_fd, uint64_t limit, bool only_huge, struct ct_err *err)
{
    if (only_huge && huge_denied()) {
        ct_err_set(err, CT_UNSUPPORTED, "tmpfs gets no huge pages (shmem_enabled is deny)");
        return NULL;
    }
    struct kvfs_tmpfs *r = calloc(1, sizeof(*r));
    if (!r) {
        ct_err_set(err, CT_NOMEM, "no memory");
        return NULL;
    }
    r->clone_fd = clone_fd;
    for (uint32_t i = 0; i < KVFS_TMPFS_FILES; i++) {
        r->files[i].fd = -1;
    }
    r->dir = make_tmpfs(limit, err);
    if (r->dir < 0) {
        free(r);
        return NULL;
    }
    return r;
}

int kvfs_tmpfs_dir(const struct kvfs_tmpfs *r)
{
    return r->dir;
}

static int make_file(const struct kvfs_tmpfs *r, uint32_t number, struct ct_err *err)
{
    char name[16];
    (void)snprintf(name, sizeof(name), "%u", number);
    int fd = openat(r->dir, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return fd < 0 ? ct_err_sys(err, errno, "resident file") : fd;
}

static void drop_file(struct kvfs_tmpfs *r, uint32_t number)
{
    char name[16];
    (void)snprintf(name, sizeof(name), "%u", number);
    (void)unlinkat(r->dir, name, 0);
    if (ftruncate(r->files[number].fd, 0)) {
        ct_log(CT_LOG_WARN, "resident file %u: its memory stays in use", number);
    }
    close(r->files[number].fd);
    r->files[number].fd = -1;
}

/* A lease for writing is given to the only one who has the file open; it is returned at once, since
 * whoever opens the file meanwhile would wait for it. What fails otherwise does not tell. */
static bool is_held(int fd)
{
    if (fcntl(fd, F_SETLEASE, F_WRLCK)) {
        return true;
    }
    (void)fcntl(fd, F_SETLEASE, F_UNLCK);
    return false;
}

/* Promised, and not yet taken: fallocate() counts in st_blocks as it goes on. */
static uint64_t outstanding(const struct resident *file)
{
    struct stat st;
    uint64_t taken = fstat(file->fd, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
    return file->size > taken ? file->size - taken : 0;
}

static int check_room(const struct kvfs_tmpfs *r, uint64_t more, struct ct_err *err)
{
    uint64_t promised = more;
    for (uint32_t n = 0; n < KVFS_TMPFS_FILES; n++) {
        promised += r->files[n].fd >= 0 ? outstanding(&r->files[n]) : 0;
    }
    if (promised < more || promised > kvfs_available_memory("") / 8 * 7) {
        return ct_err_set(err, CT_NOMEM, "%llu MiB of memory are not to be had",
                          (unsigned long long)promised >> 20);
    }
    return 0;
}

int kvfs_tmpfs_more(const struct kvfs_tmpfs *r, struct ct_err *err)
{
    return check_room(r, 0, err);
}

int kvfs_tmpfs_add(struct kvfs_tmpfs *r, uint64_t size, uint32_t *number, int32_t *backing, int *fd,
                   struct ct_err *err)
{
    uint32_t n = 0;
    if (check_room(r, size, err)) {
        return -1;
    }
    while (n < KVFS_TMPFS_FILES && r->files[n].fd >= 0) {
        n++;
    }
    if (n == KVFS_TMPFS_FILES) {
        return ct_err_set(err, CT_BUSY, "%d resident files are enough", KVFS_TMPFS_FILES);
    }
    r->files[n].fd = make_file(r, n, err);
    if (r->files[n].fd < 0) {
        return -1;
    }
    r->files[n].size = size;
    if (is_held(r->files[n].fd)) {
        drop_file(r, n);
        return ct_err_set(err, CT_UNSUPPORTED,
                          "a lease can't be had: nobody could tell whether a "
                          "resident file is in use");
    }
    struct backing_map map = {.fd = r->files[n].fd};
    int id = ioctl(r->clone_fd, BACKING_OPEN, &map);
    if (id <= 0) {
        ct_err_sys(err, errno, "FUSE passthrough");
        drop_file(r, n);
        return -1;
    }
    r->files[n].backing = id;
    *number = n;
    *backing = id;
    *fd = r->files[n].fd;
    return 0;
}

int kvfs_tmpfs_remove(struct kvfs_tmpfs *r, uint32_t number, struct ct_err *err)
{
    if (number >= KVFS_TMPFS_FILES || r->files[number].fd < 0) {
        return ct_err_set(err, CT_NOTFOUND, "there is no resident file %u", number);
    }
    if (is_held(r->files[number].fd)) {
        return ct_err_set(err, CT_BUSY, "somebody has it mapped");
    }
    uint32_t backing = (uint32_t)r->files[number].backing;
    if (ioctl(r->clone_fd, BACKING_CLOSE, &backing)) {
        ct_log(CT_LOG_WARN, "FUSE passthrough: a registration can't be ended");
    }
    drop_file(r, number);
    return 0;
}

void kvfs_tmpfs_revoke(int dir)
{
    for (uint32_t n = 0; n < KVFS_TMPFS_FILES; n++) {
        char name[16];
        (void)snprintf(name, sizeof(name), "%u", n);
        ct_autofd fd = openat(dir, name, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 ? errno != ENOENT : ftruncate(fd, 0) != 0) {
            ct_log(CT_LOG_ERROR, "a resident file can't be revoked: %s", strerror(errno));
        }
    }
}
