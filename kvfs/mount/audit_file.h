/*
 * The supervisor's half of the audit (kvfs/audit/chain.h). It owns the file, since it outlives the
 * worker and the worker can't write to it; it makes each line itself, out of what the worker says
 * happened, and chains it. When the worker is dead it goes on with the chains, and marks its lines
 * as unsigned.
 *
 * What the disk does not take is kept, up to KVFS_AUDIT_BACKLOG bytes, and written as soon as it
 * does; beyond that the worker is told to wait, which its readers don't. Nothing is synced: lines
 * outlive processes, not a crash of the machine.
 */
#ifndef KVFS_MOUNT_AUDIT_FILE_H
#define KVFS_MOUNT_AUDIT_FILE_H

#include <stdbool.h>

#include "format/base/err.h"

enum { KVFS_AUDIT_BACKLOG = 256 << 10 };

struct kvfs_audit_file;

/* Opens or makes the file (NULL: none), which is to be the caller's, readable for nobody else but
 * its group, and used by no other mount. Lines are appended. `log`: they go to the log too. To be
 * called before the mount is there. */
struct kvfs_audit_file *kvfs_audit_file_open(const char *file, bool log, struct ct_err *err);
/* The descriptor that the keeper must not hold; -1: none. */
int kvfs_audit_file_fd(const struct kvfs_audit_file *f);

/* An event of the worker's: `chain` is new or known, `body` as of chain.h, both checked here, since
 * the worker is not believed. "" and "": it only asks. Then `note` has what the worker is to record
 * in all of its chains, EVENT SENTENCE, or is "". CT_BUSY: later; CT_MALFORMED: no worker sends
 * that. */
int kvfs_audit_file_take(struct kvfs_audit_file *f, const char *chain, const char *body, char *note,
                         size_t cap, struct ct_err *err);

/* Something that the supervisor saw ("drift", …): the worker is given it when it asks next, within
 * a second, to sign and to send it; if it is dead, or dies before, it is written unsigned. `event`
 * is one word of letters and `-`. NULL for f is allowed. */
void kvfs_audit_note(struct kvfs_audit_file *f, const char *event, const char *sentence);
/* No worker came to be, and so no key: the one line of a chain, unsigned. NULL for f is allowed. */
void kvfs_audit_file_failed(struct kvfs_audit_file *f, const char *mountpoint,
                            const struct ct_err *why);
/* The worker is dead: `how` is NULL if it ended as it should. */
void kvfs_audit_file_worker_ended(struct kvfs_audit_file *f, const char *how);

#endif
