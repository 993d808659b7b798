/*
 * Keys from a key server: which encrypted files belong to which model, a lease for each model, and
 * what is done with the header bytes that were released.
 *
 * gather.c finds the files; lease.c asks, renews and listens, with two threads a model; leases.c is
 * what the rest of the worker sees. A file that is in no release is refused, and so is one whose
 * header is not the one that was there when keys were asked for.
 */
#ifndef KVFS_SERVE_LEASES_H
#define KVFS_SERVE_LEASES_H

#include <pthread.h>

#include "keyclient/exchange.h"
#include "kvfs/serve/serve.h"

enum { KVFS_LEASES_MAX = 64 };

enum kvfs_lease_state {
    KVFS_LEASE_ASKING,
    KVFS_LEASE_HELD,
    KVFS_LEASE_REFUSED,
    KVFS_LEASE_OVER, /* for good */
};

/* Whose header is at the same index of the exchange's shards. */
struct kvfs_lease_file {
    uint64_t dev, ino;
    char *path; /* beneath SRC */
};

/* One model in one directory. */
struct kvfs_lease {
    struct ct_keysource keys; /* first: the seam's view; gives nothing unless it is held */
    struct kvfs_serve *s;
    char model[KC_MODEL_MAX + 1];
    char dir[PATH_MAX]; /* its directory beneath SRC */
    bool has_manifest;  /* found there by the walk */
    struct kvfs_lease_file *files;
    size_t file_count;
    struct kc_shards shards; /* until the exchange has them */

    struct kc_exchange *exchange; /* of the renewing thread; others only what does not change any
                                     more once it is held: shards, manifest, identity */
    pthread_t renewer, listener, ender;
    bool renewing, listening, ending; /* the threads are there */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    enum kvfs_lease_state state;
    struct ct_err why; /* the latest failure; why it is refused or over */
    struct kc_lease held;
    int64_t newest; /* generation that the server has by now */
    bool reached;   /* the last attempt got an answer: no grace */
    int64_t since;  /* its files are being taken back; 0: they are not, or they are */
    bool stop;
    bool parted; /* the mount is sealed: no renewal any more */
    struct kc_request
        parting; /* signed before the keys were wiped, for the renewing thread to send */
};

struct kvfs_leases {
    struct kc_runtime runtime;
    pthread_mutex_t runtime_lock; /* it serves one thread at a time */
    struct kvfs_lease *items;
    size_t count;
    atomic_bool gathered; /* the two above are as they stay */
    uint64_t progress;    /* of the ticking thread: of taking back, when it last looked */
    int64_t went_on_ms;   /* and when there was some */
};

/* Whether the lease has the file, under whatever name; its *index (may be NULL). */
bool kvfs_lease_has(const struct kvfs_lease *l, uint64_t dev, uint64_t ino, size_t *index);

/* Milliseconds of CLOCK_BOOTTIME. */
int64_t kvfs_lease_now(void);

/* ---- gather.c ---- */
/* Walks SRC: fills l->items, each with model, directory, files, shards. */
int kvfs_gather(struct kvfs_serve *s, struct kvfs_leases *l, struct ct_err *err);

/* ---- lease.c ---- */
void kvfs_lease_init(struct kvfs_lease *l);
int kvfs_lease_start(struct kvfs_lease *l, struct ct_err *err);
/* Waits until it is decided, or `until` is over and the server was asked once. */
void kvfs_lease_wait(struct kvfs_lease *l, int64_t until);
/* Asks the threads to end, and then waits for them. One that is idle gives the lease back. */
void kvfs_lease_stop(struct kvfs_lease *l);
void kvfs_lease_join(struct kvfs_lease *l);
/* The mount is sealed: no renewal any more, and the server is told why as soon as may be. To be
 * called while the keys are there; what is to be sent is only signed here. */
void kvfs_lease_part(struct kvfs_lease *l, const struct ct_err *why);
/* To the server, for one thread at a time. */
struct kvfs_way {
    struct kvfs_lease *lease;
    int sock;     /* to a courier, -1: none */
    int stopping; /* descriptor that ends a wait */
};
/* One attempt. Without an answer *status is 0 and `answer` says why. */
void kvfs_way_carry(struct kvfs_way *w, const struct kc_request *q, unsigned seconds,
                    unsigned *status, struct ct_buf *answer);
void kvfs_way_close(struct kvfs_way *w);
/* Until when reads may go on. With its lock held. */
int64_t kvfs_lease_deadline(const struct kvfs_lease *l);
/* It is over, because of `why`. Takes back what was given out, which waits for reads on their way:
 * from a thread of the lease's own. */
void kvfs_lease_end(struct kvfs_lease *l, const struct ct_err *why);

/* ---- leases.c ---- */
/* Takes the deploy key and the measurements (taken over), before the sandbox closes. */
struct kvfs_leases *kvfs_leases_new(const void *deploy_key, size_t n, const char *pin,
                                    json_t *measurements, struct ct_err *err);
/* Finds models and asks for leases, up to config.wait seconds long while the server does not
 * answer. -1 when none is held by then. */
int kvfs_leases_start(struct kvfs_serve *s, struct ct_err *err);
/* kvfs_lease_part() of all; NULL is allowed. */
void kvfs_leases_part(struct kvfs_leases *l, const struct ct_err *why);
/* Ends their threads, which take files back as long as they live: before what these lie in goes.
 * And what opens may ask until the end. NULL is allowed. */
void kvfs_leases_stop(struct kvfs_leases *l);
void kvfs_leases_free(struct kvfs_leases *l);
/* Tells the supervisor when the first of them runs out: a worker that is stopped can't end it. */
void kvfs_leases_announce(struct kvfs_leases *l, struct kvfs_shared *shared);
/* Ends what has run out, and seals where a lease's files can't be taken back; then the same. Every
 * few hundred milliseconds; waits for nothing. */
void kvfs_leases_tick(struct kvfs_leases *l, struct kvfs_shared *shared);

/* The lease of the file, or NULL. */
const struct kvfs_lease *kvfs_leases_of(const struct kvfs_leases *l, const struct ct_version *v);
/* Whether the file of this version is in a release that counts now: CT_REJECTED if it is in none,
 * else why it does not. */
int kvfs_leases_check(struct kvfs_leases *l, const struct ct_version *v, struct ct_err *err);
/* The same, and fills `how`: keys and header bytes (kept in `header`, the caller's). Reads the
 * source's header and compares it. */
int kvfs_leases_use(struct kvfs_leases *l, struct ct_source *source, struct ct_open *how,
                    struct ct_buf *header, struct ct_err *err);

/* What a manifest in `dir` is verified with: the keys of the lease whose directory is nearest at or
 * above it. *sha256: the digest that it has to have, where the release names one for `dir`, or
 * NULL. CT_NOKEY without a lease. */
int kvfs_leases_manifest(struct kvfs_leases *l, const char *dir, struct ct_keysource **keys,
                         const char **sha256, struct ct_err *err);

/* [{model, directory, state, …}], for status. */
json_t *kvfs_leases_status(struct kvfs_leases *l);

#endif
