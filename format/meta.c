#include "format/meta.h"

#include <string.h>
#include <strings.h>

#include "format/base/arena.h"

/* Members of the fields nest at most this deep; what is deeper is refused, not recursed into. */
enum { DEPTH_MAX = 4 };

bool ct_meta_is_reserved(struct ct_span key)
{
    return ct_span_eq(key, "__crypto_keys__") || ct_span_eq(key, "__encryption__") ||
           ct_span_eq(key, "__policy__") || ct_span_eq(key, "__signature__");
}

bool ct_meta_is_encrypted(const struct ct_header *h)
{
    return ct_header_meta(h, "__encryption__") != NULL;
}

static const struct ct_span *field(const struct ct_header *h, const char *name, struct ct_err *err)
{
    const struct ct_span *value = ct_header_meta(h, name);
    if (!value) {
        ct_err_set(err, CT_MALFORMED, "%s is missing", name);
    }
    return value;
}

/* Copies a scanner's error out and says which field it was in. */
static int failed_in(const char *name, const struct ct_err *mine, struct ct_err *err)
{
    if (err) {
        *err = *mine;
    }
    return ct_err_wrap(err, "%s", name);
}

static int skip_word(struct ct_scan *s)
{
    static const char *const words[] = {"true", "false", "null"};
    int c = ct_scan_peek(s);
    for (size_t i = 0; i < 3; i++) {
        if (c == words[i][0]) {
            for (const char *p = words[i]; *p; p++) {
                if (s->p == s->end || *s->p++ != (uint8_t)*p) {
                    return ct_scan_fail(s, "not a value");
                }
            }
            return 0;
        }
    }
    uint64_t ignored = 0;
    return ct_scan_u64(s, &ignored);
}

/* A value that nothing here depends on. */
static int skip_value(struct ct_scan *s)
{
    char close[DEPTH_MAX];
    bool first[DEPTH_MAX];
    int depth = 0;
    do {
        int c = ct_scan_peek(s);
        if (c == '{' || c == '[') {
            if (depth == DEPTH_MAX) {
                return ct_scan_fail(s, "nested too deep");
            }
            (void)ct_scan_expect(s, (char)c);
            close[depth] = c == '{' ? '}' : ']';
            first[depth++] = true;
        } else if (c == '"' ? ct_scan_string(s, NULL, NULL) : skip_word(s)) {
            return -1;
        }
        int more = 0;
        while (depth > 0 && (more = ct_scan_more(s, close[depth - 1], &first[depth - 1])) == 0) {
            depth--;
        }
        if (more < 0) {
            return -1;
        }
        if (depth > 0 && close[depth - 1] == '}' &&
            (ct_scan_string(s, NULL, NULL) || ct_scan_expect(s, ':'))) {
            return -1;
        }
    } while (depth > 0);
    return 0;
}

/* Which of the names the next member has, -1 for another; *seen remembers each. */
static int take_name(struct ct_scan *s, const char *const *names, unsigned *seen, int *which)
{
    char name[32];
    size_t n = 0;
    if (ct_scan_short(s, name, sizeof(name), &n) || ct_scan_expect(s, ':')) {
        return -1;
    }
    *which = -1;
    for (int i = 0; names[i]; i++) {
        if (strlen(names[i]) == n && strcmp(names[i], name) == 0) {
            if (*seen & 1U << i) {
                return ct_scan_fail(s, "a member twice");
            }
            *seen |= 1U << i;
            *which = i;
        }
    }
    return 0;
}

/* ---- __crypto_keys__ ---- */

struct keys_parser {
    struct ct_scan scan;
    struct ct_keys_field *out;
    char *free; /* in out->arena, which is as large as the text */
    char kty[16], alg[32];
};

static int take_span(struct keys_parser *k, struct ct_span *out)
{
    ct_autobuf text = {0};
    if (ct_scan_string_to(&k->scan, &text)) {
        return -1;
    }
    *out = (struct ct_span){k->free, text.len};
    if (text.len) {
        memcpy(k->free, text.data, text.len);
    }
    k->free += text.len;
    return 0;
}

