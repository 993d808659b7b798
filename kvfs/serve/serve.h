/*
 * The worker's state, and the functions that its parts share.
 *
 * Files: worker.c (start, sandbox, session loop), ops_tree.c (lookup, getattr, readdir, …),
 * ops_open.c, ops_refuse.c, node.c (table of nodes), judge.c (verdicts: manifest, plain=, kinds),
 * rules.c (which manifest governs), source.c (asks the supervisor), leases.c lease.c gather.c (keys
 * from a server), guarded.c (the guard), audit*.c, chunks.c at_once.c ahead.c store.c edges.c
 * takeback.c slots.c pool.c fetch.c prefetch.c ops_read.c (the read path), reply.c (errno and the
 * only reply that carries file data), statusdir.c (.kvfs/), seal.c.
 */
#ifndef KVFS_SERVE_H
#define KVFS_SERVE_H

#include <stdatomic.h>

#include "format/base/log.h"
#include "format/keyring.h"
#include "format/policy/policy.h"
#include "kvfs/mount/config.h"
#include "kvfs/mount/control.h"
#include "kvfs/serve/chunks.h"
#include "kvfs/serve/node.h"
#include "kvfs/serve/passthrough.h"

struct kvfs_audit;        /* audit.h */
struct kvfs_judge;        /* rules.c */
struct kvfs_leases;       /* leases.h */
struct kvfs_guarded;      /* guarded.h */
struct kvfs_resident_set; /* resident.c */

