#include <string.h>

#include "format/manifest_parts.h"
#include "format/scan.h"

/* The members that an entry, or one of its plain ranges, can have. */
enum member { PATH, KIND, SIZE, SHA256, PIECES, TARGET, BODY, HEADER, PLAIN, BEGIN, END, MEMBERS };

static const char *const member_names[MEMBERS] = {
    [PATH] = "path",     [KIND] = "kind",     [SIZE] = "size", [SHA256] = "sha256",
    [PIECES] = "pieces", [TARGET] = "target", [BODY] = "body", [HEADER] = "header",
    [PLAIN] = "plain",   [BEGIN] = "begin",   [END] = "end",
};

#define BIT(member) (1U << (member))

static const struct {
    const char *name;
    unsigned required, optional;
} kinds[] = {
    [CT_ENTRY_FILE] = {"file", BIT(PATH) | BIT(KIND) | BIT(SIZE) | BIT(SHA256), BIT(PIECES)},
    [CT_ENTRY_LINK] = {"link", BIT(PATH) | BIT(KIND) | BIT(TARGET), 0},
    [CT_ENTRY_SHARD] = {"shard", BIT(PATH) | BIT(KIND) | BIT(BODY) | BIT(HEADER), BIT(PLAIN)},
};
enum { KINDS = sizeof(kinds) / sizeof(*kinds) };

struct reader {
    struct ct_scan s;
    struct ct_manifest *m;
    size_t cap;         /* of m->entries */
    struct ct_buf text; /* the last string */
    struct ct_digests *plain;
    size_t plain_cap;
};

/* ---- values ---- */

static int read_text(struct reader *r)
{
    r->text.len = 0;
    return ct_scan_string_to(&r->s, &r->text);
}

static int read_int(struct reader *r, uint64_t *out)
{
    if (ct_scan_u64(&r->s, out)) {
        return -1;
    }
    return *out <= CT_MANIFEST_INT_MAX ? 0 : ct_scan_fail(&r->s, "the number is too large");
}

static int read_string(struct reader *r, const char **out)
{
    if (read_text(r)) {
        return -1;
    }
    if (r->text.len == 0 || memchr(r->text.data, 0, r->text.len)) {
        return ct_scan_fail(&r->s, "an empty string, or one with a NUL");
    }
    *out = ct_arena_copy(&r->m->arena, r->text.data, r->text.len, r->s.err);
    return *out ? 0 : -1;
}

/* Digests back to back; at least one. */
static int read_digests(struct reader *r, const uint8_t (**out)[CT_DIGEST], size_t *count)
{
    if (read_text(r)) {
        return -1;
    }
    const char *text = (const char *)r->text.data;
    size_t len = r->text.len;
    size_t most = len / 4 * 3 + 2;
    bool url = len && !memchr(text, '=', len) && !memchr(text, '+', len) && !memchr(text, '/', len);
    *count = most / CT_DIGEST;
    uint8_t(*to)[CT_DIGEST] = ct_arena_alloc(&r->m->arena, *count, CT_DIGEST, r->s.err);
    if (!to) {
        return -1;
    }
    ssize_t n = url ? ct_base64_decode(text, len, to[0], *count * CT_DIGEST) : -1;
    if (n <= 0 || n % CT_DIGEST) {
        return ct_scan_fail(&r->s, "no digests in base64url");
    }
    *count = (size_t)n / CT_DIGEST;
    *out = (const uint8_t(*)[CT_DIGEST])to;
    return 0;
}

static int read_digest(struct reader *r, uint8_t out[static CT_DIGEST])
{
    uint8_t bytes[CT_DIGEST];
    if (read_text(r)) {
        return -1;
    }
    const char *text = (const char *)r->text.data;
    if (r->text.len != 43 || memchr(text, '+', 43) || memchr(text, '/', 43) ||
        ct_base64_decode(text, 43, bytes, sizeof(bytes)) != CT_DIGEST) {
        return ct_scan_fail(&r->s, "no digest in base64url");
    }
    memcpy(out, bytes, sizeof(bytes));
    return 0;
}

