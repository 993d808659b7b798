/*
 * The handlers behind the routes: one file a resource. PROTOCOL.md says what each takes and gives;
 * http/request.h what a handler may do.
 */
#ifndef KS_API_H
#define KS_API_H

#include "keyserver/http/request.h"

/* ---- auth.c ---- */
/* Whether the token can be one of ours; without the database. */
bool ks_token_plausible(const struct ks_request *r);
/* Sets r->user to the publisher whose session it is, or refuses. */
int ks_authenticate(struct ks_request *r, struct ct_err *err);
int ks_post_login(struct ks_request *r, struct ct_err *err);
int ks_post_refresh(struct ks_request *r, struct ct_err *err);
int ks_post_logout(struct ks_request *r, struct ct_err *err);

/* ---- models.c ---- */
/* The model of the address, if it is the user's. */
int ks_own_model(struct ks_request *r, struct ks_model *out, struct ct_err *err);
json_t *ks_model_json(struct ks_request *r, const struct ks_model *m, struct ct_err *err);
int ks_get_sign_key(struct ks_request *r, struct ct_err *err);
int ks_get_models(struct ks_request *r, struct ct_err *err);
int ks_post_model(struct ks_request *r, struct ct_err *err);
int ks_get_model(struct ks_request *r, struct ct_err *err);
int ks_get_master_key(struct ks_request *r, struct ct_err *err);

/* ---- files.c, upload.c, generations.c ---- */
int ks_get_files(struct ks_request *r, struct ct_err *err);
int ks_get_file(struct ks_request *r, struct ct_err *err);
int ks_delete_files(struct ks_request *r, struct ct_err *err);
int ks_get_stage(struct ks_request *r, struct ct_err *err);
int ks_delete_stage(struct ks_request *r, struct ct_err *err);
int ks_post_files(struct ks_request *r, struct ct_err *err);
int ks_post_generation(struct ks_request *r, struct ct_err *err);

/* ---- evidence.c: what attest and renew share ---- */

/* The highest version that the client and we speak; or refuses. */
int ks_common_version(struct ks_request *r, const json_t *versions, uint8_t *out);

/* What a runtime claims of itself, kept with ticket and lease: {"sign", "decrypt", "audit" (JWKs),
 * "thumbs" {the same}, "measurement", "profile", "guard", "host", "assurance"}. */
struct ks_evidence {
    json_t *plain;  /* the JWE's plaintext; owned */
    json_t *claims; /* owned */
    struct ks_apikey apikey;
    char evidence[KX_HEX + 1];
    const char *challenge; /* in `plain` */
};
/* Opens the JWE, checks API key, challenge (which is used up) and measurements, and the binding by
 * `sign` (a lease's keys) or by the key that the evidence brings. Refusals after the challenge was
 * used have r->keep set. */
int ks_evidence_open(struct ks_request *r, const char *typ, struct ks_evidence *e,
                     struct ct_err *err);
int ks_evidence_check(struct ks_request *r, struct ks_evidence *e, const char *lease,
                      struct ct_err *err);
int ks_evidence_take_keys(struct ks_request *r, struct ks_evidence *e, struct ct_err *err);
void ks_evidence_free(struct ks_evidence *e);
#define ks_autoevidence __attribute__((cleanup(ks_evidence_free))) struct ks_evidence

/* ---- access.c ---- */

struct ks_access {
    struct ks_model model;
    bool owned;
    struct ks_subscription subscription; /* unless owned */
};
/* Whether this user, with these claims, may have this model now; or refuses. */
int ks_access_check(struct ks_request *r, const struct ks_user *user, const char *model,
                    const json_t *claims, const char *event, struct ks_access *out,
                    struct ct_err *err);

/* ---- the deployment calls ---- */
int ks_post_challenge(struct ks_request *r, struct ct_err *err);
int ks_post_attest(struct ks_request *r, struct ct_err *err);
int ks_post_keys(struct ks_request *r, struct ct_err *err);
int ks_post_renew(struct ks_request *r, struct ct_err *err);
int ks_get_wait(struct ks_request *r, struct ct_err *err);
int ks_post_end(struct ks_request *r, struct ct_err *err);
int ks_post_audit(struct ks_request *r, struct ct_err *err);

/* ---- health.c ---- */
int ks_get_health(struct ks_request *r, struct ct_err *err);
int ks_get_metrics(struct ks_request *r, struct ct_err *err);

/* ---- lease.c ---- */

struct ks_lease {
    char id[KS_ID + 1], user_id[KS_ID + 1], apikey_id[KS_ID + 1], model_id[KS_ID + 1];
    char subscription_id[KS_ID + 1]; /* "" for the owner */
    char head[KX_HEX + 1], reason[128];
    int64_t created, expires, grace, ended, revoked, generation, audit_count;
    json_t *claims; /* owned */
};
int ks_lease_get(struct ks_request *r, const char *id, struct ks_lease *out, struct ct_err *err);
void ks_lease_free(struct ks_lease *l);
#define ks_autolease __attribute__((cleanup(ks_lease_free))) struct ks_lease
/* "active", "revoked", "ended" or "expired". */
const char *ks_lease_state(const struct ks_lease *l, int64_t now);
/* {"id", "seconds", "renew", "grace", "end"} */
json_t *ks_lease_json(const char *id, const struct ks_model *m, const struct ks_access *a);
/* How long it may run: the model's time, or until the subscription ends. */
int64_t ks_lease_seconds(const struct ks_access *a);

#endif
