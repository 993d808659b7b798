/* What every module stands on: errors, bytes, files, secrets. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "format/base/bytes.h"
#include "format/base/file.h"
#include "format/base/secret.h"
#include "format/base/spread.h"

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
}

TestSuite(base, .init = setup);

Test(base, an_error_keeps_its_reason)
{
    struct ct_err err = CT_ERR_INIT;
    char path[2000];
    memset(path, 'p', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    ct_err_set(&err, CT_TAG, "chunk %d: tag does not match", 2);
    ct_err_wrap(&err, "tensor w0");
    ct_err_wrap(&err, "%s", path);
    cr_expect(strstr(err.msg, "tensor w0: chunk 2: tag does not match"), "%s", err.msg);
    cr_expect_eq(ct_err_errno(&err), EBADMSG);
    for (int code = 1; code < CT_CODE_COUNT; code++) {
        cr_expect(ct_code_errno(code) > 0);
        cr_expect(strlen(ct_code_name(code)) > 0);
    }
}

static const struct {
    const char *text;
    int len; /* -1: refused */
} base64[] = {
    {"", 0},      {"TQ==", 1},    {"TWE=", 2},  {"TWFu", 3},  {"TQ", 1},    {"TWE", 2},
    {"_-8=", 2},  {"/+8=", 2},    {"_-8", 2},   {"A===", -1}, {"====", -1}, {"TQ=", -1},
    {"T Q=", -1}, {"TQ==\n", -1}, {"/-8=", -1}, {"TR==", -1}, {"T", -1},    {"TWFuA", -1},
};

Test(base, base64_is_strict)
{
    for (size_t i = 0; i < sizeof(base64) / sizeof(base64[0]); i++) {
        uint8_t out[16];
        cr_expect_eq(ct_base64_decode(base64[i].text, strlen(base64[i].text), out, sizeof(out)),
                     base64[i].len, "%s", base64[i].text);
    }
    uint8_t small[2];
    cr_expect_eq(ct_base64_decode("TWFu", 4, small, sizeof(small)), -1, "more than fits");
}

static const struct {
    const char *bytes;
    size_t n;
    bool good;
} utf8[] = {
    {"a", 1, true},
    {"\xc3\xa9", 2, true},
    {"\xe2\x82\xac", 3, true},
    {"\xf0\x9f\x98\x80", 4, true},
    {"\0", 1, true},
    {"\xc0\x80", 2, false},
    {"\xed\xa0\x80", 3, false},
    {"\xf4\x90\x80\x80", 4, false},
    {"\xe2\x82", 2, false},
    {"\x80", 1, false},
    {"\xf8\x88\x80\x80\x80", 5, false},
    {"\xe0\x80\x80", 3, false},
};

Test(base, utf8)
{
    for (size_t i = 0; i < sizeof(utf8) / sizeof(utf8[0]); i++) {
        cr_expect_eq(ct_utf8_ok((const uint8_t *)utf8[i].bytes, utf8[i].n), utf8[i].good, "%zu", i);
    }
}

Test(base, utf8_is_cut_between_characters)
{
    static const char text[] = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"
                               "b";
    static const size_t kept[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 11, 11};
    for (size_t most = 0; most < sizeof(kept) / sizeof(kept[0]); most++) {
        char copy[sizeof(kept) / sizeof(kept[0])];
        cr_expect_eq(ct_utf8_cut(text, strlen(text), most), kept[most], "%zu", most);
        ct_utf8_copy(copy, most + 1, text);
        cr_expect_eq(strlen(copy), kept[most]);
        cr_expect_eq(memcmp(copy, text, kept[most]), 0);
    }
    cr_expect_eq(ct_utf8_cut("\x80\x80\x80\x80\x80", 5, 4), 4, "not UTF-8: anywhere");
    for (int pad = 0; pad < 4; pad++) {
        struct ct_err err = CT_ERR_INIT;
        char name[2 * CT_ERR_MSG_MAX + 8] = "xxx";
        for (size_t n = (size_t)pad; n < sizeof(name) - 4; n += 4) {
            (void)snprintf(name + n, sizeof(name) - n, "\xf0\x9f\x98\x80");
        }
        ct_err_set(&err, CT_IO, "%s", name);
        cr_expect(ct_utf8_ok((uint8_t *)err.msg, strlen(err.msg)), "%s", err.msg);
        ct_err_wrap(&err, "%s", name + pad);
        cr_expect(ct_utf8_ok((uint8_t *)err.msg, strlen(err.msg)), "%s", err.msg);
    }
}

