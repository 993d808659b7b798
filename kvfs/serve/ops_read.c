#include "kvfs/serve/serve.h"

static void read_snapshot(struct kvfs_serve *s, fuse_req_t req, const struct ct_buf *b, size_t size,
                          off_t off)
{
    size_t at = (uint64_t)off < b->len ? (size_t)off : b->len;
    struct iovec iov = {b->data + at, b->len - at < size ? b->len - at : size};
    kvfs_hand_over(s);
    fuse_reply_iov(req, &iov, 1); /* no file's data: a sealed mount too says how it is */
}

void kvfs_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)ino;
    struct kvfs_serve *s = fuse_req_userdata(req);
    struct kvfs_handle *h = kvfs_handle_ref(s, fi);
    if (h->content) {
        kvfs_chunks_read(s->chunks, req, h->node, h->content, (uint64_t)off, size, h->direct);
    } else {
        read_snapshot(s, req, &h->snapshot, size, off);
    }
    kvfs_handle_unref(s, h);
}
