#include <jansson.h>

#include "tests/fuzz/fuzz.h"

enum { SLOTS = 1024, NESTING = 2 };

/* Where a value stands: a member or an element. */
struct slot {
    json_t *parent;
    const char *key; /* NULL: an element */
    size_t index;
    json_t *value;
};

struct slots {
    struct slot all[SLOTS];
    size_t count;
};

static void collect(json_t *parent, struct slots *s)
{
    const char *key = NULL;
    json_t *value = NULL;
    size_t i = 0;
    json_object_foreach(parent, key, value)
    {
        if (s->count < SLOTS) {
            s->all[s->count++] = (struct slot){parent, key, 0, value};
            collect(value, s);
        }
    }
    json_array_foreach(parent, i, value)
    {
        if (s->count < SLOTS) {
            s->all[s->count++] = (struct slot){parent, NULL, i, value};
            collect(value, s);
        }
    }
}

static void set(const struct slot *at, json_t *value)
{
    if (value && at->key) {
        json_object_set_new(at->parent, at->key, value);
    } else if (value) {
        json_array_set_new(at->parent, at->index, value);
    }
}

static json_t *some_integer(struct rng *r)
{
    static const json_int_t some[] = {
        0,       1,       2,          3,     8,         12,        16,        64,       255,
        1000,    4096,    65535,      65536, 2097151,   4099,      4000,      2097152,  2097153,
        4194304, 5000000, 0xffffffff, -1,    1LL << 32, 1LL << 53, 1LL << 62, INT64_MAX};
    return json_integer(some[rnd(r, sizeof(some) / sizeof(some[0]))]);
}

static json_t *some_value(struct rng *r)
{
    static const char *const texts[] = {"",
                                        "a",
                                        "U8",
                                        "F4",
                                        "BF16",
                                        "F6_E2M3",
                                        "X9",
                                        "1",
                                        "2",
                                        "oct",
                                        "okp",
                                        "aes128gcm",
                                        "chacha20poly1305",
                                        "m-128",
                                        "m-chacha",
                                        "s-2",
                                        "\xc3\xa9\"\\\n\x7f",
                                        "file:///k",
                                        "../x",
                                        "AAAA"};
    switch (rnd(r, 8)) {
    case 0:
        return json_object();
    case 1:
        return json_array();
    case 2:
        return rnd(r, 3) ? json_boolean(rnd(r, 2)) : json_null();
    case 3:
    case 4:
        return json_string(texts[rnd(r, sizeof(texts) / sizeof(texts[0]))]);
    default:
        return some_integer(r);
    }
}

static json_t *mutate_string(const json_t *s)
{
    ct_autobuf text = {0};
    ct_buf_put(&text, json_string_value(s), json_string_length(s));
    mutate_bytes(&text);
    return json_stringn((char *)text.data, text.len); /* NULL where it is not UTF-8 */
}

static json_t *mutate_scalar(const json_t *v, struct rng *r)
{
    if (json_is_string(v)) {
        return mutate_string(v);
    }
    json_int_t n = json_integer_value(v);
    switch (rnd(r, 4)) {
    case 0:
        return n < INT64_MAX ? json_integer(n + 1) : NULL;
    case 1:
        return json_integer(n - (n > 0));
    case 2:
        return json_integer(n / 2);
    default:
        return n > 0 && n < INT64_MAX / 2 ? json_integer(n * 2) : some_integer(r);
    }
}

static void rename_member(const struct slot *at, struct rng *r)
{
    json_t *key = json_string(at->key);
    json_t *other = rnd(r, 2) ? mutate_string(key) : some_value(r);
    if (json_is_string(other)) {
        json_object_setn(at->parent, json_string_value(other), json_string_length(other),
                         at->value);
        json_object_del(at->parent, at->key);
    }
    json_decref(key);
    json_decref(other);
}

static void remove_value(const struct slot *at)
{
    if (at->key) {
        json_object_del(at->parent, at->key);
    } else {
        json_array_remove(at->parent, at->index);
    }
}

static void insert(json_t *into, json_t *value, struct rng *r)
{
    static const char *const names[] = {
        "a",    "b",    "__metadata__", "dtype",      "shape",  "data_offsets",
        "kty",  "alg",  "kid",          "jku",        "crv",    "k",
        "d",    "x",    "enc_algo",     "chunk_size", "remote", "path",
        "kind", "size", "target",       "pieces",     "plain",  "begin",
        "end",  "keys", "generation",   "sha256",
    };
    const char *name = names[rnd(r, sizeof(names) / sizeof(names[0]))];
    if (json_is_object(into)) {
        json_object_set_new(into, name, value);
    } else if (json_is_array(into)) {
        json_array_insert_new(into, rnd(r, (uint32_t)json_array_size(into) + 1), value);
    } else {
        json_decref(value);
    }
}

