#include "format/policy/parse_parts.h"

#include <stdlib.h>

#include "format/policy/policy.h"

bool ct_parse_is_keyword(const char *name)
{
    static const char *const words[] = {
        "package",  "import",     "default",  "if",    "else",  "not",  "in",    "some",
        "every",    "with",       "as",       "true",  "false", "null", "input", "data",
        "contains", "startswith", "endswith", "count", "_",     "set"};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcmp(name, words[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* The engine's own words, which it takes for nothing else, not even after a point. */
static bool is_reserved(const char *name)
{
    static const char *const words[] = {"as",      "default", "else", "every", "false",
                                        "if",      "import",  "in",   "not",   "null",
                                        "package", "some",    "true", "with"};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcmp(name, words[i]) == 0) {
            return true;
        }
    }
    return false;
}

static struct ct_expr *make(struct parser *ps, enum ct_expr_kind kind, size_t items)
{
    struct ct_expr *e = alloc(ps, 1, sizeof(*e));
    if (!e) {
        return NULL;
    }
    e->kind = kind;
    e->line = ps->now.line;
    e->count = items;
    e->items = alloc(ps, items, sizeof(struct ct_expr *));
    return e->items ? e : NULL;
}

/* Takes the value over. */
static struct ct_expr *make_const(struct parser *ps, json_t *value)
{
    struct ct_expr *e = make(ps, EXPR_CONST, 0);
    if (!value || json_array_append_new(ps->p->consts, value)) {
        ct_err_set(ps->err, CT_NOMEM, "no memory for a policy");
        return NULL;
    }
    if (e) {
        e->value = value;
    }
    return e;
}

/* ---- names ---- */

static int find_var(const struct parser *ps, const char *name)
{
    for (unsigned i = 0; i < ps->var_count; i++) {
        if (strcmp(ps->vars[i], name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

int ct_parse_new_var(struct parser *ps, const char *name, unsigned *out)
{
    if (ct_parse_is_keyword(name)) {
        return FAIL(ps, "a variable cannot be called `%s` in the subset", name);
    }
    if (find_var(ps, name) >= 0) {
        return FAIL(ps, "variable %s is assigned twice", name);
    }
    if (ps->var_count == VARS_MAX) {
        return FAIL(ps, "more than %d variables in a rule are not in the subset", VARS_MAX);
    }
    struct pending *local = alloc(ps, 1, sizeof(*local));
    if (!local) {
        return -1;
    }
    *local = (struct pending){NULL, name, ps->locals};
    ps->locals = local;
    *out = ps->var_count;
    ps->used[ps->var_count] = false;
    ps->vars[ps->var_count++] = name;
    return 0;
}

static struct ct_expr *parse_name(struct parser *ps)
{
    const char *name = ps->now.text;
    int var = find_var(ps, name);
    struct ct_expr *e = make(ps, var >= 0 ? EXPR_VAR : EXPR_RULE, 0);
    struct pending *later = var >= 0 ? NULL : alloc(ps, 1, sizeof(*later));
    if (!e || (var < 0 && !later)) {
        return NULL;
    }
    if (var >= 0) {
        e->index = (unsigned)var;
        ps->used[var] = true;
    } else {
        *later = (struct pending){e, name, ps->pending};
        ps->pending = later;
    }
    return advance(ps) ? NULL : e;
}

/* ---- literals ---- */

static struct ct_expr *parse_number(struct parser *ps, bool negative)
{
    double v = strtod(ps->now.text, NULL);
    json_t *value = strchr(ps->now.text, '.') ? json_real(negative ? -v : v)
                                              : json_integer((json_int_t)(negative ? -v : v));
    struct ct_expr *e = make_const(ps, value);
    return !e || advance(ps) ? NULL : e;
}

/* Items up to `close`, the opening bracket taken; keys in objects. */
static int parse_items(struct parser *ps, struct ct_expr *e, const char *close, bool keyed)
{
    struct ct_expr *items[64];
    const char *keys[64];
    size_t n = 0;
    if (skip_newlines(ps)) {
        return -1;
    }
    while (!is_punct(ps, close)) {
        if (n == sizeof(items) / sizeof(items[0])) {
            return FAIL(ps, "a literal of more than 64 items is not in the subset");
        }
        if (keyed) {
            if (ps->now.type != TOK_STRING) {
                return FAIL(
                    ps, "a set, a comprehension, or a key that is no string is not in the subset");
            }
            keys[n] = ps->now.text;
            if (strlen(keys[n]) != ps->now.len) {
                return FAIL(ps, "a key with a NUL in it is not in the subset");
            }
            for (size_t i = 0; i < n; i++) {
                if (strcmp(keys[i], keys[n]) == 0) {
                    return FAIL(ps, "key %s twice", keys[n]);
                }
            }
            if (advance(ps) || expect_punct(ps, ":") || skip_newlines(ps)) {
                return -1;
            }
        }
        if (!(items[n++] = ct_parse_expr(ps)) || skip_newlines(ps)) {
            return -1;
        }
        if (is_punct(ps, ",")) {
            if (advance(ps) || skip_newlines(ps)) {
                return -1;
            }
            if (is_punct(ps, close)) {
                return FAIL(ps, "a comma before the closing bracket is not in the subset");
            }
        } else if (!is_punct(ps, close)) {
            return FAIL(ps, "`%s` in a literal is not in the subset", shown(ps));
        }
    }
    e->count = n;
    e->items = alloc(ps, n, sizeof(struct ct_expr *));
    e->keys = alloc(ps, keyed ? n : 0, sizeof(char *));
    if (!e->items || !e->keys) {
        return -1;
    }
    if (n) {
        memcpy(e->items, items, n * sizeof(struct ct_expr *));
        if (keyed) {
            memcpy(e->keys, keys, n * sizeof(char *));
        }
    }
    return advance(ps);
}

static struct ct_expr *parse_literal(struct parser *ps, enum ct_expr_kind kind, const char *close)
{
    struct ct_expr *e = make(ps, kind, 0);
    return !e || advance(ps) || parse_items(ps, e, close, kind == EXPR_OBJECT) ? NULL : e;
}

/* ---- terms ---- */

static struct ct_expr *parse_call(struct parser *ps, enum ct_builtin which, size_t arguments)
{
    const char *name = ps->now.text;
    struct ct_expr *e = make(ps, EXPR_CALL, 0);
    if (!e || advance(ps) || (!ps->now.glued && FAIL(ps, "a blank before `(`")) ||
        expect_punct(ps, "(") || parse_items(ps, e, ")", false)) {
        return NULL;
    }
    if (e->count != arguments) {
        FAIL(ps, "%s takes %zu arguments", name, arguments);
        return NULL;
    }
    e->index = which;
    return e;
}

static struct ct_expr *parse_word(struct parser *ps)
{
    static const struct {
        const char *name;
        size_t arguments;
    } builtins[] = {{"startswith", 2}, {"endswith", 2}, {"contains", 2}, {"count", 1}};
    for (unsigned i = 0; i < 4; i++) {
        if (is_word(ps, builtins[i].name)) {
            return parse_call(ps, i, builtins[i].arguments);
        }
    }
    json_t *word = is_word(ps, "true")    ? json_true()
                   : is_word(ps, "false") ? json_false()
                   : is_word(ps, "null")  ? json_null()
                                          : NULL;
    if (word) {
        struct ct_expr *e = make_const(ps, word);
        return !e || advance(ps) ? NULL : e;
    }
    if (is_word(ps, "input")) {
        struct ct_expr *e = make(ps, EXPR_INPUT, 0);
        return !e || advance(ps) ? NULL : e;
    }
    if (ct_parse_is_keyword(ps->now.text)) {
        FAIL(ps, "`%s` here is not in the subset", ps->now.text);
        return NULL;
    }
    return parse_name(ps);
}

static struct ct_expr *parse_brackets(struct parser *ps)
{
    struct ct_expr *e = advance(ps) ? NULL : ct_parse_expr(ps);
    if (!e || expect_punct(ps, ")")) {
        return NULL;
    }
    if (is_punct(ps, ".") || is_punct(ps, "[")) {
        FAIL(ps, "an index into brackets is not in the subset");
        return NULL;
    }
    return e;
}

static struct ct_expr *parse_primary(struct parser *ps)
{
    if (ps->now.type == TOK_STRING) {
        struct ct_expr *e = make_const(ps, json_stringn(ps->now.text, ps->now.len));
        return !e || advance(ps) ? NULL : e;
    }
    if (ps->now.type == TOK_NUMBER) {
        return parse_number(ps, false);
    }
    if (ps->now.type == TOK_NAME) {
        return parse_word(ps);
    }
    if (is_punct(ps, "[")) {
        return parse_literal(ps, EXPR_ARRAY, "]");
    }
    if (is_punct(ps, "{")) {
        return parse_literal(ps, EXPR_OBJECT, "}");
    }
    if (is_punct(ps, "(")) {
        return parse_brackets(ps);
    }
    FAIL(ps, "`%s` here is not in the subset", shown(ps));
    return NULL;
}

/* `.name` and `[expr]` behind a reference. */
static struct ct_expr *parse_path(struct parser *ps, struct ct_expr *base)
{
    for (unsigned depth = 1; base && (is_punct(ps, ".") || is_punct(ps, "[")); depth++) {
        if (depth > CT_POLICY_DEPTH) {
            FAIL(ps, "nested deeper than %d", CT_POLICY_DEPTH);
            return NULL;
        }
        bool dot = is_punct(ps, ".");
        if (!ps->now.glued) {
            FAIL(ps, "a blank before `%s` is not in the subset", ps->now.text);
            return NULL;
        }
        if (base->kind != EXPR_INPUT && base->kind != EXPR_RULE && base->kind != EXPR_VAR &&
            base->kind != EXPR_INDEX) {
            FAIL(ps, "an index into something that is no reference is not in the subset");
            return NULL;
        }
        struct ct_expr *e = make(ps, EXPR_INDEX, 2);
        if (!e || advance(ps)) {
            return NULL;
        }
        e->items[0] = base;
        if (dot) {
            if (ps->now.type != TOK_NAME || !ps->now.glued) {
                FAIL(ps, "a name was expected after `.`");
                return NULL;
            }
            if (is_reserved(ps->now.text)) {
                FAIL(ps, "the word `%s` after `.` is not in the subset", ps->now.text);
                return NULL;
            }
            e->items[1] = make_const(ps, json_stringn(ps->now.text, ps->now.len));
            if (!e->items[1] || advance(ps)) {
                return NULL;
            }
        } else if (!(e->items[1] = ct_parse_expr(ps)) || expect_punct(ps, "]")) {
            return NULL;
        }
        base = e;
    }
    if (base && is_punct(ps, "(")) {
        FAIL(
            ps,
            "a call of anything but startswith, endswith, contains and count is not in the subset");
        return NULL;
    }
    return base;
}

struct ct_expr *ct_parse_term(struct parser *ps)
{
    struct ct_expr *e = NULL;
    if (++ps->depth > CT_POLICY_DEPTH) {
        FAIL(ps, "nested deeper than %d", CT_POLICY_DEPTH);
        return NULL;
    }
    if (is_punct(ps, "-")) {
        if (!advance(ps)) {
            if (ps->now.type == TOK_NUMBER && ps->now.glued) {
                e = parse_number(ps, true);
            } else {
                FAIL(ps, "arithmetic is not in the subset");
            }
        }
    } else {
        e = parse_path(ps, parse_primary(ps));
    }
    ps->depth--;
    return e;
}

static bool take_compare(const struct parser *ps, enum ct_compare *op)
{
    static const char *const text[] = {"==", "!=", "<", "<=", ">", ">="};
    for (unsigned i = 0; i < 6; i++) {
        if (is_punct(ps, text[i])) {
            *op = i;
            return true;
        }
    }
    return false;
}

int ct_parse_refuse_operator(struct parser *ps)
{
    static const char *const text[] = {"+", "-", "*", "/", "%", "|", "&"};
    for (size_t i = 0; i < sizeof(text) / sizeof(text[0]); i++) {
        if (is_punct(ps, text[i])) {
            return FAIL(ps, "the operator `%s` is not in the subset", text[i]);
        }
    }
    if (is_word(ps, "with") || is_word(ps, "else") || is_word(ps, "as")) {
        return FAIL(ps, "`%s` is not in the subset", ps->now.text);
    }
    return 0;
}

struct ct_expr *ct_parse_expr(struct parser *ps)
{
    enum ct_compare op = CMP_EQ;
    struct ct_expr *left = ct_parse_term(ps);
    if (!left || ct_parse_refuse_operator(ps)) {
        return NULL;
    }
    bool in = is_word(ps, "in");
    if (!in && !take_compare(ps, &op)) {
        return left;
    }
    struct ct_expr *e = make(ps, in ? EXPR_IN : EXPR_COMPARE, 2);
    if (!e || advance(ps)) {
        return NULL;
    }
    e->op = op;
    e->items[0] = left;
    e->items[1] = ct_parse_term(ps);
    if (!e->items[1] || ct_parse_refuse_operator(ps)) {
        return NULL;
    }
    if (is_word(ps, "in") || take_compare(ps, &op)) {
        FAIL(ps, "several comparisons without parentheses are not in the subset");
        return NULL;
    }
    return e;
}