static int take_jwk(struct keys_parser *k, struct ct_keyref *ref)
{
    static const char *const names[] = {"kty", "alg", "kid", "jku", NULL};
    unsigned seen = 0;
    bool first = true;
    int more = 0;
    size_t n = 0;
    k->kty[0] = k->alg[0] = '\0';
    if (ct_scan_expect(&k->scan, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&k->scan, '}', &first)) == 1) {
        int which = -1;
        if (take_name(&k->scan, names, &seen, &which)) {
            return -1;
        }
        int r = which == 0   ? ct_scan_short(&k->scan, k->kty, sizeof(k->kty), &n)
                : which == 1 ? ct_scan_short(&k->scan, k->alg, sizeof(k->alg), &n)
                : which == 2 ? take_span(k, &ref->kid)
                : which == 3 ? take_span(k, &ref->jku)
                             : skip_value(&k->scan);
        if (r) {
            return -1;
        }
    }
    if (more == 0 && (seen & 3) != 3) {
        return ct_scan_fail(&k->scan, "a JWK without kty or alg");
    }
    return more;
}

static int take_enc(struct keys_parser *k)
{
    if (take_jwk(k, &k->out->enc)) {
        return -1;
    }
    k->out->enc.alg = ct_alg_parse(k->alg, strlen(k->alg));
    if (strcasecmp(k->kty, "oct") != 0 || k->out->enc.alg == CT_ALG_NONE) {
        return ct_err_set(k->scan.err, CT_UNSUPPORTED, "algorithm %s/%s is not known", k->kty,
                          k->alg);
    }
    return 0;
}

static int take_sign(struct keys_parser *k)
{
    if (take_jwk(k, &k->out->sign)) {
        return -1;
    }
    if (strcasecmp(k->kty, "okp") != 0 || strcasecmp(k->alg, "ed25519") != 0) {
        return ct_err_set(k->scan.err, CT_UNSUPPORTED, "signature algorithm %s/%s is not known",
                          k->kty, k->alg);
    }
    return 0;
}

static int take_version(struct keys_parser *k)
{
    char version[16];
    size_t n = 0;
    if (ct_scan_short(&k->scan, version, sizeof(version), &n)) {
        return -1;
    }
    k->out->version = strcmp(version, "1") == 0 ? 1 : strcmp(version, "2") == 0 ? 2 : 0;
    if (k->out->version == 0 || n != 1) {
        return ct_err_set(k->scan.err, CT_UNSUPPORTED, "version %s is not known", version);
    }
    return 0;
}

static int take_keys(struct keys_parser *k)
{
    static const char *const names[] = {"version", "enc", "sign", "chunk_size", NULL};
    unsigned seen = 0;
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&k->scan, '{')) {
        return -1;
    }
    k->out->chunk_size = CT_CHUNK_DEFAULT;
    while ((more = ct_scan_more(&k->scan, '}', &first)) == 1) {
        int which = -1;
        if (take_name(&k->scan, names, &seen, &which)) {
            return -1;
        }
        int r = which == 0   ? take_version(k)
                : which == 1 ? take_enc(k)
                : which == 2 ? take_sign(k)
                : which == 3 ? ct_scan_u64(&k->scan, &k->out->chunk_size)
                             : skip_value(&k->scan);
        if (r) {
            return -1;
        }
    }
    if (more < 0 || ct_scan_end(&k->scan)) {
        return -1;
    }
    if ((seen & 7) != 7) {
        return ct_scan_fail(&k->scan, "version, enc or sign is missing");
    }
    if (k->out->version == 1) {
        k->out->chunk_size = 0;
    } else if (k->out->chunk_size == 0) {
        return ct_scan_fail(&k->scan, "a chunk_size of 0");
    }
    return 0;
}

int ct_meta_keys(const struct ct_header *h, struct ct_keys_field *out, struct ct_err *err)
{
    struct ct_err mine;
    *out = (struct ct_keys_field){0};
    const struct ct_span *text = field(h, "__crypto_keys__", err);
    if (!text) {
        return -1;
    }
    out->arena = malloc(text->n + 1);
    if (!out->arena) {
        return ct_err_set(err, CT_NOMEM, "no memory for __crypto_keys__");
    }
    struct keys_parser k = {.out = out, .free = out->arena};
    ct_scan_memory(&k.scan, text->p, text->n, &mine);
    if (take_keys(&k)) {
        ct_keys_field_free(out);
        return failed_in("__crypto_keys__", &mine, err);
    }
    return 0;
}

void ct_keys_field_free(struct ct_keys_field *f)
{
    free(f->arena);
    *f = (struct ct_keys_field){0};
}

/* ---- __encryption__ ---- */

struct enc_parser {
    struct ct_scan scan;
    const struct ct_header *header;
    const struct ct_keys_field *keys;
    struct ct_encryption_field *out;
    struct ct_arena *arena;
    struct ct_buf text;  /* a base64 string as it stands */
    struct ct_buf bytes; /* decoded */
};

