#include "format/policy/parse_parts.h"

#include <stdlib.h>

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
    if (advance(ps) || !(s->expr = ct_parse_term(ps)) || ct_parse_refuse_operator(ps)) {
        return -1;
    }
    s->has_key = second != NULL;
    return (second && ct_parse_new_var(ps, first, &s->key)) ||
                   ct_parse_new_var(ps, second ? second : first, &s->var)
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
    if (advance(ps) || !(s->expr = ct_parse_expr(ps))) {
        return -1;
    }
    return ct_parse_new_var(ps, name, &s->var);
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
    s->expr = ct_parse_expr(ps);
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

static const char *take_rule_name(struct parser *ps)
{
    const char *name = ps->now.text;
    if (ps->now.type != TOK_NAME || ct_parse_is_keyword(name)) {
        FAIL(ps, "`%s` where a rule should begin", shown(ps));
        return NULL;
    }
    return advance(ps) ? NULL : name;
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
    const char *name = advance(ps) ? NULL : take_rule_name(ps);
    if (!name || take_equals(ps)) {
        return -1;
    }
    struct ct_rule *r = rule_of(ps, name);
    struct ct_expr *value = r ? ct_parse_term(ps) : NULL;
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
    struct ct_definition *d = alloc(ps, 1, sizeof(*d));
    const char *name = d ? take_rule_name(ps) : NULL;
    ps->var_count = 0;
    if (!name) {
        return -1;
    }
    d->line = ps->now.line;
    bool has_value = is_punct(ps, "=") || is_punct(ps, ":=");
    if (has_value && (take_equals(ps) || !(d->value = ct_parse_expr(ps)))) {
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
    if (ct_parse_refuse_operator(ps)) {
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
enum { RULES_MAX = 128 }; /* also bounds the recursion of visit() */

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
    uint8_t colour[RULES_MAX] = {WHITE};
    for (size_t i = 0; i < ps->p->rule_count; i++) {
        if (visit(ps->p, (unsigned)i, colour, ps->err)) {
            return -1;
        }
    }
    return 0;
}

int ct_policy_parse(struct ct_policy *p, const char *text, size_t len, struct ct_err *err)
{
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
