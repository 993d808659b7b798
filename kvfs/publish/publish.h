/*
 * Publishing an encrypted model with a key server: its headers, never a tensor, and its manifest.
 *
 * Files are uploaded to a stage that is called by the digest of all their headers, so that a
 * stopped upload goes on where it was, and nothing else can be in there. Then they become current
 * at once.
 */
#ifndef KVFS_PUBLISH_H
#define KVFS_PUBLISH_H

#include "format/protocol/digest.h"
#include "kvfs/job/job.h"
#include "kvfs/publish/session.h"

struct kvfs_publish {
    struct kvfs_session session;
    char owner[65], name[65];
    uint64_t generation, next; /* the server's current one (0: none), and the one that is next */
    uint64_t max_header;       /* bytes that the server takes */
    bool made;                 /* the model was created */

    /* Of what is published. */
    bool current; /* an earlier run made it current already */
    uint64_t number;
    json_t *headers; /* [{"path", "sha256", "size"}, …], in the order of the tasks */
    size_t uploaded;
    uint64_t header_bytes;
};

/* ---- publish.c ---- */
/* Asks what the server has of the model. CT_NOTFOUND. */
int kvfs_publish_look(struct kvfs_publish *p, struct ct_err *err);
/* The same, but creates it when it is not there. */
int kvfs_publish_model(struct kvfs_publish *p, struct ct_err *err);
/* A ring of the model's master key and the user's sign key; owned by the caller. */
struct ct_keyring *kvfs_publish_keys(struct kvfs_publish *p, struct ct_err *err);
/* The bytes 0..8+N-1 of a file beneath dirfd. CT_USAGE above `max`. */
int kvfs_publish_header(int dirfd, const char *path, uint64_t max, struct ct_buf *out,
                        struct ct_err *err);
/* Appends {"path", "sha256", "size"} of such a header to the array. */
int kvfs_publish_note(json_t *headers, int dirfd, const char *path, uint64_t max,
                      struct ct_err *err);
/* Whether the server's current generation consists of exactly these headers: *same. */
int kvfs_publish_same(struct kvfs_publish *p, const json_t *headers, bool *same,
                      struct ct_err *err);
/* {path: digest} of the files that an answer lists; owned by the caller. */
json_t *kvfs_publish_files(const json_t *data, struct ct_err *err);
/* Path and query are of the model: "/api/resources/OWNER/models/NAME" and `rest`. */
int kvfs_publish_call(struct kvfs_publish *p, const char *method, const char *rest,
                      const struct ct_buf *body, bool once, struct kvfs_api_answer *out,
                      struct ct_err *err);

/* ---- publish_upload.c ---- */
/* Uploads what the stage lacks of p->headers and makes them current, with the manifest in dirfd, as
 * generation p->number. */
int kvfs_publish_upload(struct kvfs_publish *p, int dirfd, struct ct_err *err);

/* ---- publish_plan.c: the hooks of the job; ctx is the struct kvfs_publish ---- */
/* Refuses what the server would refuse, with a list; chooses the generation. */
int kvfs_publish_planned(void *ctx, struct kvfs_job *job, struct kvfs_plan *plan,
                         struct ct_err *err);
int kvfs_publish_written(void *ctx, const struct kvfs_job *job, const struct kvfs_plan *plan,
                         int dirfd, struct ct_err *err);

#endif