static int take_base64(struct enc_parser *e)
{
    e->text.len = e->bytes.len = 0;
    if (ct_scan_string_to(&e->scan, &e->text)) {
        return -1;
    }
    size_t cap = e->text.len / 4 * 3 + 3;
    uint8_t *to = ct_buf_reserve(&e->bytes, cap);
    if (!to) {
        return ct_buf_ok(&e->bytes, e->scan.err);
    }
    ssize_t n = e->text.len ? ct_base64_decode((char *)e->text.data, e->text.len, to, cap) : 0;
    if (n < 0) {
        return ct_scan_fail(&e->scan, "not base64");
    }
    e->bytes.len = (size_t)n;
    return 0;
}

static int take_exactly(struct enc_parser *e, uint8_t *to, size_t n)
{
    if (take_base64(e)) {
        return -1;
    }
    if (e->bytes.len != n) {
        return ct_scan_fail(&e->scan, "a value of the wrong length");
    }
    if (n) {
        memcpy(to, e->bytes.data, n);
    }
    return 0;
}

static uint64_t message_count(const struct ct_keys_field *keys, uint64_t len)
{
    if (keys->version == 1) {
        return len ? 1 : 0;
    }
    return len ? len / keys->chunk_size + (len % keys->chunk_size != 0) : 1;
}

static int take_tags(struct enc_parser *e, const struct ct_tensor *t, struct ct_encrypted *entry)
{
    uint64_t want = message_count(e->keys, t->end - t->begin);
    if (take_base64(e)) {
        return -1;
    }
    if (e->bytes.len % CT_TAG_LEN || e->bytes.len / CT_TAG_LEN != want || want > UINT32_MAX) {
        return ct_scan_fail(&e->scan, "not one tag for each message");
    }
    uint8_t *tags = ct_arena_alloc(e->arena, e->bytes.len, 1, e->scan.err);
    if (!tags) {
        return -1;
    }
    if (e->bytes.len) {
        memcpy(tags, e->bytes.data, e->bytes.len);
    }
    entry->tags = tags;
    entry->tag_count = (uint32_t)want;
    return 0;
}

static int take_iv(struct enc_parser *e, const struct ct_tensor *t, struct ct_encrypted *entry)
{
    bool none = e->keys->version == 1 && t->begin == t->end;
    return take_exactly(e, entry->iv, none ? 0 : CT_IV_LEN);
}

static int take_entry_members(struct enc_parser *e, const struct ct_tensor *t,
                              struct ct_encrypted *entry)
{
    static const char *const v1[] = {"wrapped_key", "key_iv",   "key_tag", "iv",
                                     "tag",         "enc_algo", NULL};
    static const char *const v2[] = {"wrapped_key", "key_iv",   "key_tag", "base_iv",
                                     "tags",        "enc_algo", NULL};
    unsigned seen = 0;
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&e->scan, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&e->scan, '}', &first)) == 1) {
        int which = -1;
        if (take_name(&e->scan, e->keys->version == 1 ? v1 : v2, &seen, &which)) {
            return -1;
        }
        int r = 0;
        switch (which) {
        case 0:
            r = take_exactly(e, entry->wrapped_key, ct_alg_key_len(e->keys->enc.alg));
            break;
        case 1:
            r = take_exactly(e, entry->key_iv, CT_IV_LEN);
            break;
        case 2:
            r = take_exactly(e, entry->key_tag, CT_TAG_LEN);
            break;
        case 3:
            r = take_iv(e, t, entry);
            break;
        case 4:
            r = take_tags(e, t, entry);
            break;
        case 5:
            r = ct_scan_string(&e->scan, NULL, NULL);
            break;
        default:
            r = ct_scan_fail(&e->scan, "a member that this version does not have");
        }
        if (r) {
            return -1;
        }
    }
    if (more == 0 && (seen & 31) != 31) {
        return ct_scan_fail(&e->scan, "a member is missing");
    }
    return more;
}

static int take_entry(struct enc_parser *e)
{
    struct ct_span name;
    ct_autobuf text = {0};
    if (ct_scan_string_to(&e->scan, &text) || ct_scan_expect(&e->scan, ':')) {
        return -1;
    }
    name = (struct ct_span){(char *)text.data, text.len};
    ptrdiff_t i = ct_header_find(e->header, name);
    if (i < 0) {
        return ct_scan_fail(&e->scan, "an entry for a tensor that does not exist");
    }
    struct ct_encrypted *entry = &e->out->entries[i];
    if (entry->encrypted) {
        return ct_scan_fail(&e->scan, "a tensor twice");
    }
    entry->encrypted = true;
    if (take_entry_members(e, &e->header->tensors[i], entry)) {
        return -1;
    }
    if (e->keys->version == 2 && ct_be32(entry->iv + 8) > UINT32_MAX - (entry->tag_count - 1)) {
        return ct_scan_fail(&e->scan, "the chunk counter overflows");
    }
    return 0;
}

