/*
 * What the database holds, as functions that both the API and the administrator's commands call.
 * Every function runs inside a transaction that its caller began (ks_begin), unless it says
 * otherwise.
 *
 * Results: 0 done, 1 there is no such thing, -1 with err. Ids are 32 hexadecimal digits.
 */
#ifndef KS_DATA_H
#define KS_DATA_H

#include <jansson.h>

#include "format/protocol/digest.h"
#include "format/protocol/jose.h"
#include "format/writer.h"
#include "keyserver/crypto/random.h"
#include "keyserver/crypto/seal.h"
#include "keyserver/store/store.h"

enum { KS_NAME_LEN = 64, KS_KID = 160, KS_JKU = 256, KS_LIST_TEXT = 256 };

struct ks_ctx {
    struct ks_db *db;
    struct ks_seal *seal;
};

int64_t ks_now(void); /* seconds since the epoch */
void ks_rfc3339(int64_t when, char out[static 32]);
/* Tells all servers that a lease or a generation changed: the id of the lease or model, or "*". */
int ks_touch(struct ks_ctx *c, const char *subject, struct ct_err *err);

/* ---- users.c ---- */

struct ks_user {
    char id[KS_ID + 1], name[KS_NAME_LEN + 1];
    int64_t disabled;
};

/* CT_EXISTS, CT_USAGE (name). */
int ks_user_create(struct ks_ctx *c, const char *name, struct ks_user *out, struct ct_err *err);
int ks_user_find(struct ks_ctx *c, const char *name, struct ks_user *out, struct ct_err *err);
/* The sign key: seed (NULL: not wanted), public half and kid. */
int ks_user_sign_key(struct ks_ctx *c, const char *id, struct ct_secret **seed,
                     uint8_t pub[static CT_ED25519_PUB], char kid[static KS_KID + 1],
                     struct ct_err *err);

/* ---- apikeys.c ---- */

struct ks_apikey {
    char id[KS_ID + 1], scope[16];
    struct ks_user user;
};

enum { KS_APIKEY_TEXT = 64 }; /* "kvfs_publish_" or "kvfs_deploy_" and a token */

/* `text` is the key, shown this once. */
int ks_apikey_create(struct ks_ctx *c, const struct ks_user *user, const char *scope,
                     const char *label, int64_t expires, char id[static KS_ID + 1],
                     char text[static KS_APIKEY_TEXT], struct ct_err *err);
/* Only one that is neither revoked nor expired, of a user who is not disabled. */
int ks_apikey_find(struct ks_ctx *c, const char *text, struct ks_apikey *out, struct ct_err *err);

/* ---- models.c ---- */

struct ks_model {
    char id[KS_ID + 1], owner_id[KS_ID + 1], owner[KS_NAME_LEN + 1], name[KS_NAME_LEN + 1];
    char master_kid[KS_KID + 1], assurance[16], profiles[KS_LIST_TEXT];
    int64_t generation; /* 0: nothing published */
    int64_t last_generation, created, lease_seconds, lease_grace;
    char description[512];
};

int ks_model_create(struct ks_ctx *c, const struct ks_user *owner, const char *name,
                    const char *description, struct ks_model *out, struct ct_err *err);
int ks_model_find(struct ks_ctx *c, const char *owner, const char *name, struct ks_model *out,
                  struct ct_err *err);
int ks_model_get(struct ks_ctx *c, const char *id, struct ks_model *out, struct ct_err *err);
int ks_model_master(struct ks_ctx *c, const struct ks_model *m, struct ct_secret **out,
                    struct ct_err *err);
/* Nobody else changes generations or subscriptions of the model until this transaction ends. */
int ks_model_lock(struct ks_ctx *c, const char *id, struct ct_err *err);

/* Rank of an assurance's name, from 0; -1 for one that is not known. */
int ks_assurance_rank(const char *name);

/* ---- keys.c ---- */

/* A key source with one master and one verification key; the kids must be those of the header. */
struct ks_keys {
    struct ct_keysource source;
    struct ct_secret *master; /* owned */
    struct ct_secret *seed;   /* owned; NULL for checking only */
    uint8_t pub[CT_ED25519_PUB];
    char master_kid[KS_KID + 1], sign_kid[KS_KID + 1];
};

int ks_keys_of_owner(struct ks_ctx *c, const struct ks_model *m, struct ks_keys *out,
                     struct ct_err *err);
int ks_keys_of_subscription(struct ks_ctx *c, const char *id, struct ks_keys *out,
                            struct ct_err *err);
void ks_keys_free(struct ks_keys *k);
#define ks_autokeys __attribute__((cleanup(ks_keys_free))) struct ks_keys