/* Gives one member the name of another: twice in an object at times, which no tree can have. */
static void repeat_name(struct ct_buf *text, struct rng *r)
{
    size_t begin[2] = {0};
    size_t end[2] = {0};
    for (int i = 0; i < 2; i++) {
        size_t from = rnd(r, (uint32_t)text->len);
        const uint8_t *p = memmem(text->data + from, text->len - from, "\":", 2);
        const uint8_t *open = p ? memrchr(text->data, '"', (size_t)(p - text->data)) : NULL;
        if (!open) {
            return;
        }
        begin[i] = (size_t)(open - text->data);
        end[i] = (size_t)(p - text->data);
    }
    ct_autobuf out = {0};
    ct_buf_put(&out, text->data, begin[0]);
    ct_buf_put(&out, text->data + begin[1], end[1] - begin[1]);
    ct_buf_put(&out, text->data + end[0], text->len - end[0]);
    text->len = 0;
    ct_buf_put(text, out.data, out.len);
}

static void mutate_tree(json_t *root, struct rng *r, int nesting);

/* JSON inside a string. */
static json_t *mutate_nested(const json_t *s, struct rng *r, int nesting)
{
    json_t *root = json_loadb(json_string_value(s), json_string_length(s), JSON_ALLOW_NUL, NULL);
    if (!root) {
        return mutate_string(s);
    }
    mutate_tree(root, r, nesting - 1);
    char *text = json_dumps(root, JSON_COMPACT);
    ct_autobuf spelt = {0};
    ct_buf_puts(&spelt, text ? text : "");
    if (spelt.len && rnd(r, 32) == 0) {
        repeat_name(&spelt, r);
    }
    json_t *out = json_stringn(spelt.len ? (char *)spelt.data : "", spelt.len);
    json_decref(root);
    ct_wiping_free(text);
    return out;
}

static void mutate_slot(const struct slots *s, struct rng *r, int nesting)
{
    const struct slot *at = &s->all[rnd(r, (uint32_t)s->count)];
    const struct slot *other = &s->all[rnd(r, (uint32_t)s->count)];
    switch (rnd(r, 10)) {
    case 0:
        remove_value(at);
        break;
    case 1:
        set(at, some_value(r));
        break;
    case 2:
        set(at, json_deep_copy(other->value));
        break;
    case 3:
        insert(at->parent, json_deep_copy(other->value), r);
        break;
    case 4:
        insert(at->value, some_value(r), r);
        break;
    case 5:
        if (at->key) {
            rename_member(at, r);
            break;
        } /* fall through */
    default:
        set(at, json_is_string(at->value) && nesting ? mutate_nested(at->value, r, nesting)
                                                     : mutate_scalar(at->value, r));
    }
}

static void mutate_tree(json_t *root, struct rng *r, int nesting)
{
    struct slots *s = calloc(1, sizeof(*s));
    MUST(s);
    collect(root, s);
    if (s->count == 0) {
        insert(root, some_value(r), r);
    } else {
        mutate_slot(s, r, nesting);
    }
    free(s);
}

void mutate_json(struct ct_buf *text, struct rng *r)
{
    static const size_t spellings[] = {JSON_INDENT(1), JSON_ENSURE_ASCII | JSON_COMPACT,
                                       JSON_ESCAPE_SLASH, JSON_SORT_KEYS | JSON_COMPACT};
    json_t *root = json_loadb((char *)text->data, text->len, JSON_ALLOW_NUL, NULL);
    if (!root) {
        mutate_bytes(text);
        return;
    }
    for (uint32_t i = 1 + rnd(r, 3); i > 0; i--) {
        mutate_tree(root, r, NESTING);
    }
    char *out = json_dumps(root, rnd(r, 4) ? JSON_COMPACT : spellings[rnd(r, 4)]);
    if (out) {
        text->len = 0;
        ct_buf_puts(text, out);
    }
    if (text->len && rnd(r, 32) == 0) {
        repeat_name(text, r);
    }
    ct_wiping_free(out);
    json_decref(root);
}

void mutate_bytes(struct ct_buf *text)
{
    size_t max = text->len + 64;
    uint8_t *room = ct_buf_reserve(text, 64);
    MUST(room);
    text->len = LLVMFuzzerMutate(text->data, text->len, max);
}
