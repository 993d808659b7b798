#include "kvfs/audit/verify.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Around what differs: {"chain":"ID","n":…  …,"head":"H"} */
#define BEFORE_ID "{\"chain\":\""
#define AFTER_ID "\",\"n\":"
#define BEFORE_HEAD ",\"head\":\""

enum { TAIL = sizeof(BEFORE_HEAD) - 1 + KX_HEX + 2, START = sizeof(BEFORE_ID) - 1 };

/* A line in parts. */
struct parts {
    char id[KVFS_AUDIT_ID + 1];
    char head[KX_HEX + 1];
    struct ct_buf record; /* with a NUL that `len` does not count */
    json_t *json;         /* of the record */
    int64_t number;
    const char *event;
};

void kvfs_audit_verify_init(struct kvfs_audit_verifier *v, const char *wanted,
                            kvfs_audit_fault_fn fault, void *ctx)
{
    *v = (struct kvfs_audit_verifier){.fault = fault, .ctx = ctx, .wanted = wanted, .behind = -1};
}

__attribute__((format(printf, 3, 4))) static void tell(struct kvfs_audit_verifier *v, size_t line,
                                                       const char *fmt, ...)
{
    char sentence[512];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(sentence, sizeof(sentence), fmt, ap);
    va_end(ap);
    v->faults++;
    v->fault(v->ctx, line, sentence);
}

/* ---- a line's form ---- */

static bool take_tail(const char *line, size_t n, struct parts *p)
{
    const char *tail = line + n - TAIL;
    const size_t before = sizeof(BEFORE_HEAD) - 1;
    if (n < TAIL + START || memcmp(tail, BEFORE_HEAD, before) != 0 ||
        memcmp(tail + before + KX_HEX, "\"}", 2) != 0) {
        return false;
    }
    memcpy(p->head, tail + before, KX_HEX);
    p->head[KX_HEX] = '\0';
    ct_buf_put(&p->record, line, n - TAIL);
    ct_buf_put(&p->record, "}", 2);
    p->record.len -= p->record.failed ? 0 : 1;
    return kx_is_hex(p->head, KX_HEX) && !p->record.failed;
}

/* The beginning is compared as text, so that a record has one spelling only. */
static bool take_start(struct parts *p)
{
    char start[128];
    const json_t *number = json_object_get(p->json, "n");
    const char *id = json_string_value(json_object_get(p->json, "chain"));
    p->event = json_string_value(json_object_get(p->json, "event"));
    if (!id || !kx_is_hex(id, KVFS_AUDIT_ID) || !json_is_integer(number) || !p->event) {
        return false;
    }
    memcpy(p->id, id, sizeof(p->id));
    p->number = json_integer_value(number);
    int n = snprintf(start, sizeof(start), BEFORE_ID "%s" AFTER_ID "%lld,", p->id,
                     (long long)p->number);
    return p->number >= 1 && strncmp((const char *)p->record.data, start, (size_t)n) == 0;
}

static bool take_parts(const char *line, size_t n, struct parts *p)
{
    return !memchr(line, '\0', n) && take_tail(line, n, p) &&
           (p->json = kx_json_parse(p->record.data, p->record.len, NULL)) && take_start(p);
}

/* ---- chains ---- */

static struct kvfs_audit_read *find(const struct kvfs_audit_verifier *v, const char *id)
{
    for (size_t i = v->count; i-- > 0;) {
        if (strcmp(v->chains[i]->chain.id, id) == 0) {
            return v->chains[i];
        }
    }
    return NULL;
}

static void copy(char *to, size_t cap, const json_t *record, const char *name)
{
    const char *text = json_string_value(json_object_get(record, name));
    ct_utf8_copy(to, cap, text ? text : "");
}

