/*
 * Between the worker, which has no socket(2), and a courier, which has no secret: one request at a
 * time over a stream socket, and its answer. What is carried is JSON of keyserver/PROTOCOL.md,
 * signed or encrypted where it matters, so that the courier is trusted no more than a proxy.
 *
 *     request: struct kvfs_carry_request, then `size` bytes
 *     answer:  struct kvfs_carry_answer, then `size` bytes
 *
 * Each side checks sizes before it reserves memory, and ends when the other is gone or makes no
 * sense.
 */
#ifndef KVFS_MOUNT_CARRY_H
#define KVFS_MOUNT_CARRY_H

#include "format/base/bytes.h"
#include "format/base/err.h"

/* An answer with the headers of a whole model in base64. */
enum { KVFS_CARRY_MAX = 384 << 20, KVFS_CARRY_PATH = 256 };

struct kvfs_carry_request {
    uint32_t size;
    uint32_t seconds; /* that the server may take */
    char method[8];
    char path[KVFS_CARRY_PATH]; /* absolute, with the query */
};

struct kvfs_carry_answer {
    uint32_t status; /* HTTP's; 0: no answer, and the bytes are a sentence that says why */
    uint32_t size;
};

/* The worker's side: sends and waits for `seconds` and a little more, or until `stop` (a
 * descriptor; -1: none) can be read. `answer` is appended to. -1 with CT_IO when the courier is
 * gone, silent or makes no sense: the socket is of no use then. */
int kvfs_carry_call(int sock, int stop, const struct kvfs_carry_request *request,
                    const uint8_t *body, unsigned *status, struct ct_buf *answer,
                    struct ct_err *err);

/* The courier's side. 1, 0 at the end, or -1; `body` is appended to. */
int kvfs_carry_next(int sock, struct kvfs_carry_request *request, struct ct_buf *body,
                    struct ct_err *err);
int kvfs_carry_answer(int sock, unsigned status, const uint8_t *bytes, size_t n,
                      struct ct_err *err);

#endif
