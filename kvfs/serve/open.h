/* An open on its way, which may have to wait for a file to become resident. ops_open.c */
#ifndef KVFS_SERVE_OPEN_H
#define KVFS_SERVE_OPEN_H

#include "kvfs/serve/serve.h"

enum { KVFS_EXE_MAX = 256 };

struct kvfs_opening {
    struct kvfs_opening *next;
    struct kvfs_serve *s;
    fuse_req_t req;
    struct kvfs_node *node;
    struct kvfs_handle *handle; /* once the content is there */
    struct fuse_file_info fi;
    unsigned uid;
    pid_t pid;
    char exe[KVFS_EXE_MAX]; /* of an admitted reader, as far as it is known */
};

/* Each answers the request and frees `o`. `backing` 0: through the page cache, else a registered
 * file (passthrough.h). */
void kvfs_open_answer(struct kvfs_opening *o, int32_t backing);
void kvfs_open_fail(struct kvfs_opening *o, const struct ct_err *err);

#endif
