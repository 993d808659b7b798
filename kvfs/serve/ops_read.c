#include "kvfs/serve/serve.h"

void kvfs_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)ino;
    struct kvfs_serve *s = fuse_req_userdata(req);
    const struct kvfs_handle *h = (const struct kvfs_handle *)(uintptr_t)fi->fh;
    if (h->content) {
        /* The handle may be gone before this returns: it is released after its last reply. */
        struct kvfs_content *content = kvfs_content_ref(h->content);
        kvfs_chunks_read(s->chunks, req, h->node, content, (uint64_t)off, size, h->direct);
        kvfs_content_unref(content);
        return;
    }
    size_t all = h->snapshot.len;
    size_t at = (uint64_t)off < all ? (size_t)off : all;
    struct iovec iov = {h->snapshot.data + at, all - at < size ? all - at : size};
    kvfs_reply_data(s, req, &iov, 1);
}
