/*
 * The worker's state, and the functions that its parts share.
 *
 * Files: worker.c (start, sandbox, session loop), ops_tree.c (lookup, getattr, readdir, open, …),
 * node.c (table of nodes), judge.c (verdicts: manifest, plain=, kinds), source.c (asks the
 * supervisor), chunks.c pool.c prefetch.c ops_read.c (the read path), reply.c (errno and the only
 * reply that carries file data), statusdir.c (.kvfs/), seal.c.
 */
#ifndef KVFS_SERVE_H
#define KVFS_SERVE_H

#include <stdatomic.h>

#include "format/keyring.h"
#include "format/policy/policy.h"
#include "kvfs/mount/config.h"
#include "kvfs/mount/control.h"
#include "kvfs/serve/chunks.h"
#include "kvfs/serve/node.h"

struct kvfs_table; /* node.c */
struct kvfs_ops;

struct kvfs_serve {
    struct kvfs_config config;
    struct ct_keyring *keyring;
    struct ct_keysource *keys; /* the seam: a keyring now, an exchange later */
    struct kvfs_shared *shared;
    struct kvfs_table *table;
    struct kvfs_chunks *chunks;
    struct fuse_session *session;
    atomic_bool sealed;
    int control; /* KVFS_FD_CONTROL */
};

/* ---- source.c: what the supervisor opens for us ---- */
struct kvfs_opened {
    int fd; /* owned by the caller; -1 unless a regular file or a directory */
    struct stat st;
    bool is_link;
    char *target; /* of the link; owned by the caller; NULL if none */
};
/* `path` relative to SRC. CT_NOTFOUND, CT_LEAVES (message names the directory to mount), CT_IO. */
int kvfs_source_open(struct kvfs_serve *s, const char *path, struct kvfs_opened *out,
                     struct ct_err *err);
void kvfs_opened_release(struct kvfs_opened *o);
int kvfs_source_open_key(void *serve, const char *path, struct ct_err *err); /* ct_jku_open_fn */
int kvfs_source_ready(struct kvfs_serve *s, const char *text);
int kvfs_source_failed(struct kvfs_serve *s, const char *text);

/* ---- reply.c ---- */
/* The only function that hands file data to the kernel: tests the seal first. Answers `req`. */
void kvfs_reply_data(struct kvfs_serve *s, fuse_req_t req, const struct iovec *iov, int count);
/* The only place where a ct_err becomes an errno for a reader; counts, remembers, and logs one
 * rate-limited line (file, tensor, chunk, reason, reader). node may be NULL. */
void kvfs_reply_error(struct kvfs_serve *s, fuse_req_t req, struct kvfs_node *node,
                      const struct ct_err *err);
/* Recent failures, newest last, as a JSON array of {time,path,error,errno,pid,uid,message}. */
json_t *kvfs_reply_recent(void);
/* Recent log lines as text. */
void kvfs_log_recent(struct ct_buf *out);

/* ---- seal.c ---- */
/* Refuses from now on, fails what is parked, invalidates every node ever served, wipes keys and
 * plaintext. Idempotent; not from a FUSE or pool thread. */
void kvfs_seal(struct kvfs_serve *s, const char *why);

/* ---- what fi->fh points to ---- */
struct kvfs_handle {
    struct kvfs_node *node;       /* NULL for `.kvfs/` */
    struct kvfs_content *content; /* a reference; NULL for directories and `.kvfs/` */
    bool direct;                  /* opened with O_DIRECT */
    struct ct_buf snapshot;       /* `.kvfs/` file, or directory listing, as it was at open */
};

/* ---- ops_read.c ---- */
/* FUSE read: of a status snapshot at once, of content through kvfs_chunks_read(). */
void kvfs_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                  struct fuse_file_info *fi);

#endif
