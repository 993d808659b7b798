/* Files that appear whole: also on file systems that know no RENAME_NOREPLACE (NFS, many in user
 * space), for which the renameat2() below stands. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "format/base/file.h"

static int old_file_system;

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags)
{
    if (flags && old_file_system) {
        errno = EINVAL;
        return -1;
    }
    if (flags && faccessat(to_fd, to, F_OK, 0) == 0) {
        errno = EEXIST;
        return -1;
    }
    return renameat(from_fd, from, to_fd, to);
}

static int put(int dirfd, const char *text, bool replace, struct ct_err *err)
{
    struct ct_newfile f;
    cr_assert_eq(ct_newfile_open(&f, dirfd, "file", 0644, err), 0);
    cr_assert_eq(ct_write_full(f.fd, text, strlen(text), err), 0);
    int r = ct_newfile_commit(&f, replace, err);
    cr_expect_neq(faccessat(dirfd, f.tmp, F_OK, 0), 0, "%s is left", f.tmp);
    return r;
}

static void expect_content(int dirfd, const char *text)
{
    struct ct_err err = CT_ERR_INIT;
    ct_autobuf have = {0};
    cr_assert_eq(ct_read_file(dirfd, "file", 100, &have, &err), 0, "%s", err.msg);
    cr_expect_eq(ct_cmp_bytes(have.data, have.len, text, strlen(text)), 0);
}

Test(newfile, never_over_another)
{
    for (old_file_system = 0; old_file_system < 2; old_file_system++) {
        char path[] = "/tmp/kvfs-newfile.XXXXXX";
        struct ct_err err = CT_ERR_INIT;
        cr_assert(mkdtemp(path));
        int dirfd = open(path, O_RDONLY | O_DIRECTORY);
        cr_expect_eq(put(dirfd, "one", false, &err), 0, "%s", err.msg);
        cr_expect_eq(put(dirfd, "two", false, &err), -1);
        cr_expect_eq(err.code, CT_EXISTS, "%s", err.msg);
        expect_content(dirfd, "one");
        cr_expect_eq(put(dirfd, "three", true, &err), 0, "%s", err.msg);
        expect_content(dirfd, "three");
        unlinkat(dirfd, "file", 0);
        close(dirfd);
        cr_expect_eq(rmdir(path), 0, "something is left in %s", path);
    }
}