static int take_entries(struct enc_parser *e)
{
    bool first = true;
    int more = 0;
    if (ct_scan_expect(&e->scan, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(&e->scan, '}', &first)) == 1) {
        if (take_entry(e)) {
            return -1;
        }
    }
    return more < 0 ? -1 : ct_scan_end(&e->scan);
}

int ct_meta_encryption(const struct ct_header *h, const struct ct_keys_field *keys,
                       struct ct_encryption_field *out, struct ct_err *err)
{
    struct ct_err mine;
    *out = (struct ct_encryption_field){.count = h->tensor_count};
    const struct ct_span *text = field(h, "__encryption__", err);
    if (!text) {
        return -1;
    }
    struct ct_arena *arena = calloc(1, sizeof(*arena));
    out->arena = arena;
    if (!arena ||
        !(out->entries = ct_arena_alloc(arena, h->tensor_count, sizeof(*out->entries), err))) {
        ct_encryption_field_free(out);
        return ct_err_set(err, CT_NOMEM, "no memory for __encryption__");
    }
    struct enc_parser e = {.header = h, .keys = keys, .out = out, .arena = arena};
    ct_scan_memory(&e.scan, text->p, text->n, &mine);
    int r = take_entries(&e);
    ct_buf_free(&e.text);
    ct_buf_free(&e.bytes);
    if (r) {
        ct_encryption_field_free(out);
        return failed_in("__encryption__", &mine, err);
    }
    return 0;
}

void ct_encryption_field_free(struct ct_encryption_field *f)
{
    if (f->arena) {
        ct_arena_free(f->arena);
        free(f->arena);
    }
    *f = (struct ct_encryption_field){0};
}

/* ---- __policy__, __signature__ ---- */

static int take_text(struct ct_scan *s, char **out, size_t *len)
{
    ct_autobuf text = {0};
    if (ct_scan_string_to(s, &text)) {
        return -1;
    }
    *out = malloc(text.len + 1);
    if (!*out) {
        return ct_err_set(s->err, CT_NOMEM, "no memory for a policy");
    }
    if (text.len) {
        memcpy(*out, text.data, text.len);
    }
    (*out)[text.len] = '\0';
    *len = text.len;
    return 0;
}

static int take_policy(struct ct_scan *s, struct ct_policy_field *out)
{
    static const char *const names[] = {"local", "remote", NULL};
    unsigned seen = 0;
    bool first = true;
    int more = 0;
    if (ct_scan_expect(s, '{')) {
        return -1;
    }
    while ((more = ct_scan_more(s, '}', &first)) == 1) {
        int which = -1;
        if (take_name(s, names, &seen, &which)) {
            return -1;
        }
        int r = which == 0   ? take_text(s, &out->local, &out->local_len)
                : which == 1 ? take_text(s, &out->remote, &out->remote_len)
                             : skip_value(s);
        if (r) {
            return -1;
        }
    }
    if (more < 0 || ct_scan_end(s)) {
        return -1;
    }
    return seen == 3 ? 0 : ct_scan_fail(s, "local or remote is missing");
}

int ct_meta_policy(const struct ct_header *h, struct ct_policy_field *out, struct ct_err *err)
{
    struct ct_err mine;
    struct ct_scan s;
    *out = (struct ct_policy_field){0};
    const struct ct_span *text = field(h, "__policy__", err);
    if (!text) {
        return -1;
    }
    ct_scan_memory(&s, text->p, text->n, &mine);
    if (take_policy(&s, out)) {
        ct_policy_field_free(out);
        return failed_in("__policy__", &mine, err);
    }
    return 0;
}

void ct_policy_field_free(struct ct_policy_field *f)
{
    free(f->local);
    free(f->remote);
    *f = (struct ct_policy_field){0};
}

int ct_meta_signature(const struct ct_header *h, uint8_t sig[static CT_SIG_LEN], struct ct_err *err)
{
    const struct ct_span *text = ct_header_meta(h, "__signature__");
    if (!text) {
        return ct_err_set(err, CT_REJECTED, "__signature__ is missing");
    }
    if (ct_base64_decode(text->p, text->n, sig, CT_SIG_LEN) != CT_SIG_LEN) {
        return ct_err_set(err, CT_REJECTED, "__signature__ is not 64 bytes of base64");
    }
    return 0;
}
