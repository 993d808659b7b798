#include <stdio.h>
#include <string.h>

#include "keyserver/data/data.h"

/*
 * A publication has three steps, so that nobody waits for it:
 * 1. the files of the new generation are written beside those of the current one, and the model
 *    remembers whose attempt this is (`pending`);
 * 2. for each subscription, a transaction each, its headers;
 * 3. if the attempt is still this one: what is missing yet (a subscription made meanwhile), and the
 *    new number. Only this shows anything to anybody.
 * Then what was current before is removed.
 */
struct attempt {
    struct ks_ctx *c;
    const struct ks_publication *p;
    struct ks_model model;
    char id[KS_ID + 1];
    int64_t number;
    char manifest[KX_HEX + 1]; /* "" without one */
    enum ks_published result;
};

static int ended(struct attempt *a, enum ks_published result, struct ct_err *err, const char *why)
{
    a->result = result;
    ct_err_set(err, CT_USAGE, "%s", why);
    return 1;
}

/* ---- the manifest ---- */

/* Its shards are exactly the files that are staged. */
static int compare_shards(struct attempt *a, const struct ct_manifest *m, struct ct_err *err)
{
    size_t shards = 0;
    size_t staged = 0;
    int r = 0;
    for (size_t i = 0; i < ct_manifest_count(m); i++) {
        shards += ct_manifest_at(m, i)->kind == CT_ENTRY_SHARD;
    }
    ks_autorows rows = ks_query(a->c->db, err,
                                "SELECT path, immutable, body FROM staged WHERE model_id = $1 AND"
                                " stage = $2",
                                "ss", a->model.id, a->p->stage);
    if (!rows) {
        return -1;
    }
    for (; (r = ks_next(rows, err)) == 1; staged++) {
        char immutable[KX_HEX + 1];
        const struct ct_entry *e = ct_manifest_find(m, ks_text(rows, 0));
        if (e) {
            ct_hex(immutable, e->sha256, CT_DIGEST);
        }
        if (!e || e->kind != CT_ENTRY_SHARD || (int64_t)e->size != ks_int(rows, 2) ||
            strcmp(immutable, ks_text(rows, 1)) != 0) {
            return ended(a, KS_BAD_MANIFEST, err, "it does not list what is staged");
        }
    }
    if (r < 0) {
        return -1;
    }
    return staged == shards ? 0
                            : ended(a, KS_BAD_MANIFEST, err, "it lists shards that are not staged");
}

static int check_manifest(struct attempt *a, struct ct_err *err)
{
    const struct ks_publication *p = a->p;
    struct ct_manifest *m = NULL;
    ks_autokeys keys = {0};
    if (!p->manifest) {
        return 0;
    }
    if (ks_keys_of_owner(a->c, &a->model, &keys, err)) {
        return -1;
    }
    struct ct_err why = CT_ERR_INIT;
    if (ct_manifest_parse((const uint8_t *)p->manifest, p->manifest_len, &keys.source, &m, &why)) {
        return ended(a, KS_BAD_MANIFEST, err, why.msg);
    }
    (void)snprintf(a->manifest, sizeof(a->manifest), "%s", ct_manifest_digest(m));
    int r = ct_manifest_generation(m) == (uint64_t)a->number
                ? compare_shards(a, m, err)
                : ended(a, KS_BAD_MANIFEST, err, "its generation is not the model's next one");
    ct_manifest_unref(m);
    return r;
}

/* ---- 1: the files ---- */

/* What an attempt that was killed left, and what an earlier removal left. */
static int clear_others(struct attempt *a, struct ct_err *err)
{
    const char *id = a->model.id;
    const int64_t current = a->model.generation;
    return ks_exec(a->c->db, err, "DELETE FROM files WHERE model_id = $1 AND generation <> $2",
                   "si", id, current) < 0 ||
                   ks_exec(a->c->db, err,
                           "DELETE FROM policies WHERE model_id = $1 AND generation <> $2", "si",
                           id, current) < 0 ||
                   ks_exec(a->c->db, err,
                           "DELETE FROM personal WHERE generation <> $2 AND subscription_id IN"
                           " (SELECT id FROM subscriptions WHERE model_id = $1)",
                           "si", id, current) < 0
               ? -1
               : 0;
}

