/*
 * The audit: every decision of a mount is one line of JSON, chained to the one before it by its
 * digest. The chain is that of keyserver/PROTOCOL.md section 3, whose section 9 has the records'
 * members, so that a file and a key server hold the same one.
 *
 *     body    what happened: `"time":…,"event":…,…}`
 *     record  body with `{"chain":ID,"n":NUMBER,` before it: what is digested, and sent to a server
 *     line    record with `,"head":H(n)` before the last `}`: what stands in a file
 *
 * A file may hold many chains, interleaved: one a mount and one a lease. Worker and supervisor each
 * make the record out of the body and the chain as they know it; neither has to believe the other.
 */
#ifndef KVFS_AUDIT_CHAIN_H
#define KVFS_AUDIT_CHAIN_H

#include "format/protocol/digest.h"

enum {
    KVFS_AUDIT_ID = 32,         /* hexadecimal digits: of the lease, or random */
    KVFS_AUDIT_BODY_MAX = 3900, /* bytes; with its beginning, a record has at most the 4,096 that a
                                   server takes */
    KVFS_AUDIT_TEXT_MAX = 256   /* of one text in it, with the NUL; longer ones are cut */
};

/* Records after which a signature is due, and after how many a verifier misses it. */
enum { KVFS_AUDIT_SIGN_EVERY = 64, KVFS_AUDIT_SIGN_LATEST = 128 };
#define KVFS_AUDIT_TYP "kvfs-chain+jws"

struct kvfs_audit_chain {
    char id[KVFS_AUDIT_ID + 1];
    int64_t count;         /* of records */
    char head[KX_HEX + 1]; /* H(count) */
};

int kvfs_audit_start(struct kvfs_audit_chain *c, const char *id, struct ct_err *err);

/* Appends to `out` the body of an event that happens now; `details` (an object, taken over, may be
 * NULL) are its further members. CT_MALFORMED when it gets too long. */
int kvfs_audit_body(const char *event, json_t *details, struct ct_buf *out, struct ct_err *err);
/* Whether a body may stand in a line: its length, UTF-8, no control characters, its ends. */
bool kvfs_audit_body_is_sound(const char *body);

/* Appends the body's record to `record`, with a NUL that `len` does not count, and moves the chain.
 * On failure the chain is as it was. */
int kvfs_audit_extend(struct kvfs_audit_chain *c, const char *body, struct ct_buf *record,
                      struct ct_err *err);
/* Appends the line of the chain's latest record, with its line end. */
void kvfs_audit_line(const struct kvfs_audit_chain *c, const struct ct_buf *record,
                     struct ct_buf *line);

/* A text for a detail: cut, and never invalid UTF-8. Owned by the caller. */
json_t *kvfs_audit_text(const char *text);

#endif
