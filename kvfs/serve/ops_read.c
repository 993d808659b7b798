#include "kvfs/serve/serve.h"

void kvfs_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)ino;
    struct kvfs_serve *s = fuse_req_userdata(req);
    struct kvfs_handle *h = (struct kvfs_handle *)(uintptr_t)fi->fh;
    pthread_mutex_lock(&h->lock);
    if (!h->content) {
        size_t all = h->snapshot.len;
        size_t at = (uint64_t)off < all ? (size_t)off : all;
        struct iovec iov = {h->snapshot.data + at, all - at < size ? all - at : size};
        kvfs_reply_data(s, req, &iov, 1);
        pthread_mutex_unlock(&h->lock);
        return;
    }
    struct kvfs_node *node = h->node;
    struct kvfs_content *content = kvfs_content_ref(h->content);
    bool direct = h->direct;
    pthread_mutex_unlock(&h->lock);
    kvfs_chunks_read(s->chunks, req, node, content, (uint64_t)off, size, direct);
    kvfs_content_unref(content);
}