Test(base, a_new_file_appears_whole_or_not_at_all)
{
    char dir[] = "/tmp/kvfs-base.XXXXXX";
    struct ct_err err = CT_ERR_INIT;
    struct ct_newfile f;
    struct stat st;
    cr_assert(mkdtemp(dir));
    int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    cr_assert_eq(ct_newfile_open(&f, dirfd, "x", 0600, &err), 0, "%s", err.msg);
    cr_assert_eq(ct_write_full(f.fd, "abc", 3, &err), 0);
    cr_expect_eq(fstatat(dirfd, "x", &st, 0), -1, "it is there before commit");
    cr_expect_eq(ct_newfile_commit(&f, false, &err), 0, "%s", err.msg);
    cr_expect_eq(fstatat(dirfd, "x", &st, 0), 0);
    cr_expect_eq(st.st_size, 3);

    cr_assert_eq(ct_newfile_open(&f, dirfd, "x", 0600, &err), 0);
    cr_expect_eq(ct_newfile_commit(&f, false, &err), -1, "overwritten");
    cr_expect_eq(err.code, CT_EXISTS);

    cr_assert_eq(ct_newfile_open(&f, dirfd, "y", 0600, &err), 0);
    ct_newfile_abort(&f);
    ct_newfile_abort(&f);
    cr_expect_eq(unlinkat(dirfd, "x", 0), 0);
    close(dirfd);
    cr_expect_eq(rmdir(dir), 0, "something was left behind");
}

Test(base, a_source_that_changes_is_stale)
{
    char path[] = "/tmp/kvfs-base.XXXXXX";
    int fd = mkstemp(path);
    struct ct_err err = CT_ERR_INIT;
    struct ct_version v;
    char buf[8];
    cr_assert(fd >= 0);
    cr_assert_eq(ct_write_full(fd, "12345678", 8, &err), 0);
    struct ct_source *s = ct_source_fd(open(path, O_RDONLY | O_CLOEXEC), &err);
    cr_assert_eq(s->ops->version(s, &v, &err), 0);
    cr_expect_eq(ct_source_read(s, buf, 8, 0, &v, &err), 0);
    cr_expect_eq(ct_source_read(s, buf, 8, 1, &v, &err), -1);
    cr_expect_eq(err.code, CT_MALFORMED, "beyond the end of an unchanged file");
    cr_assert_eq(ftruncate(fd, 4), 0);
    cr_expect_eq(ct_source_read(s, buf, 8, 0, &v, &err), -1);
    cr_expect_eq(err.code, CT_STALE, "truncated");
    cr_expect_eq(ct_source_check(s, &v, &err), -1);
    cr_expect_eq(ct_source_check_data(s, &v, &err), -1);
    ct_source_close(s);
    close(fd);
    unlink(path);
}

Test(base, each_part_is_taken_once)
{
    for (uint64_t all = 0; all <= 100; all++) {
        bool taken[100] = {false};
        for (uint64_t n = 0; n < all; n++) {
            uint64_t part = ct_spread(n, all);
            cr_assert(part < all && !taken[part], "%d of %d", (int)n, (int)all);
            taken[part] = true;
        }
    }
}

Test(base, what_is_in_memory_is_near)
{
    int fd = memfd_create("near", MFD_CLOEXEC);
    cr_assert(fd >= 0 && ftruncate(fd, 1 << 20) == 0);
    struct ct_source *s = ct_source_fd(fd, NULL);
    cr_expect(ct_source_is_near(s, 0, 1 << 20));
    ct_source_close(s);
}

Test(base, taking_the_last_name_away_is_no_change)
{
    char path[] = "/tmp/kvfs-base.XXXXXX";
    struct ct_err err = CT_ERR_INIT;
    struct ct_version v;
    int fd = mkstemp(path);
    cr_assert(fd >= 0);
    struct ct_source *s = ct_source_fd(fd, &err);
    cr_assert_eq(s->ops->version(s, &v, &err), 0);
    unlink(path);
    cr_expect_eq(ct_source_check(s, &v, &err), 0, "%s", err.msg);
    ct_source_close(s);
}

Test(base, secrets_are_counted_and_wiped)
{
    size_t before = ct_secret_total();
    struct ct_secret *s = ct_secret_from("0123456789abcdef", 16, NULL);
    cr_assert(s);
    cr_expect_eq(ct_secret_total(), before + 16);
    ct_secret_wipe_all();
    for (size_t i = 0; i < 16; i++) {
        cr_expect_eq(ct_secret_peek(s)[i], 0);
    }
    ct_secret_free(s);
    cr_expect_eq(ct_secret_total(), before);
}