/* A new AES-256 master key or Ed25519 seed, sealed into `sealed`. */
int ks_make_secret(struct ks_ctx *c, const struct ks_place *at, size_t len,
                   struct ct_secret **secret, struct ct_buf *sealed, struct ct_err *err);

/* ---- subscriptions.c ---- */

struct ks_subscription {
    char id[KS_ID + 1], model_id[KS_ID + 1], user_id[KS_ID + 1];
    int64_t created, expires, ended, max_leases;
};

/* With keys of its own. CT_EXISTS when one is running. */
int ks_subscription_create(struct ks_ctx *c, const struct ks_model *m, const struct ks_user *user,
                           int64_t expires, int64_t max_leases, char id[static KS_ID + 1],
                           struct ct_err *err);
/* The running one, or else the latest. */
int ks_subscription_find(struct ks_ctx *c, const char *model_id, const char *user_id,
                         struct ks_subscription *out, struct ct_err *err);
int ks_subscription_get(struct ks_ctx *c, const char *id, struct ks_subscription *out,
                        struct ct_err *err);
/* What the sealed columns of a subscription belong to. */
enum { KS_OWNER_TEXT = 2 * KS_ID + 2 };
void ks_subscription_place(const char *user_id, const char *model_id, char out[KS_OWNER_TEXT]);

/* ---- personal.c ---- */

/* Makes the headers of a model's generation that a subscription does not have yet; nothing when the
 * generation is not current any more. Transactions of its own; may be killed, and run by several at
 * once. */
int ks_personalise(struct ks_ctx *c, const char *model_id, const char *subscription,
                   int64_t generation, struct ct_err *err);
/* Removes headers of generations that are gone and of subscriptions that ended, some in a
 * transaction of its own: of how many subscriptions, 0 when there are no more, -1. */
int ks_personal_sweep(struct ks_ctx *c, struct ct_err *err);

/* ---- revoke.c ---- */

enum ks_what { KS_LEASE_ID, KS_APIKEY_ID, KS_SUBSCRIPTION_ID, KS_USER_ID, KS_MODEL_ID };
/* Ends what has this id (but a model) and revokes every lease that hangs on it; *leases: how many.
 */
int ks_revoke(struct ks_ctx *c, enum ks_what what, const char *id, const char *reason,
              int64_t *leases, struct ct_err *err);

/* ---- upload.c ---- */

/* Checks header bytes against the model's keys, as publishing asks for. CT_MALFORMED, CT_REJECTED,
 * CT_NOKEY, CT_USAGE; CT_POLICY for the remote policy's syntax. */
int ks_header_check(struct ks_keys *keys, const uint8_t *header, size_t n,
                    struct ct_header_facts *out, struct ct_err *err);
int ks_stage_put(struct ks_ctx *c, const struct ks_model *m, const char *stage, const char *path,
                 const uint8_t *header, size_t n, const struct ct_header_facts *facts,
                 struct ct_err *err);

/* ---- publish.c ---- */

struct ks_publication {
    const char *stage;    /* "": as KoalaVault's clients upload; added to what is current */
    int64_t generation;   /* what the caller expects to make; 0: whatever is next */
    const char *manifest; /* its text, or NULL */
    size_t manifest_len;
};

enum ks_published { KS_PUBLISHED, KS_NOTHING_STAGED, KS_OTHER_GENERATION, KS_BAD_MANIFEST };

/* Makes a stage the current generation, in a transaction of its own; *result says how it ended when
 * 0 is returned, `err` then why. */
int ks_publish(struct ks_ctx *c, const char *model_id, const struct ks_publication *p,
               enum ks_published *result, struct ct_err *err);
/* Stages without a name that nobody has touched for `settle` seconds. Transactions of its own. */
int ks_publish_settled(struct ks_ctx *c, int64_t settle, struct ct_err *err);

/* ---- audit.c ---- */

struct ks_event {
    const char *event, *code, *user, *model, *lease, *address, *detail; /* NULL: none */
};
int ks_audit(struct ks_ctx *c, const struct ks_event *e, struct ct_err *err);

/* ---- prune.c ---- */

/* Follows the records of a lease from where its chain was cut (or began): CT_REJECTED unless they
 * are all there and give the lease's head. `at`: the digest after record `upto`, where that is met.
 */
int ks_chain_check(struct ks_ctx *c, const char *lease, int64_t upto, char at[static KX_HEX + 1],
                   struct ct_err *err);

struct ks_pruned {
    int64_t events, records, leases, stages;
};
/* Removes what is older than `before`: events; records of leases, of which a checkpoint stays in
 * the lease; leases that were over by then, of which an event stays; uploads never published.
 * Transactions of its own. */
int ks_prune(struct ks_ctx *c, int64_t before, struct ks_pruned *done, struct ct_err *err);

#endif
