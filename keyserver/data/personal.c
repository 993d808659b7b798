#include <stdio.h>
#include <string.h>

#include "keyserver/data/data.h"

/*
 * Headers are personalised when their subscriber first asks for them, not when a generation is
 * published: that would be all of them at once, mostly for nobody. They are made outside a writing
 * transaction and written in batches; of two that make the same header at once the first one
 * counts. What is half made is never given out: the one who asks counts them (api/keys.c).
 */
enum { TRIES = 10, BATCH = 64, BATCH_BYTES = 16 << 20, PATH_LEN = 255 };

struct person {
    struct ks_keys from, to;
    char master_jku[KS_JKU], sign_jku[KS_JKU];
    struct ct_write_keys keys;
};

static struct ct_span span_of(const char *text)
{
    return (struct ct_span){text, strlen(text)};
}

static int person_make(struct ks_ctx *c, const struct ks_model *m, const char *subscription,
                       struct person *p, struct ct_err *err)
{
    if (ks_keys_of_owner(c, m, &p->from, err) ||
        ks_keys_of_subscription(c, subscription, &p->to, err)) {
        return -1;
    }
    (void)snprintf(p->master_jku, sizeof(p->master_jku),
                   "koalavault://resources/%s/models/%s/master-key", m->owner, m->name);
    (void)snprintf(p->sign_jku, sizeof(p->sign_jku), "koalavault://users/%s/sign-key", m->owner);
    p->keys = (struct ct_write_keys){
        .master = p->to.master,
        .alg = CT_ALG_AES256GCM,
        .master_kid = span_of(p->to.master_kid),
        .master_jku = span_of(p->master_jku),
        .seed = p->to.seed,
        .sign_kid = span_of(p->to.sign_kid),
        .sign_jku = span_of(p->sign_jku),
    };
    return 0;
}

/* ---- one batch ---- */

struct made {
    char path[PATH_LEN + 1];
    char sha256[KX_HEX + 1];
    struct ct_buf header;
};

struct batch {
    struct ks_ctx *c;
    const char *model_id, *subscription;
    int64_t generation;
    struct made items[BATCH];
    size_t count, bytes;
};

static void batch_clear(struct batch *b)
{
    for (size_t i = 0; i < b->count; i++) {
        ct_buf_free(&b->items[i].header);
    }
    b->count = b->bytes = 0;
}

static int make_one(struct batch *b, struct person *p, const char *path, struct ct_err *err)
{
    size_t n = 0;
    ks_autorows row = NULL;
    struct made *m = &b->items[b->count++];
    *m = (struct made){0};
    ks_copy(m->path, sizeof(m->path), path);
    int r = ks_one(b->c->db, &row, err,
                   "SELECT header FROM files WHERE model_id = $1 AND generation = $2 AND path = $3",
                   "sis", b->model_id, b->generation, path);
    if (r != 1) {
        return r < 0 ? -1 : ct_err_set(err, CT_STALE, "a header is gone");
    }
    const uint8_t *header = ks_blob(row, 0, &n);
    if (ct_rewrap_header(header, n, CT_BODY_UNKNOWN, &p->from.source, &p->keys, &m->header, err) ||
        kx_hex_sha256(m->header.data, m->header.len, m->sha256, err)) {
        return ct_err_wrap(err, "%s", path);
    }
    b->bytes += m->header.len;
    return 0;
}

static int make_some(struct batch *b, struct person *p, struct ct_err *err)
{
    int r = 1;
    ks_autorows rows =
        ks_query(b->c->db, err,
                 "SELECT f.path FROM files f WHERE f.model_id = $1 AND f.generation = $2 AND"
                 " NOT EXISTS (SELECT 1 FROM personal p WHERE p.subscription_id = $3 AND"
                 " p.generation = f.generation AND p.path = f.path) ORDER BY f.path LIMIT $4",
                 "sisi", b->model_id, b->generation, b->subscription, (int64_t)BATCH);
    if (!rows) {
        return -1;
    }
    while (b->count < BATCH && b->bytes < BATCH_BYTES && (r = ks_next(rows, err)) == 1) {
        if (make_one(b, p, ks_text(rows, 0), err)) {
            return -1;
        }
    }
    return r < 0 ? -1 : 0;
}

