/*
 * The worker's half of the audit (kvfs/audit/chain.h): what happens is queued, which never waits;
 * one thread has the supervisor write it, chains it and signs; another sends the chains of leases
 * to the key server, after each signature.
 *
 * Without memory or a place to write, events are lost, and how many is an event. What readers do is
 * folded: the same within ten seconds is one record, with a count; and so many a second, no more.
 * Paths, process and user IDs, errors and public keys are recorded; never content, never a secret.
 */
#ifndef KVFS_SERVE_AUDIT_H
#define KVFS_SERVE_AUDIT_H

#include "keyclient/audit.h"
#include "kvfs/audit/chain.h"
#include "kvfs/serve/leases.h"

/* Makes or takes the key and begins the mount's chain. Does nothing unless config.audit; then all
 * others do nothing either. */
int kvfs_audit_begin(struct kvfs_serve *s, struct ct_err *err);
/* The threads, once the sandbox is closed. */
int kvfs_audit_run(struct kvfs_serve *s, struct ct_err *err);
/* Ends all chains, writes and signs what is queued, and sends it once more. s->ended is set by
 * then. May be called twice. */
void kvfs_audit_stop(struct kvfs_serve *s);
void kvfs_audit_free(struct kvfs_serve *s);

/* A decision: in the lease's chain, or with NULL or before its release in the mount's. `details`
 * (an object, may be NULL) is taken over. Any thread, any lock but the audit's own. */
void kvfs_audit_event(struct kvfs_serve *s, const struct kvfs_lease *l, const char *event,
                      json_t *details);
/* The same in every chain. */
void kvfs_audit_event_everywhere(struct kvfs_serve *s, const char *event, json_t *details);
/* The same of an attempt that may fail again and again: folded. */
void kvfs_audit_failure(struct kvfs_serve *s, const struct kvfs_lease *l, const char *event,
                        const struct ct_err *why);
/* A lease was released: begins its chain. From its renewing thread, without its lock. */
void kvfs_audit_release(struct kvfs_lease *l);
/* A reader's open was admitted (`why` NULL), or something was refused to it. `exe`: its executable,
 * where known, or "" or NULL. Before the answer. */
void kvfs_audit_reader(struct kvfs_serve *s, const struct kvfs_node *node,
                       const struct fuse_ctx *reader, const char *exe, const struct ct_err *why);
/* {"code", "detail"} of an error. */
json_t *kvfs_audit_why(const struct ct_err *why);

#endif