struct kvfs_serve {
    struct kvfs_config config;
    struct ct_keyring *keyring;
    struct ct_keysource *keys;    /* of the ring; NULL with a key server */
    struct kvfs_guarded *guarded; /* NULL: no guard watches */
    struct kvfs_leases *leases;   /* NULL with local keys */
    struct kvfs_audit *audit;     /* NULL: nobody wants it */
    struct kvfs_shared *shared;
    struct kvfs_table *table;
    struct kvfs_judge *judge;
    struct kvfs_chunks *chunks;
    struct kvfs_resident_set *residents;
    struct fuse_session *session;
    struct kvfs_passthrough passthrough;
    atomic_bool sealed;
    atomic_flag sealing;
    struct ct_err seal_why; /* once it is sealed */
    atomic_uint handed;     /* see kvfs_hand_over() */
    int control;            /* KVFS_FD_CONTROL */
    int ended;              /* an eventfd: the session is over */
    int asked;              /* an eventfd: somebody asked for a seal */
    atomic_bool taken;      /* sealed, and everything is taken back */
    int64_t started;        /* seconds since the epoch */
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
/* A file of the supervisor's tmpfs for `bytes` bytes (kvfs/mount/tmpfs.h). Its descriptor, the
 * caller's, or -1. */
int kvfs_source_resident(struct kvfs_serve *s, uint64_t bytes, uint32_t *number, int32_t *backing,
                         struct ct_err *err);
/* Before each part of its memory is taken: CT_NOMEM when there is too little for all of them. */
int kvfs_source_resident_more(struct kvfs_serve *s, struct ct_err *err);
/* CT_BUSY while somebody has it mapped. */
int kvfs_source_resident_end(struct kvfs_serve *s, uint32_t number, struct ct_err *err);
/* A socket to a new courier (kvfs/mount/carry.h), the caller's, or -1. */
int kvfs_source_courier(struct kvfs_serve *s, struct ct_err *err);
/* Notes that a generation of a model was seen (0 only asks); *highest ever, 0 if none is known. */
int kvfs_source_seen(struct kvfs_serve *s, const char *model, int64_t generation, int64_t *highest,
                     struct ct_err *err);
/* An audit event (kvfs/audit/chain.h) for the supervisor to write; "" and "" only ask for what it
 * has for us, which goes to `note`. CT_BUSY: it can't now; all else: never more. */
int kvfs_source_audit(struct kvfs_serve *s, const char *chain, const char *body,
                      char note[static KVFS_TEXT_MAX], struct ct_err *err);
int kvfs_source_sealed(struct kvfs_serve *s, const char *text);
int kvfs_source_ready(struct kvfs_serve *s, const char *text);
int kvfs_source_failed(struct kvfs_serve *s, const char *text);

/* ---- judge.c: what a name is, and what vouches for it ---- */
/* Judges the name `path` of the view ("" is the root). 0: `found` and `opened` are filled and owned
 * by the caller (kvfs_found_release(), kvfs_opened_release()); opened->fd is -1 for what cannot be
 * opened. -1: CT_NOTFOUND when the view does not show it; CT_NOMEM. A file that is refused is
 * found. */
int kvfs_judge_path(struct kvfs_serve *s, const char *path, struct kvfs_found *found,
                    struct kvfs_opened *opened, struct ct_err *err);
void kvfs_found_release(struct kvfs_found *f);
/* "x.cryptotensors" → "x.safetensors" in place of the name that readdir shows; false: not shown. */
bool kvfs_judge_view_name(const char *name, char *out, size_t cap);

/* ---- rules.c: the manifests ---- */
struct kvfs_judge *kvfs_judge_new(struct ct_err *err);
/* Those that were met, as [{directory, generation, entries, digest, missing:[…]} or {directory,
 * error}]. */
json_t *kvfs_judge_manifests(struct kvfs_serve *s);
/* Forgets what manifests were read: for reload. */
int kvfs_judge_reload(struct kvfs_serve *s, struct ct_err *err);

/* ---- ops_tree.c, ops_open.c ---- */
extern const struct fuse_lowlevel_ops kvfs_ops;
void kvfs_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void kvfs_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
/* After an open of a node, a close, or the loss of its pin, each of which counts as one in `busy`.
 */
void kvfs_node_end(void *serve, struct kvfs_node *node);
/* Opens a file as a reader with this uid would; what require-all does for each. */
int kvfs_try_open(struct kvfs_serve *s, const char *path, struct ct_err *err);
/* Attributes as the view shows them. */
void kvfs_attributes(const struct kvfs_serve *s, const struct kvfs_node *n, struct stat *st);

/* ---- ops_refuse.c ---- */
/* EROFS for whatever would change something. The kernel sees to it until root remounts writable;
 * then an operation that is not there would be ENOSYS. */
void kvfs_refuse_changes(struct fuse_lowlevel_ops *ops);

/* ---- statusdir.c: `.kvfs/` ---- */
enum { KVFS_STATUS_FILES = 4 };
#define KVFS_STATUS_NAME ".kvfs"
#define KVFS_STATUS_DIR (UINT64_C(1) << 62) /* its files follow */
bool kvfs_status_is(uint64_t id);
/* Id of a name in `.kvfs`, 0 if there is none. */
uint64_t kvfs_status_lookup(const char *name);
void kvfs_status_attributes(const struct kvfs_serve *s, uint64_t id, struct stat *st);
const char *kvfs_status_name(unsigned i);
/* The content of a file as it is now, appended. */
int kvfs_status_content(struct kvfs_serve *s, uint64_t id, struct ct_buf *out, struct ct_err *err);
void kvfs_status_start(void); /* before the sandbox: opens what it will need */

/* ---- xattr.c ---- */
void kvfs_op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void kvfs_op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);

/* ---- scan.c: what is there, before the mount answers ---- */
/* CT_NOTFOUND when nothing is encrypted; with require_all the first refusal. `text` says what the
 * user should know. */
int kvfs_scan(struct kvfs_serve *s, char *text, size_t cap, struct ct_err *err);

/* ---- reply.c ---- */
/* The only two functions that hand file data to the kernel: they test first whether the mount is
 * sealed or the content revoked. Answers `req`. */
void kvfs_reply_data(struct kvfs_serve *s, fuse_req_t req, const struct kvfs_content *content,
                     const struct iovec *iov, int count);
