/* Inside the worker's audit: shared by audit.c, audit_write.c, audit_post.c. */
#ifndef KVFS_SERVE_AUDIT_PARTS_H
#define KVFS_SERVE_AUDIT_PARTS_H

#include "kvfs/serve/audit.h"

enum { KVFS_AUDIT_CHAINS = KVFS_LEASES_MAX + 1, KVFS_AUDIT_FOLDS = 32 };

/* Bytes of bodies that wait for the supervisor, and of records that wait for the server. */
enum { KVFS_AUDIT_HELD = 8 << 20 };

struct kvfs_audit_entry {
    struct kvfs_audit_entry *next;
    unsigned chain;
    bool urgent; /* to be signed at once */
    char body[];
};

struct kvfs_audit_record {
    struct kvfs_audit_record *next;
    char text[];
};

struct kvfs_audit_own {
    struct kvfs_audit_chain chain; /* of the writing thread */
    struct kvfs_lease *lease;      /* NULL: the mount's */
    bool begun;
    size_t lost;         /* events */
    unsigned fresh;      /* records after the latest signature: the writing thread's */
    int64_t fresh_since; /* when the first of them came */
    bool urgent;
    struct kvfs_audit_record *first, *last; /* that the server does not have */
    struct kc_audit sent;                   /* what it has: the sending thread's */
    bool forked;                            /* it has another chain: nothing more is sent */
};

struct kvfs_audit_fold {
    json_t *details; /* NULL: free */
    const char *event;
    unsigned chain;
    int64_t since;
    unsigned more; /* after the first */
};

struct kvfs_audit {
    struct kvfs_serve *s;
    struct kc_key key; /* with a key server its private half is the runtime's */
    pthread_mutex_t key_lock;
    pthread_t writer, poster;
    bool writing, posting; /* the threads are there */

    pthread_mutex_t lock; /* guards what follows, and is the innermost */
    pthread_cond_t changed;
    struct kvfs_audit_own own[KVFS_AUDIT_CHAINS]; /* the mount's, then one a lease */
    struct kvfs_audit_entry *first, *last;
    size_t held;
    struct kvfs_audit_fold folds[KVFS_AUDIT_FOLDS];
    struct ct_ratelimit opens, refusals;
    bool to_post;    /* there is a new signature */
    bool gone;       /* the supervisor is: nobody writes any more */
    bool stop, done; /* writing is to end; has ended */
};

/* With the lock held: queues an event; `details` is taken over. */
void kvfs_audit_queue(struct kvfs_audit *a, unsigned chain, const char *event, json_t *details,
                      bool urgent);
/* With the lock held: those folded since before `until`. */
void kvfs_audit_unfold(struct kvfs_audit *a, int64_t until);
/* With the lock held: waits for a change, `ms` at most. */
void kvfs_audit_wait(struct kvfs_audit *a, int64_t ms);
json_t *kvfs_audit_sign(struct kvfs_audit *a, const char *typ, const json_t *payload,
                        struct ct_err *err);

void *kvfs_audit_write(void *audit); /* the threads' functions */
void *kvfs_audit_post(void *audit);

#endif