/* 1 when another generation is current. */
static int find_model(struct batch *b, struct ks_model *m, struct ct_err *err)
{
    int r = ks_model_get(b->c, b->model_id, m, err);
    return r ? r : m->generation != b->generation;
}

static int make(struct batch *b, struct ct_err *err)
{
    struct ks_model m;
    struct person p = {0};
    if (ks_begin(b->c->db, KS_READ, err)) {
        return -1;
    }
    int r = find_model(b, &m, err);
    if (r == 0) {
        r = person_make(b->c, &m, b->subscription, &p, err) || make_some(b, &p, err) ? -1 : 0;
    }
    ks_rollback(b->c->db);
    ks_keys_free(&p.from);
    ks_keys_free(&p.to);
    return r;
}

static int write_all(struct batch *b, struct ct_err *err)
{
    struct ks_model m;
    struct ks_db *db = b->c->db;
    int r = ks_hold(db, KS_MODELS, b->model_id, err) ? -1 : find_model(b, &m, err);
    if (r) {
        return r;
    }
    for (size_t i = 0; i < b->count; i++) {
        const struct made *one = &b->items[i];
        if (ks_exec(db, err,
                    "INSERT INTO personal (subscription_id, generation, path, sha256, header)"
                    " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
                    "sissb", b->subscription, b->generation, one->path, one->sha256,
                    one->header.data, one->header.len) < 0) {
            return -1;
        }
    }
    return 0;
}

static int write_batch(struct batch *b, struct ct_err *err)
{
    for (int i = 0;; i++) {
        int r = ks_begin(b->c->db, KS_WRITE, err);
        r = r ? r : write_all(b, err);
        if (r == 0 && ks_commit(b->c->db, err) == 0) {
            return 0;
        }
        ks_rollback(b->c->db);
        if (r > 0 || err->code != CT_BUSY || i == TRIES) {
            return r > 0 ? r : -1;
        }
    }
}

int ks_personalise(struct ks_ctx *c, const char *model_id, const char *subscription,
                   int64_t generation, struct ct_err *err)
{
    struct batch b = {
        .c = c, .model_id = model_id, .subscription = subscription, .generation = generation};
    int r = 0;
    size_t made = 0;
    do {
        r = make(&b, err);
        made = b.count;
        r = r || made == 0 ? r : write_batch(&b, err);
        batch_clear(&b);
    } while (r == 0 && made);
    return r < 0 ? -1 : 0;
}

/* ---- those that nobody can ask for any more ---- */

enum { SWEEP = 50 };

struct stale {
    char id[KS_ID + 1];
    int64_t below; /* generations below this one go */
};

static int find_stale(struct ks_ctx *c, struct stale *out, struct ct_err *err)
{
    int n = 0;
    int r = 0;
    ks_autorows rows = ks_query(
        c->db, err,
        "SELECT a.id, a.below FROM (SELECT s.id AS id, CASE WHEN s.ended = 0 AND m.generation > 0"
        " THEN m.generation ELSE m.last_generation + 1 END AS below FROM subscriptions s"
        " JOIN models m ON m.id = s.model_id) a WHERE EXISTS (SELECT 1 FROM personal p WHERE"
        " p.subscription_id = a.id AND p.generation < a.below) LIMIT $1",
        "i", (int64_t)SWEEP);
    while (rows && n < SWEEP && (r = ks_next(rows, err)) == 1) {
        ks_copy(out[n].id, sizeof(out[n].id), ks_text(rows, 0));
        out[n++].below = ks_int(rows, 1);
    }
    return !rows || r < 0 ? -1 : n;
}

static int sweep(struct ks_ctx *c, struct ct_err *err)
{
    struct stale stale[SWEEP];
    int n = find_stale(c, stale, err);
    for (int i = 0; i < n; i++) {
        if (ks_exec(c->db, err,
                    "DELETE FROM personal WHERE subscription_id = $1 AND generation < $2", "si",
                    stale[i].id, stale[i].below) < 0) {
            return -1;
        }
    }
    return n;
}

int ks_personal_sweep(struct ks_ctx *c, struct ct_err *err)
{
    if (ks_begin(c->db, KS_WRITE, err)) {
        return -1;
    }
    int n = sweep(c, err);
    if (n <= 0) {
        ks_rollback(c->db);
        return n;
    }
    return ks_commit(c->db, err) ? -1 : n;
}
