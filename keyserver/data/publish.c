#include <stdio.h>
#include <string.h>

#include "keyserver/data/data.h"

/*
 * A publication is one transaction: the stage's files become the files of a new generation, and the
 * model gets its number. What was current before is removed with it; headers that were personalised
 * of it go by and by (personal.c).
 */
struct attempt {
    struct ks_ctx *c;
    const struct ks_publication *p;
    struct ks_model model;
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

/* ---- the files ---- */

static int remove_old(struct attempt *a, struct ct_err *err)
{
    struct ks_db *db = a->c->db;
    return ks_exec(db, err, "DELETE FROM files WHERE model_id = $1 AND generation <> $2", "si",
                   a->model.id, a->number) < 0 ||
                   ks_exec(db, err, "DELETE FROM policies WHERE model_id = $1 AND generation <> $2",
                           "si", a->model.id, a->number) < 0 ||
                   ks_exec(db, err, "DELETE FROM staged WHERE model_id = $1 AND stage = $2", "ss",
                           a->model.id, a->p->stage) < 0 ||
                   ks_exec(db, err, "DELETE FROM stages WHERE model_id = $1 AND stage = $2", "ss",
                           a->model.id, a->p->stage) < 0
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

/* ---- all of it ---- */

static int switch_over(struct attempt *a, struct ct_err *err)
{
    struct ks_db *db = a->c->db;
    return ks_exec(db, err,
                   "INSERT INTO generations (model_id, number, created, manifest_sha256) VALUES"
                   " ($1, $2, $3, $4)",
                   "siis", a->model.id, a->number, ks_now(),
                   *a->manifest ? a->manifest : NULL) < 0 ||
                   ks_exec(db, err,
                           "UPDATE models SET generation = $2, last_generation = $2 WHERE id = $1",
                           "si", a->model.id, a->number) < 0 ||
                   remove_old(a, err) || ks_touch(a->c, a->model.id, err)
               ? -1
               : 0;
}

static int publish(struct attempt *a, const char *model_id, struct ct_err *err)
{
    if (ks_model_lock(a->c, model_id, err) || ks_model_get(a->c, model_id, &a->model, err)) {
        return -1;
    }
    a->number = a->model.last_generation + 1;
    if (a->p->generation && a->p->generation != a->number) {
        return ended(a, KS_OTHER_GENERATION, err, "another generation would be next");
    }
    int r = check_manifest(a, err);
    r = r ? r : copy_files(a, err);
    return r ? r : switch_over(a, err);
}

enum { TRIES = 10 };

int ks_publish(struct ks_ctx *c, const char *model_id, const struct ks_publication *p,
               enum ks_published *result, struct ct_err *err)
{
    for (int i = 0;; i++) {
        struct attempt a = {.c = c, .p = p, .result = KS_PUBLISHED};
        int r = ks_begin(c->db, KS_WRITE, err);
        r = r ? r : publish(&a, model_id, err);
        *result = a.result;
        if (r == 0 && ks_commit(c->db, err) == 0) {
            return 0;
        }
        ks_rollback(c->db);
        if (r > 0 || err->code != CT_BUSY || i == TRIES) {
            return r > 0 ? 0 : -1;
        }
    }
}
