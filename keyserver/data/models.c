#include <stdio.h>
#include <string.h>

#include "keyserver/data/data.h"

enum { MASTER_LEN = 32, LEASE_SECONDS = 900 };

static int insert(struct ks_ctx *c, const struct ks_model *m, struct ct_err *err)
{
    ct_autosecret master = NULL;
    ct_autobuf sealed = {0};
    const struct ks_place at = {"models", m->id, "master_sealed", m->owner_id, 0};
    if (ks_make_secret(c, &at, MASTER_LEN, &master, &sealed, err)) {
        return -1;
    }
    return ks_exec(c->db, err,
                   "INSERT INTO models (id, owner_id, name, description, created, master_kid,"
                   " master_sealed, lease_seconds, lease_grace, assurance, profiles)"
                   " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, 'self-reported', '')",
                   "ssssisbi", m->id, m->owner_id, m->name, m->description, m->created,
                   m->master_kid, sealed.data, sealed.len, m->lease_seconds) < 0
               ? -1
               : 0;
}

int ks_model_create(struct ks_ctx *c, const struct ks_user *owner, const char *name,
                    const char *description, struct ks_model *out, struct ct_err *err)
{
    *out = (struct ks_model){
        .created = ks_now(), .lease_seconds = LEASE_SECONDS, .assurance = "self-reported"};
    if (!kx_is_name(name) || strlen(description) >= sizeof(out->description) ||
        (*description && !kx_is_text(description, sizeof(out->description)))) {
        return ct_err_set(err, CT_USAGE,
                          "a model's name is 1 to 64 characters of A-Z a-z 0-9 . _ -, its "
                          "description one line below %zu bytes",
                          sizeof(out->description));
    }
    ks_copy(out->owner_id, sizeof(out->owner_id), owner->id);
    ks_copy(out->owner, sizeof(out->owner), owner->name);
    ks_copy(out->name, sizeof(out->name), name);
    ks_copy(out->description, sizeof(out->description), description);
    if (ks_new_id(out->id, err)) {
        return -1;
    }
    (void)snprintf(out->master_kid, sizeof(out->master_kid), "%s-master-%.8s", name, out->id);
    if (insert(c, out, err)) {
        return err->code == CT_EXISTS
                   ? ct_err_set(err, CT_EXISTS, "there is a model %s/%s", owner->name, name)
                   : -1;
    }
    return 0;
}

#define COLUMNS                                                                                    \
    "SELECT m.id, m.owner_id, u.name, m.name, m.master_kid, m.assurance, m.profiles,"              \
    " m.generation, m.last_generation, m.created, m.lease_seconds, m.lease_grace, m.description"   \
    " FROM models m JOIN users u ON u.id = m.owner_id "

static void copy(char *to, size_t cap, struct ks_rows *rows, int column)
{
    (void)snprintf(to, cap, "%s", ks_text(rows, column));
}

static void take(struct ks_rows *rows, struct ks_model *m)
{
    copy(m->id, sizeof(m->id), rows, 0);
    copy(m->owner_id, sizeof(m->owner_id), rows, 1);
    copy(m->owner, sizeof(m->owner), rows, 2);
    copy(m->name, sizeof(m->name), rows, 3);
    copy(m->master_kid, sizeof(m->master_kid), rows, 4);
    copy(m->assurance, sizeof(m->assurance), rows, 5);
    copy(m->profiles, sizeof(m->profiles), rows, 6);
    m->generation = ks_int(rows, 7);
    m->last_generation = ks_int(rows, 8);
    m->created = ks_int(rows, 9);
    m->lease_seconds = ks_int(rows, 10);
    m->lease_grace = ks_int(rows, 11);
    copy(m->description, sizeof(m->description), rows, 12);
}

int ks_model_find(struct ks_ctx *c, const char *owner, const char *name, struct ks_model *out,
                  struct ct_err *err)
{
    ks_autorows rows = NULL;
    int r =
        ks_one(c->db, &rows, err, COLUMNS "WHERE u.name = $1 AND m.name = $2", "ss", owner, name);
    if (r != 1) {
        return r < 0 ? -1 : 1;
    }
    take(rows, out);
    return 0;
}

int ks_model_get(struct ks_ctx *c, const char *id, struct ks_model *out, struct ct_err *err)
{
    ks_autorows rows = NULL;
    int r = ks_one(c->db, &rows, err, COLUMNS "WHERE m.id = $1", "s", id);
    if (r != 1) {
        return r < 0 ? -1 : 1;
    }
    take(rows, out);
    return 0;
}

int ks_model_master(struct ks_ctx *c, const struct ks_model *m, struct ct_secret **out,
                    struct ct_err *err)
{
    ks_autorows rows = NULL;
    size_t n = 0;
    int r = ks_one(c->db, &rows, err, "SELECT master_sealed FROM models WHERE id = $1", "s", m->id);
    if (r != 1) {
        return r < 0 ? -1 : ct_err_set(err, CT_NOTFOUND, "the model is gone");
    }
    const struct ks_place at = {"models", m->id, "master_sealed", m->owner_id, 0};
    const uint8_t *sealed = ks_blob(rows, 0, &n);
    return ks_unseal(c->seal, &at, sealed, n, out, err);
}

int ks_model_lock(struct ks_ctx *c, const char *id, struct ct_err *err)
{
    int64_t n =
        ks_exec(c->db, err, "UPDATE models SET generation = generation WHERE id = $1", "s", id);
    return n < 0 ? -1 : n == 1 ? 0 : 1;
}

int ks_assurance_rank(const char *name)
{
    static const char *const names[] = {"self-reported", "tpm", "tee"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(names[i], name) == 0) {
            return i;
        }
    }
    return -1;
}
