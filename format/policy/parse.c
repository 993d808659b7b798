#include "format/policy/parse.h"

#include <stdlib.h>
#include <string.h>

#include "format/policy/policy.h"

enum { VARS_MAX = 64 };

/* A name that is not known yet when it is met: a rule further down, perhaps. */
struct pending {
    struct ct_expr *expr;
    const char *name;
    struct pending *next;
};

struct parser {
    struct ct_policy *p;
    struct ct_err *err;
    struct ct_token now;
    unsigned depth;
    struct pending *pending;
    struct pending *locals; /* every variable of every rule: none may be called as a rule is */
    /* the frame of the definition that is being parsed */
    const char *vars[VARS_MAX];
    bool used[VARS_MAX];
    unsigned var_count;
};

#define FAIL(ps, ...) ct_policy_fail((ps)->err, (ps)->now.line, __VA_ARGS__)

static void *alloc(struct parser *ps, size_t count, size_t size)
{
    return ct_arena_alloc(&ps->p->arena, count, size, ps->err);
}

static int advance(struct parser *ps)
{
    return ct_lex_next(&ps->p->lexer, &ps->now);
}

static bool is_punct(const struct parser *ps, const char *text)
{
    return ps->now.type == TOK_PUNCT && strcmp(ps->now.text, text) == 0;
}

static bool is_word(const struct parser *ps, const char *text)
{
    return ps->now.type == TOK_NAME && strcmp(ps->now.text, text) == 0;
}

static int skip_newlines(struct parser *ps)
{
    while (ps->now.type == TOK_NEWLINE) {
        if (advance(ps)) {
            return -1;
        }
    }
    return 0;
}

static int expect_punct(struct parser *ps, const char *text)
{
    if (!is_punct(ps, text)) {
        return FAIL(ps, "`%s` was expected", text);
    }
    return advance(ps);
}

/* What the token is, for messages. */
static const char *shown(const struct parser *ps)
{
    return ps->now.type == TOK_END       ? "the end"
           : ps->now.type == TOK_NEWLINE ? "a new line"
                                         : ps->now.text;
}

static bool is_keyword(const char *name)
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

static struct ct_expr *parse_expr(struct parser *ps);

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