static int copy_files(struct attempt *a, struct ct_err *err)
{
    struct ks_db *db = a->c->db;
    const char *id = a->model.id;
    int64_t n = ks_exec(db, err,
                        "INSERT INTO files (model_id, generation, path, sha256, immutable, body,"
                        " size, policy, header) SELECT model_id, $3, path, sha256, immutable,"
                        " body, size, policy, header FROM staged WHERE model_id = $1 AND"
                        " stage = $2",
                        "ssi", id, a->p->stage, a->number);
    if (n < 0) {
        return -1;
    }
    if (n == 0) {
        return ended(a, KS_NOTHING_STAGED, err, "nothing is staged there");
    }
    /* An upload without a stage leaves the other files as they are. */
    if (!*a->p->stage &&
        ks_exec(db, err,
                "INSERT INTO files (model_id, generation, path, sha256, immutable, body, size,"
                " policy, header) SELECT model_id, $2, path, sha256, immutable, body, size,"
                " policy, header FROM files f WHERE f.model_id = $1 AND f.generation = $3 AND NOT"
                " EXISTS (SELECT 1 FROM files g WHERE g.model_id = $1 AND g.generation = $2 AND"
                " g.path = f.path)",
                "sii", id, a->number, a->model.generation) < 0) {
        return -1;
    }
    return ks_exec(db, err,
                   "INSERT INTO policies (model_id, generation, policy) SELECT DISTINCT model_id,"
                   " generation, policy FROM files WHERE model_id = $1 AND generation = $2",
                   "si", id, a->number) < 0
               ? -1
               : 0;
}

static int prepare(struct attempt *a, const char *model_id, struct ct_err *err)
{
    if (ks_model_lock(a->c, model_id, err) || ks_model_get(a->c, model_id, &a->model, err)) {
        return -1;
    }
    a->number = a->model.last_generation + 1;
    if (a->p->generation && a->p->generation != a->number) {
        return ended(a, KS_OTHER_GENERATION, err, "another generation would be next");
    }
    int r = clear_others(a, err);
    r = r ? r : check_manifest(a, err);
    r = r ? r : copy_files(a, err);
    if (r) {
        return r;
    }
    return ks_exec(a->c->db, err, "UPDATE models SET pending = $2 WHERE id = $1", "ss", model_id,
                   a->id) < 0
               ? -1
               : 0;
}

/* ---- 2: everybody's headers ---- */

/* The next running subscription that has fewer headers than there are files: 0 and its id. */
static int next_subscription(struct attempt *a, char id[static KS_ID + 1], struct ct_err *err)
{
    ks_autorows rows = NULL;
    int r = ks_one(a->c->db, &rows, err,
                   "SELECT s.id FROM subscriptions s WHERE s.model_id = $1 AND s.ended = 0 AND"
                   " s.id > $3 AND (SELECT COUNT(*) FROM personal p WHERE p.subscription_id = s.id"
                   " AND p.generation = $2) < (SELECT COUNT(*) FROM files f WHERE f.model_id = $1"
                   " AND f.generation = $2) ORDER BY s.id LIMIT 1",
                   "sis", a->model.id, a->number, id);
    if (r == 1) {
        (void)snprintf(id, KS_ID + 1, "%s", ks_text(rows, 0));
    }
    return r < 0 ? -1 : !r;
}

static int personalise_next(struct attempt *a, char id[static KS_ID + 1], struct ct_err *err)
{
    int r = next_subscription(a, id, err);
    return r ? r : ks_personalise(a->c, &a->model, id, a->number, err);
}

/* ---- 3: the switch ---- */