static struct kvfs_audit_read *add(struct kvfs_audit_verifier *v, const char *id,
                                   struct ct_err *err)
{
    if (v->count == v->room) {
        const size_t room = v->room ? 2 * v->room : 16;
        void *more = realloc(v->chains, room * sizeof(struct kvfs_audit_read *));
        if (!more) {
            ct_err_set(err, CT_NOMEM, "no memory for audit chains");
            return NULL;
        }
        v->chains = more;
        v->room = room;
    }
    struct kvfs_audit_read *c = calloc(1, sizeof(*c));
    if (!c || kvfs_audit_start(&c->chain, id, err)) {
        free(c);
        ct_err_set(err, CT_NOMEM, "no memory for audit chains");
        return NULL;
    }
    v->chains[v->count++] = c;
    return c;
}

static void take_first(struct kvfs_audit_verifier *v, struct kvfs_audit_read *c,
                       const struct parts *p)
{
    json_t *key = json_object_get(p->json, "audit_key");
    bool is_lease = json_object_get(p->json, "lease") != NULL;
    copy(c->about, sizeof(c->about), p->json, is_lease ? "model" : "mountpoint");
    if (is_lease) {
        copy(c->mount, sizeof(c->mount), p->json, "mount");
    }
    if (c->key) {
        return; /* again, which has been told */
    }
    if (strcmp(p->event, "failed") == 0 && json_is_false(json_object_get(p->json, "signed"))) {
        c->failed = true;
        return;
    }
    if (kx_jwk_check(key, NULL) || kx_jwk_thumbprint(key, c->thumbprint, NULL)) {
        tell(v, v->lines, "chain %s: its first line names no audit key", c->chain.id);
    } else {
        c->key = json_incref(key);
    }
}

/* ---- what a record says of its chain ---- */

static void take_signature(struct kvfs_audit_verifier *v, struct kvfs_audit_read *c,
                           const struct kvfs_audit_chain *before, const struct parts *p)
{
    kx_autojson payload = NULL;
    struct ct_err why = CT_ERR_INIT;
    json_int_t version = 0;
    json_int_t sequence = 0;
    const char *chain = NULL;
    const char *head = NULL;
    if (!c->key) {
        return; /* has been told */
    }
    if (kx_jws_verify(json_object_get(p->json, "signed"), KVFS_AUDIT_TYP, c->key, &payload, &why)) {
        tell(v, v->lines, "chain %s: %s", c->chain.id, why.msg);
    } else if (json_unpack(payload, "{s:I,s:s,s:I,s:s}", "version", &version, "chain", &chain,
                           "sequence", &sequence, "head", &head) ||
               version != 1 || strcmp(chain, before->id) != 0 || sequence != before->count ||
               strcmp(head, before->head) != 0) {
        tell(v, v->lines, "chain %s: the signature is for other records", c->chain.id);
    } else {
        c->is_signed = sequence;
    }
}

static int note_lease(struct kvfs_audit_verifier *v, const struct parts *p, struct ct_err *err)
{
    const char *lease = json_string_value(json_object_get(p->json, "lease"));
    if (!lease || !kx_is_hex(lease, KVFS_AUDIT_ID)) {
        return 0;
    }
    if (v->lease_count == v->lease_room) {
        const size_t room = v->lease_room ? 2 * v->lease_room : 16;
        void *more = realloc(v->leases, room * sizeof(*v->leases));
        if (!more) {
            return ct_err_set(err, CT_NOMEM, "no memory for audit chains");
        }
        v->leases = more;
        v->lease_room = room;
    }
    memcpy(v->leases[v->lease_count++], lease, KVFS_AUDIT_ID + 1);
    return 0;
}