static int new_var(struct parser *ps, const char *name, unsigned *out)
{
    if (is_keyword(name)) {
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
        if (!(items[n++] = parse_expr(ps)) || skip_newlines(ps)) {
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
    if (is_keyword(ps->now.text)) {
        FAIL(ps, "`%s` here is not in the subset", ps->now.text);
        return NULL;
    }
    return parse_name(ps);
}

static struct ct_expr *parse_brackets(struct parser *ps)
{
    struct ct_expr *e = advance(ps) ? NULL : parse_expr(ps);
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
        } else if (!(e->items[1] = parse_expr(ps)) || expect_punct(ps, "]")) {
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

static struct ct_expr *parse_term(struct parser *ps)
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

static int refuse_operator(struct parser *ps)
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

static struct ct_expr *parse_expr(struct parser *ps)
{
    enum ct_compare op = CMP_EQ;
    struct ct_expr *left = parse_term(ps);
    if (!left || refuse_operator(ps)) {
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
    e->items[1] = parse_term(ps);
    if (!e->items[1] || refuse_operator(ps)) {
        return NULL;
    }
    if (is_word(ps, "in") || take_compare(ps, &op)) {
        FAIL(ps, "several comparisons without parentheses are not in the subset");
        return NULL;
    }
    return e;
}

/* ---- statements ---- */

static int parse_some(struct parser *ps, struct ct_stmt *s)
{
    const char *first = NULL;
    const char *second = NULL;
    s->kind = STMT_SOME;
    if (advance(ps)) {
        return -1;
    }
    if (ps->now.type != TOK_NAME) {
        return FAIL(ps, "a variable was expected after `some`");
    }
    first = ps->now.text;
    if (advance(ps)) {
        return -1;
    }
    if (is_punct(ps, ",")) {
        if (advance(ps)) {
            return -1;
        }
        if (ps->now.type != TOK_NAME) {
            return FAIL(ps, "a variable was expected after `some`");
        }
        second = ps->now.text;
        if (advance(ps)) {
            return -1;
        }
    }
    if (!is_word(ps, "in")) {
        return FAIL(ps, "`some` without `in` is not in the subset");
    }
    if (advance(ps) || !(s->expr = parse_term(ps)) || refuse_operator(ps)) {
        return -1;
    }
    s->has_key = second != NULL;
    return (second && new_var(ps, first, &s->key)) || new_var(ps, second ? second : first, &s->var)
               ? -1
               : 0;
}

/* `name := expr`, or `name = expr` with a name that is not known yet. */
static int parse_assign(struct parser *ps, struct ct_stmt *s, const struct ct_expr *left)
{
    const char *name = ps->pending ? ps->pending->name : NULL;
    bool strict = is_punct(ps, ":=");
    if (left->kind != EXPR_RULE || !ps->pending || ps->pending->expr != left) {
        return strict ? FAIL(ps, "only a new variable can stand before `:=`")
                      : FAIL(ps, "`=` between two values is not in the subset: write `==`");
    }
    ps->pending = ps->pending->next;
    s->kind = STMT_ASSIGN;
    if (advance(ps) || !(s->expr = parse_expr(ps))) {
        return -1;
    }
    return new_var(ps, name, &s->var);
}

/* `fresh`: it follows `;` or the opening brace, not just a new line. */
static int parse_statement(struct parser *ps, struct ct_stmt *s, bool fresh)
{
    s->line = ps->now.line;
    if (is_word(ps, "some")) {
        return parse_some(ps, s);
    }
    if (is_word(ps, "every")) {
        return FAIL(ps, "`every` is not in the subset");
    }
    s->kind = STMT_EXPR;
    if (is_word(ps, "not")) {
        s->kind = STMT_NOT;
        if (advance(ps)) {
            return -1;
        }
    }
    /* The reference takes `-`, and could take brackets, to go on with the line before. */
    if (ps->now.type == TOK_PUNCT && !fresh) {
        return FAIL(ps, "a line that begins with `%s` is not in the subset", ps->now.text);
    }
    s->expr = parse_expr(ps);
    if (!s->expr) {
        return -1;
    }
    if (is_punct(ps, ":=") || is_punct(ps, "=")) {
        return s->kind == STMT_NOT ? FAIL(ps, "an assignment after `not` is not in the subset")
                                   : parse_assign(ps, s, s->expr);
    }
    return 0;
}

static int parse_block(struct parser *ps, struct ct_stmt **out)
{
    if (advance(ps) || skip_newlines(ps)) {
        return -1;
    }
    if (is_punct(ps, "}")) {
        return FAIL(ps, "an empty body");
    }
    bool fresh = true;
    while (!is_punct(ps, "}")) {
        struct ct_stmt *s = alloc(ps, 1, sizeof(*s));
        if (!s || parse_statement(ps, s, fresh)) {
            return -1;
        }
        *out = s;
        out = &s->next;
        fresh = is_punct(ps, ";");
        if (fresh || ps->now.type == TOK_NEWLINE) {
            if (advance(ps) || skip_newlines(ps)) {
                return -1;
            }
            if (fresh && is_punct(ps, "}")) {
                return FAIL(ps, "`;` before the closing brace is not in the subset");
            }
        } else if (!is_punct(ps, "}")) {
            return FAIL(ps, "`%s` here is not in the subset", shown(ps));
        }
    }
    return advance(ps);
}

static int parse_body(struct parser *ps, struct ct_stmt **out)
{
    if (is_punct(ps, "{")) {
        return parse_block(ps, out);
    }
    *out = alloc(ps, 1, sizeof(**out));
    return *out ? parse_statement(ps, *out, true) : -1;
}

/* ---- rules ---- */

int ct_policy_rule(const struct ct_policy *p, const char *name)
{
    for (size_t i = 0; i < p->rule_count; i++) {
        if (strcmp(p->rules[i].name, name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static struct ct_rule *rule_of(struct parser *ps, const char *name)
{
    struct ct_policy *p = ps->p;
    int i = ct_policy_rule(p, name);
    if (i >= 0) {
        return &p->rules[i];
    }
    if (p->rule_count == p->rule_cap) {
        FAIL(ps, "more than %zu rules are not in the subset", p->rule_cap);
        return NULL;
    }
    p->rules[p->rule_count] = (struct ct_rule){.name = name, .line = ps->now.line};
    return &p->rules[p->rule_count++];
}

static int take_rule_name(struct parser *ps, const char **name)
{
    if (ps->now.type != TOK_NAME || is_keyword(ps->now.text)) {
        return FAIL(ps, "`%s` where a rule should begin", shown(ps));
    }
    *name = ps->now.text;
    return advance(ps);
}

static int take_equals(struct parser *ps)
{
    if (!is_punct(ps, "=") && !is_punct(ps, ":=")) {
        return FAIL(ps, "`%s` in the head of a rule is not in the subset", shown(ps));
    }
    return advance(ps);
}

static int parse_default(struct parser *ps)
{
    const char *name = NULL;
    if (advance(ps) || take_rule_name(ps, &name) || take_equals(ps)) {
        return -1;
    }
    struct ct_rule *r = rule_of(ps, name);
    struct ct_expr *value = r ? parse_term(ps) : NULL;
    if (!value) {
        return -1;
    }
    if (r->fallback) {
        return FAIL(ps, "two defaults of %s", name);
    }
    if (value->kind != EXPR_CONST) {
        return FAIL(ps, "a default that is no constant is not in the subset");
    }
    r->fallback = value->value;
    return 0;
}

/* The value is parsed before the body: it can't use its variables, which resolve() then says. */
static int parse_rule(struct parser *ps)
{
    const char *name = NULL;
    struct ct_definition *d = alloc(ps, 1, sizeof(*d));
    ps->var_count = 0;
    if (!d || take_rule_name(ps, &name)) {
        return -1;
    }
    d->line = ps->now.line;
    bool has_value = is_punct(ps, "=") || is_punct(ps, ":=");
    if (has_value && (take_equals(ps) || !(d->value = parse_expr(ps)))) {
        return -1;
    }
    if (is_word(ps, "if")) {
        if (advance(ps) || parse_body(ps, &d->body)) {
            return -1;
        }
    } else if (!has_value) {
        return FAIL(ps, "a rule without `=` or `if` (`%s`) is not in the subset", shown(ps));
    }
    for (unsigned i = 0; i < ps->var_count; i++) {
        if (!ps->used[i]) {
            return FAIL(ps, "variable %s is never used", ps->vars[i]);
        }
    }
    d->vars = ps->var_count;
    struct ct_rule *r = rule_of(ps, name);
    if (!r) {
        return -1;
    }
    d->next = r->definitions;
    r->definitions = d;
    return 0;
}

/* ---- the whole text ---- */

static int end_of_line(struct parser *ps)
{
    if (refuse_operator(ps)) {
        return -1;
    }
    if (ps->now.type != TOK_NEWLINE && ps->now.type != TOK_END) {
        return FAIL(ps, "`%s` here is not in the subset", shown(ps));
    }
    return skip_newlines(ps);
}

static int parse_package(struct parser *ps)
{
    if (advance(ps) || skip_newlines(ps)) {
        return -1;
    }
    if (!is_word(ps, "package")) {
        return FAIL(ps, "`package model` was expected");
    }
    if (advance(ps)) {
        return -1;
    }
    if (!is_word(ps, "model")) {
        return FAIL(ps, "package `%s`: only `model` decides", shown(ps));
    }
    return advance(ps) || end_of_line(ps) ? -1 : 0;
}

static int parse_import(struct parser *ps)
{
    if (advance(ps)) {
        return -1;
    }
    bool rego = is_word(ps, "rego");
    if (!rego || advance(ps) || !ps->now.glued || expect_punct(ps, ".") || !ps->now.glued ||
        !is_word(ps, "v1")) {
        return FAIL(ps, "an import of anything but rego.v1 is not in the subset");
    }
    return advance(ps) || end_of_line(ps) ? -1 : 0;
}

static int parse_rules(struct parser *ps)
{
    while (ps->now.type != TOK_END) {
        if (is_word(ps, "default") ? parse_default(ps) : parse_rule(ps)) {
            return -1;
        }
        if (end_of_line(ps)) {
            return -1;
        }
    }
    return 0;
}

static int resolve(struct parser *ps)
{
    for (struct pending *v = ps->locals; v; v = v->next) {
        int i = ct_policy_rule(ps->p, v->name);
        if (i >= 0) {
            return ct_policy_fail(ps->err, ps->p->rules[i].line,
                                  "a variable and a rule both called %s are not in the subset",
                                  v->name);
        }
    }
    for (struct pending *w = ps->pending; w; w = w->next) {
        int i = ct_policy_rule(ps->p, w->name);
        if (i < 0) {
            return ct_policy_fail(ps->err, w->expr->line,
                                  "%s is neither a rule nor a variable assigned before", w->name);
        }
        w->expr->index = (unsigned)i;
    }
    return 0;
}

/* ---- rules that need themselves ---- */

enum { WHITE, GREY, BLACK };

static int visit(const struct ct_policy *p, unsigned rule, uint8_t *colour, struct ct_err *err);

static int visit_expr(const struct ct_policy *p, const struct ct_expr *e, uint8_t *colour,
                      struct ct_err *err)
{
    if (e->kind == EXPR_RULE) {
        return visit(p, e->index, colour, err);
    }
    for (size_t i = 0; i < e->count; i++) {
        if (visit_expr(p, e->items[i], colour, err)) {
            return -1;
        }
    }
    return 0;
}

static int visit(const struct ct_policy *p, unsigned rule, uint8_t *colour, struct ct_err *err)
{
    const struct ct_rule *r = &p->rules[rule];
    if (colour[rule] == BLACK) {
        return 0;
    }
    if (colour[rule] == GREY) {
        return ct_policy_fail(err, r->line, "rule %s needs itself", r->name);
    }
    colour[rule] = GREY;
    for (const struct ct_definition *d = r->definitions; d; d = d->next) {
        if (d->value && visit_expr(p, d->value, colour, err)) {
            return -1;
        }
        for (const struct ct_stmt *s = d->body; s; s = s->next) {
            if (visit_expr(p, s->expr, colour, err)) {
                return -1;
            }
        }
    }
    colour[rule] = BLACK;
    return 0;
}

static int check_recursion(struct parser *ps)
{
    ct_autofree uint8_t *colour = calloc(ps->p->rule_count + 1, 1);
    if (!colour) {
        return ct_err_set(ps->err, CT_NOMEM, "no memory for a policy");
    }
    for (size_t i = 0; i < ps->p->rule_count; i++) {
        if (visit(ps->p, (unsigned)i, colour, ps->err)) {
            return -1;
        }
    }
    return 0;
}

int ct_policy_parse(struct ct_policy *p, const char *text, size_t len, struct ct_err *err)
{
    enum { RULES_MAX = 128 }; /* also bounds the recursion of visit() */
    struct parser ps = {.p = p, .err = err};
    *p = (struct ct_policy){.rule_cap = RULES_MAX};
    p->consts = json_array();
    p->rules = calloc(RULES_MAX, sizeof(*p->rules));
    if (!p->consts || !p->rules) {
        return ct_err_set(err, CT_NOMEM, "no memory for a policy");
    }
    if (ct_lex_start(&p->lexer, text, len, err) || parse_package(&ps) ||
        (is_word(&ps, "import") && parse_import(&ps)) || parse_rules(&ps) || resolve(&ps)) {
        return -1;
    }
    return check_recursion(&ps);
}

void ct_policy_free(struct ct_policy *p)
{
    json_decref(p->consts);
    free(p->rules);
    ct_lex_free(&p->lexer);
    ct_arena_free(&p->arena);
}