/* Puts data into the page cache that nobody asked for. Waits for pages that reads on their way have
 * locked: from a thread that answers none, and that sealing waits for. */
void kvfs_reply_store(struct kvfs_serve *s, const struct kvfs_node *node,
                      const struct kvfs_content *content, uint64_t offset, uint8_t *data, size_t n);
/* The only place where a ct_err becomes an errno for a reader; counts, remembers, and logs one
 * rate-limited line (file, tensor, chunk, reason, reader). node may be NULL. */
void kvfs_reply_error(struct kvfs_serve *s, fuse_req_t req, struct kvfs_node *node,
                      const struct ct_err *err);
/* One of the node's names, for messages; "" for NULL. */
void kvfs_node_name(struct kvfs_serve *s, const struct kvfs_node *node, char *out, size_t cap);
/* Recent failures, newest last, as a JSON array of {time,path,error,errno,pid,uid,message}. */
json_t *kvfs_reply_recent(void);
/* The worker's log sink: standard error, and the latest lines. */
void kvfs_log_sink(void *ctx, enum ct_level level, const char *line);
void kvfs_log_recent(struct ct_buf *out);

/* ---- seal.c ---- */
/* Refuses from now on with `why`, fails what is parked, invalidates every node ever served, wipes
 * keys and plaintext. For good: the first reason stays. Not from a FUSE or pool thread. */
void kvfs_seal(struct kvfs_serve *s, const struct ct_err *why);
/* The same for the encrypted files that `is` tells, while the rest goes on. What is opened later
 * has to be refused by whoever gives out its keys. */
void kvfs_revoke(struct kvfs_serve *s, bool (*is)(void *ctx, const struct kvfs_node *node),
                 void *ctx, const struct ct_err *why);
/* Something more is taken back: whoever would kill a worker that hangs waits on. */
static inline void kvfs_progress(struct kvfs_serve *s)
{
    __atomic_fetch_add(&s->shared->progress, 1, __ATOMIC_RELAXED);
}
/* Why it is sealed. -1. */
int kvfs_seal_why(const struct kvfs_serve *s, struct ct_err *err);

/* The kernel never lets go of a node or of what fi->fh points to while a request for it is
 * unanswered. These two say so in the language's terms: the first before an answer, the second
 * where a handle comes back and where something is let go of. */
static inline void kvfs_hand_over(struct kvfs_serve *s)
{
    atomic_fetch_add_explicit(&s->handed, 1, memory_order_release);
}
static inline void kvfs_take_over(struct kvfs_serve *s)
{
    (void)atomic_load_explicit(&s->handed, memory_order_acquire);
}

/* ---- what fi->fh points to (ops_open.c) ---- */
struct kvfs_handle {
    atomic_uint refs;                 /* the kernel's, and one a read on its way */
    struct kvfs_node *node;           /* NULL for `.kvfs/` */
    struct kvfs_content *content;     /* a reference; NULL for directories and `.kvfs/` */
    bool direct;                      /* opened with O_DIRECT, or all are (cache=direct) */
    struct kvfs_listing *listing;     /* of a directory (ops_tree.c) */
    struct ct_buf snapshot;           /* of a `.kvfs/` file, as it was at open */
    struct kvfs_handle *next, **link; /* in the list of all */
};

/* With the kernel's reference; empty. NULL without memory. */
struct kvfs_handle *kvfs_handle_new(void);
void kvfs_listing_free(struct kvfs_listing *l); /* ops_tree.c; NULL is allowed */
/* A reference for a read on its way: the kernel may release a file as soon as the last read is
 * answered, before the thread that answered is done with it. */
struct kvfs_handle *kvfs_handle_ref(struct kvfs_serve *s, const struct fuse_file_info *fi);
void kvfs_handle_unref(struct kvfs_serve *s, struct kvfs_handle *h);

/* ---- ops_read.c ---- */
/* FUSE read: of a status snapshot at once, of content through kvfs_chunks_read(). */
void kvfs_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                  struct fuse_file_info *fi);

#endif
