#include <errno.h>
#include <fcntl.h>

#include "format/write/write.h"

/* A full disk is found now, not after hours. Where a file system cannot reserve, it is found when
 * it happens: glibc's posix_fallocate() would write to every block there. */
static int reserve(int fd, uint64_t len, struct ct_err *err)
{
    while (len && fallocate(fd, 0, 0, (off_t)len)) {
        if (errno == EOPNOTSUPP || errno == ENOSYS) {
            return 0;
        }
        if (errno != EINTR) {
            return ct_err_sys(err, errno, "no room for %llu bytes", (unsigned long long)len);
        }
    }
    return 0;
}

int ct_output_create(struct ct_output *o, uint64_t len, int dirfd, const char *name, mode_t mode,
                     struct ct_err *err)
{
    struct stat st;
    o->file.fd = -1;
    if (len > INT64_MAX) {
        return ct_err_set(err, CT_MALFORMED, "no file can be that large");
    }
    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        return ct_err_set(err, CT_EXISTS, "%s exists already, and nothing is overwritten", name);
    }
    if (ct_newfile_open(&o->file, dirfd, name, mode, err)) {
        return -1;
    }
    return reserve(o->file.fd, len, err) ? ct_err_wrap(err, "%s", name) : 0;
}

int ct_output_open(struct ct_output *o, struct ct_source *in, const struct ct_version *v,
                   const struct ct_header *src, uint64_t header_len, int dirfd, const char *name,
                   struct ct_err *err)
{
    uint64_t total = 0;
    if (!ct_add_u64(header_len, src->body_len, &total)) {
        total = UINT64_MAX;
    }
    if (ct_output_create(o, total, dirfd, name, 0644, err)) {
        return -1;
    }
    o->body = (struct ct_body){
        .in = in,
        .version = v,
        .in_base = CT_PREFIX + src->json_len,
        .out = o->file.fd,
        .out_base = header_len,
        .len = src->body_len,
    };
    return 0;
}

int ct_output_commit(struct ct_output *o, const struct ct_buf *header, struct ct_err *err)
{
    if (header->len != o->body.out_base) {
        return ct_err_set(err, CT_MALFORMED, "the header has %zu bytes instead of %llu",
                          header->len, (unsigned long long)o->body.out_base);
    }
    if (ct_pwrite_full(o->file.fd, header->data, header->len, 0, err) ||
        ct_source_check(o->body.in, o->body.version, err)) {
        return -1;
    }
    return ct_newfile_commit(&o->file, false, err);
}

void ct_output_abort(struct ct_output *o)
{
    ct_newfile_abort(&o->file);
}