static int take_event(struct kvfs_audit_verifier *v, struct kvfs_audit_read *c,
                      const struct kvfs_audit_chain *before, const struct parts *p,
                      struct ct_err *err)
{
    if (p->number == 1) {
        take_first(v, c, p);
    } else if (c->failed) {
        tell(v, v->lines, "chain %s: it goes on, though no mount came of it", c->chain.id);
    }
    if (strcmp(p->event, "signature") == 0) {
        take_signature(v, c, before, p);
    } else if (strcmp(p->event, "end") == 0) {
        c->ended = true;
    } else if (strcmp(p->event, "worker-ended") == 0) {
        c->orphaned = true;
    } else if (strcmp(p->event, "release") == 0 && !c->mount[0]) {
        return note_lease(v, p, err);
    }
    if (c->key && !c->orphaned && c->chain.count - c->is_signed > KVFS_AUDIT_SIGN_LATEST) {
        tell(v, v->lines, "chain %s: records after %lld should be signed, and are not", c->chain.id,
             (long long)c->is_signed);
        json_decref(c->key); /* told once */
        c->key = NULL;
    }
    return 0;
}

/* Whether the record is what comes next. After a fault it goes on from here. */
static int compare(struct kvfs_audit_verifier *v, struct kvfs_audit_read *c, const struct parts *p,
                   struct ct_err *err)
{
    struct kvfs_audit_chain *at = &c->chain;
    if (p->number > at->count + 1) {
        tell(v, v->lines, "chain %s: records %lld to %lld are missing before this", at->id,
             (long long)at->count + 1, (long long)p->number - 1);
    } else if (p->number <= at->count) {
        tell(v, v->lines, "chain %s: record %lld again, or out of order", at->id,
             (long long)p->number);
    } else {
        if (kx_audit_next(at->head, p->number, (const char *)p->record.data, err)) {
            return -1;
        }
        if (strcmp(at->head, p->head) != 0) {
            tell(v, v->lines, "chain %s: record %lld, or the one before it, was altered", at->id,
                 (long long)p->number);
        }
    }
    at->count = p->number;
    memcpy(at->head, p->head, sizeof(at->head));
    return 0;
}

static void look_for_wanted(struct kvfs_audit_verifier *v, struct kvfs_audit_read *c)
{
    if (c == v->found_in) {
        v->behind++;
    } else if (v->wanted && strcmp(v->wanted, c->chain.head) == 0) {
        v->found_in = c;
        v->behind = 0;
    }
}

static int take(struct kvfs_audit_verifier *v, const struct parts *p, struct ct_err *err)
{
    struct kvfs_audit_read *c = find(v, p->id);
    c = c ? c : add(v, p->id, err);
    if (!c) {
        return -1;
    }
    const struct kvfs_audit_chain before = c->chain;
    if (compare(v, c, p, err) || take_event(v, c, &before, p, err)) {
        return -1;
    }
    look_for_wanted(v, c);
    return 0;
}

int kvfs_audit_verify_line(struct kvfs_audit_verifier *v, const char *line, size_t n, bool whole,
                           struct ct_err *err)
{
    struct parts p = {.number = 0};
    int r = 0;
    v->lines++;
    if (!take_parts(line, n, &p)) {
        tell(v, v->lines, "it is no audit line%s", whole ? "" : ": cut in the middle");
    } else {
        if (!whole) {
            tell(v, v->lines, "its line end is missing");
        }
        r = take(v, &p, err);
    }
    ct_buf_free(&p.record);
    json_decref(p.json);
    return r;
}

void kvfs_audit_verify_end(struct kvfs_audit_verifier *v)
{
    for (size_t i = 0; i < v->lease_count; i++) {
        if (!find(v, v->leases[i])) {
            tell(v, 0, "the chain of lease %s, which was released, is missing", v->leases[i]);
        }
    }
    for (size_t i = 0; i < v->count; i++) {
        const struct kvfs_audit_read *c = v->chains[i];
        if (c->mount[0] && !find(v, c->mount)) {
            tell(v, 0, "chain %s: that of its mount, %s, is missing", c->chain.id, c->mount);
        }
    }
    if (v->wanted && v->behind < 0) {
        tell(v, 0, "the head is not there: the tail was cut, or it is of another file");
    }
}

void kvfs_audit_verify_free(struct kvfs_audit_verifier *v)
{
    for (size_t i = 0; i < v->count; i++) {
        json_decref(v->chains[i]->key);
        free(v->chains[i]);
    }
    free(v->chains);
    free(v->leases);
}
