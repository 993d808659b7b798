#include <errno.h>
#include <stdlib.h>
#include <string.h>

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
    size_t n = all - at < size ? all - at : size;
    /* A copy, since the handle may be gone as well. */
    ct_autofree uint8_t *part = malloc(n ? n : 1);
    if (!part) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    if (n) {
        memcpy(part, h->snapshot.data + at, n);
    }
    kvfs_reply_data(s, req, &(struct iovec){part, n}, 1);
}