/* The name of the next member and its colon; each may stand once. */
static int read_name(struct reader *r, unsigned *seen, enum member *out)
{
    char name[16];
    size_t len = 0;
    if (ct_scan_short(&r->s, name, sizeof(name), &len)) {
        return -1;
    }
    for (unsigned i = 0; i < MEMBERS; i++) {
        if (strlen(member_names[i]) == len && memcmp(member_names[i], name, len) == 0) {
            if (*seen & BIT(i)) {
                return ct_scan_fail(&r->s, "a member stands twice");
            }
            *seen |= BIT(i);
            *out = (enum member)i;
            return ct_scan_expect(&r->s, ':');
        }
    }
    return ct_scan_fail(&r->s, "an unknown member");
}

/* ---- plain ranges of a shard ---- */

static int read_range(struct reader *r, struct ct_digests *d)
{
    unsigned seen = 0;
    bool first = true;
    int more = 0;
    *d = (struct ct_digests){.piece = CT_DIGEST_PIECE};
    if (ct_scan_expect(&r->s, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&r->s, '}', &first)) == 1) {
        enum member member = MEMBERS;
        if (read_name(r, &seen, &member)) {
            return -1;
        }
        int failed = member == BEGIN    ? read_int(r, &d->begin)
                     : member == END    ? read_int(r, &d->end)
                     : member == PIECES ? read_digests(r, &d->sha256, &d->count)
                                        : ct_scan_fail(&r->s, "a member that no range has");
        if (failed) {
            return -1;
        }
    }
    if (more == 0 && seen != (BIT(BEGIN) | BIT(END) | BIT(PIECES))) {
        return ct_scan_fail(&r->s, "a range lacks a member");
    }
    return more;
}

/* The items, moved if need be, with room for one more; doubles. They stay where they are, and the
 * caller's, when it fails with NULL. */
static void *grow(void *items, size_t *cap, size_t count, size_t size, struct ct_err *err)
{
    if (count < *cap) {
        return items;
    }
    size_t more = *cap ? *cap * 2 : 16;
    void *p = reallocarray(items, more, size);
    if (!p) {
        ct_err_set(err, CT_NOMEM, "no memory for a manifest");
        return NULL;
    }
    *cap = more;
    return p;
}

static int read_plain(struct reader *r, struct ct_entry *e)
{
    bool first = true;
    int more = 0;
    size_t n = 0;
    if (ct_scan_expect(&r->s, '[')) {
        return -1;
    }
    while ((more = ct_scan_more(&r->s, ']', &first)) == 1) {
        void *p = grow(r->plain, &r->plain_cap, n, sizeof(*r->plain), r->s.err);
        r->plain = p ? p : r->plain;
        if (!p || read_range(r, &r->plain[n++])) {
            return -1;
        }
    }
    if (more < 0) {
        return -1;
    }
    if (n == 0) {
        return ct_scan_fail(&r->s, "an empty list of ranges");
    }
    struct ct_digests *to = ct_arena_alloc(&r->m->arena, n, sizeof(*to), r->s.err);
    if (!to) {
        return -1;
    }
    memcpy(to, r->plain, n * sizeof(*to));
    e->plain = to;
    e->plain_count = n;
    return 0;
}

/* ---- entries ---- */

static int read_kind(struct reader *r, enum ct_entry_kind *kind)
{
    char name[16];
    size_t len = 0;
    if (ct_scan_short(&r->s, name, sizeof(name), &len)) {
        return -1;
    }
    for (unsigned i = 0; i < KINDS; i++) {
        if (strlen(kinds[i].name) == len && memcmp(kinds[i].name, name, len) == 0) {
            *kind = (enum ct_entry_kind)i;
            return 0;
        }
    }
    return ct_scan_fail(&r->s, "an unknown kind of entry");
}

