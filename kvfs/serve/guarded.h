/*
 * The worker's end of the link to the guard (kvfs/mount/guard_link.h): asks whether somebody may
 * read and what to say in the evidence, and is told to seal.
 */
#ifndef KVFS_SERVE_GUARDED_H
#define KVFS_SERVE_GUARDED_H

#include "kvfs/serve/open.h"

struct kvfs_guarded *kvfs_guarded_new(int fd, uint32_t gap_ms, struct ct_err *err);
int kvfs_guarded_fd(const struct kvfs_guarded *g); /* -1 for NULL */

/* Takes one message off the link. 0; -1 when the mount has to be sealed, with why. From the
 * watching thread. */
int kvfs_guarded_take(struct kvfs_guarded *g, struct ct_err *err);
/* -1 with why when nothing was heard for too long. */
int kvfs_guarded_listen(struct kvfs_guarded *g, struct ct_err *err);

/* Whether the process may open a file; then `exe` is its executable, for the audit, or "".
 * CT_UNADMITTED, also when the guard does not answer. Not from the watching thread. */
int kvfs_guarded_admit(struct kvfs_guarded *g, pid_t pid, char exe[static KVFS_EXE_MAX],
                       struct ct_err *err);
/* A whole run now: {"state", "findings"}, owned by the caller. NULL: CT_UNADMITTED. */
json_t *kvfs_guarded_report(struct kvfs_guarded *g, struct ct_err *err);

/* The worker's last word, when keys and plaintext are gone: how a process ends is no drift (a
 * sanitizer's traces itself then). Returns when the guard looks no more. Nothing for NULL. */
void kvfs_guarded_leave(struct kvfs_guarded *g);

#endif
