/*
 * Verifies audit lines (chain.h), one after the other, as many chains as there are. What it can
 * say: that no line up to a signature, or to a known head, was altered, removed, added or moved.
 * Whoever may write the file can make up a whole chain with a key of his own: that a chain is the
 * one that it should be is told by its key's thumbprint or a head that was kept elsewhere, such as
 * by a key server.
 */
#ifndef KVFS_AUDIT_VERIFY_H
#define KVFS_AUDIT_VERIFY_H

#include "format/protocol/jose.h"
#include "kvfs/audit/chain.h"

/* One chain, as far as it has been read. */
struct kvfs_audit_read {
    struct kvfs_audit_chain chain; /* the head is that of the latest line, right or wrong */
    char mount[KVFS_AUDIT_ID + 1]; /* of a lease: the mount's chain; "" for a mount's own */
    char about[256];               /* OWNER/NAME, or the mount point */
    json_t *key;                   /* named by its first line; NULL: none that can sign */
    char thumbprint[KX_THUMBPRINT + 1];
    int64_t is_signed; /* up to this record */
    bool ended;        /* by the worker, as it should be */
    bool orphaned;     /* the worker died: what follows can't be signed */
    bool failed;       /* there was none, and no key: the chain is one line */
};

/* Told of each fault: the number of the line, from 1 (0: of the whole), and a sentence. */
typedef void (*kvfs_audit_fault_fn)(void *ctx, size_t line, const char *sentence);

struct kvfs_audit_verifier {
    kvfs_audit_fault_fn fault;
    void *ctx;
    const char *wanted; /* head that has to occur, or NULL; borrowed */
    int64_t behind;     /* records of its chain after it; -1: not found yet */
    struct kvfs_audit_read *found_in;
    struct kvfs_audit_read **chains;
    size_t count, room;
    char (*leases)[KVFS_AUDIT_ID + 1]; /* that a mount's chain names */
    size_t lease_count, lease_room;
    size_t lines, faults;
};

/* Zero-initialised but for fault, ctx and wanted; `behind` is -1. */
void kvfs_audit_verify_init(struct kvfs_audit_verifier *v, const char *wanted,
                            kvfs_audit_fault_fn fault, void *ctx);
/* A line without its line end; `whole` false: it has none. -1 only without memory; faults are told
 * and counted. */
int kvfs_audit_verify_line(struct kvfs_audit_verifier *v, const char *line, size_t n, bool whole,
                           struct ct_err *err);
/* What shows only at the end. */
void kvfs_audit_verify_end(struct kvfs_audit_verifier *v);
void kvfs_audit_verify_free(struct kvfs_audit_verifier *v);

#endif