static int read_member(struct reader *r, enum member member, struct ct_entry *e)
{
    switch (member) {
    case PATH:
        return read_string(r, &e->path);
    case KIND:
        return read_kind(r, &e->kind);
    case TARGET:
        return read_string(r, &e->target);
    case SIZE:
    case BODY:
        return read_int(r, &e->size);
    case SHA256:
    case HEADER:
        return read_digest(r, e->sha256);
    case PIECES:
        e->pieces.piece = CT_DIGEST_PIECE;
        return read_digests(r, &e->pieces.sha256, &e->pieces.count);
    case PLAIN:
        return read_plain(r, e);
    case BEGIN:
    case END:
    case MEMBERS:
        break;
    }
    return ct_scan_fail(&r->s, "a member that no entry has");
}

static int read_entry(struct reader *r, struct ct_entry *e)
{
    unsigned seen = 0;
    bool first = true;
    int more = 0;
    *e = (struct ct_entry){0};
    if (ct_scan_expect(&r->s, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&r->s, '}', &first)) == 1) {
        enum member member = MEMBERS;
        if (read_name(r, &seen, &member) || read_member(r, member, e)) {
            return -1;
        }
    }
    if (more < 0) {
        return -1;
    }
    if (!(seen & BIT(KIND)) || (seen & ~kinds[e->kind].optional) != kinds[e->kind].required) {
        return ct_scan_fail(&r->s, "an entry lacks a member, or has one of another kind");
    }
    e->pieces.end = e->pieces.count ? e->size : 0;
    return ct_entry_check(e, CT_MALFORMED, r->s.err);
}

static int read_entries(struct reader *r)
{
    struct ct_manifest *m = r->m;
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&r->s, '[')) {
        return -1;
    }
    while ((more = ct_scan_more(&r->s, ']', &first)) == 1) {
        void *p = grow(m->entries, &r->cap, m->count, sizeof(*m->entries), r->s.err);
        m->entries = p ? p : m->entries;
        if (!p || read_entry(r, &m->entries[m->count])) {
            return -1;
        }
        m->count++;
    }
    return more ? -1 : ct_entries_check(m->entries, m->count, CT_MALFORMED, r->s.err);
}

/* ---- the payload ---- */

static int read_version(struct reader *r)
{
    uint64_t version = 0;
    if (read_int(r, &version)) {
        return -1;
    }
    return version == CT_MANIFEST_VERSION
               ? 0
               : ct_err_set(r->s.err, CT_UNSUPPORTED, "version %llu of the manifest is not known",
                            (unsigned long long)version);
}

static int read_top(struct reader *r)
{
    static const char *const names[] = {"version", "generation", "entries"};
    unsigned seen = 0;
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&r->s, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&r->s, '}', &first)) == 1) {
        char name[16];
        size_t len = 0;
        unsigned i = 0;
        if (ct_scan_short(&r->s, name, sizeof(name), &len)) {
            return -1;
        }
        while (i < 3 && (strlen(names[i]) != len || memcmp(names[i], name, len) != 0)) {
            i++;
        }
        if (i == 3 || (seen & BIT(i))) {
            return ct_scan_fail(&r->s, "an unknown member, or one that stands twice");
        }
        seen |= BIT(i);
        if (ct_scan_expect(&r->s, ':') || (i == 0   ? read_version(r)
                                           : i == 1 ? read_int(r, &r->m->generation)
                                                    : read_entries(r))) {
            return -1;
        }
    }
    if (more == 0 && seen != 7) {
        return ct_scan_fail(&r->s, "version, generation or entries is missing");
    }
    return more ? -1 : ct_scan_end(&r->s);
}

int ct_manifest_read_payload(struct ct_manifest *m, const uint8_t *json, size_t n,
                             struct ct_err *err)
{
    struct ct_err unwanted;
    struct reader r = {.m = m};
    ct_scan_memory(&r.s, json, n, err ? err : &unwanted);
    int failed = read_top(&r);
    ct_buf_free(&r.text);
    free(r.plain);
    return failed;
}