static int switch_over(struct attempt *a, struct ct_err *err)
{
    struct ks_model now;
    char id[KS_ID + 1] = "";
    int r = 0;
    if (ks_model_lock(a->c, a->model.id, err) || ks_model_get(a->c, a->model.id, &now, err)) {
        return -1;
    }
    if (strcmp(now.pending, a->id) != 0) {
        return ended(a, KS_OTHER_GENERATION, err, "another publication came in between");
    }
    while ((r = personalise_next(a, id, err)) == 0) {
    }
    if (r < 0) {
        return -1;
    }
    struct ks_db *db = a->c->db;
    return ks_exec(db, err,
                   "INSERT INTO generations (model_id, number, created, manifest_sha256) VALUES"
                   " ($1, $2, $3, $4)",
                   "siis", now.id, a->number, ks_now(), *a->manifest ? a->manifest : NULL) < 0 ||
                   ks_exec(db, err,
                           "UPDATE models SET generation = $2, last_generation = $2, pending = ''"
                           " WHERE id = $1",
                           "si", now.id, a->number) < 0 ||
                   ks_exec(db, err, "DELETE FROM staged WHERE model_id = $1 AND stage = $2", "ss",
                           now.id, a->p->stage) < 0 ||
                   ks_exec(db, err, "DELETE FROM stages WHERE model_id = $1 AND stage = $2", "ss",
                           now.id, a->p->stage) < 0 ||
                   ks_touch(a->c, err)
               ? -1
               : 0;
}

/* ---- transactions ---- */

enum { TRIES = 10 };

struct step {
    int (*run)(struct attempt *a, void *arg, struct ct_err *err);
    void *arg;
};

static int run_prepare(struct attempt *a, void *arg, struct ct_err *err)
{
    return prepare(a, arg, err);
}

static int run_personalise(struct attempt *a, void *arg, struct ct_err *err)
{
    return personalise_next(a, arg, err);
}

static int run_switch(struct attempt *a, void *arg, struct ct_err *err)
{
    (void)arg;
    return switch_over(a, err);
}

static int run_clear(struct attempt *a, void *arg, struct ct_err *err)
{
    if (ks_model_lock(a->c, arg, err) || ks_model_get(a->c, arg, &a->model, err)) {
        return -1;
    }
    return *a->model.pending ? 0 : clear_others(a, err);
}

static int in_transaction(struct attempt *a, const struct step *s, struct ct_err *err)
{
    struct ks_db *db = a->c->db;
    for (int i = 0;; i++) {
        int r = ks_begin(db, KS_WRITE, err);
        r = r ? r : s->run(a, s->arg, err);
        if (r == 0 && ks_commit(db, err) == 0) {
            return 0;
        }
        ks_rollback(db);
        if (r > 0 || err->code != CT_BUSY || i == TRIES) {
            return r > 0 ? r : -1;
        }
    }
}

int ks_publish(struct ks_ctx *c, const char *model_id, const struct ks_publication *p,
               enum ks_published *result, struct ct_err *err)
{
    struct attempt a = {.c = c, .p = p};
    char subscription[KS_ID + 1] = "";
    const struct step first = {run_prepare, (void *)model_id};
    const struct step each = {run_personalise, subscription};
    const struct step last = {run_switch, NULL};
    const struct step clear = {run_clear, (void *)model_id};
    *result = KS_PUBLISHED;
    if (ks_new_id(a.id, err)) {
        return -1;
    }
    int r = in_transaction(&a, &first, err);
    while (r == 0 && (r = in_transaction(&a, &each, err)) == 0) {
    }
    /* 1 without a result: no subscription is left. */
    if (r < 0 || a.result != KS_PUBLISHED) {
        *result = a.result;
        return r < 0 ? -1 : 0;
    }
    r = in_transaction(&a, &last, err);
    *result = a.result;
    if (r == 0) {
        struct ct_err ignored = CT_ERR_INIT; /* the next publication clears as well */
        (void)in_transaction(&a, &clear, &ignored);
    }
    return r < 0 ? -1 : 0;
}
