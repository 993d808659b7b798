/* What parse.c and parse_expr.c share. Not for others. */
#ifndef CT_POLICY_PARSE_PARTS_H
#define CT_POLICY_PARSE_PARTS_H

#include <string.h>

#include "format/policy/parse.h"

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

static inline void *alloc(struct parser *ps, size_t count, size_t size)
{
    return ct_arena_alloc(&ps->p->arena, count, size, ps->err);
}

static inline int advance(struct parser *ps)
{
    return ct_lex_next(&ps->p->lexer, &ps->now);
}

static inline bool is_punct(const struct parser *ps, const char *text)
{
    return ps->now.type == TOK_PUNCT && strcmp(ps->now.text, text) == 0;
}

static inline bool is_word(const struct parser *ps, const char *text)
{
    return ps->now.type == TOK_NAME && strcmp(ps->now.text, text) == 0;
}

static inline int skip_newlines(struct parser *ps)
{
    while (ps->now.type == TOK_NEWLINE) {
        if (advance(ps)) {
            return -1;
        }
    }
    return 0;
}

static inline int expect_punct(struct parser *ps, const char *text)
{
    if (!is_punct(ps, text)) {
        return FAIL(ps, "`%s` was expected", text);
    }
    return advance(ps);
}

/* What the token is, for messages. */
static inline const char *shown(const struct parser *ps)
{
    return ps->now.type == TOK_END       ? "the end"
           : ps->now.type == TOK_NEWLINE ? "a new line"
                                         : ps->now.text;
}

/* ---- parse_expr.c ---- */

/* What no rule or variable may be called. */
bool ct_parse_is_keyword(const char *name);
/* Adds a variable to the frame. */
int ct_parse_new_var(struct parser *ps, const char *name, unsigned *out);
/* NULL on failure. */
struct ct_expr *ct_parse_term(struct parser *ps);
struct ct_expr *ct_parse_expr(struct parser *ps);
/* -1 for an operator that the subset does not have. */
int ct_parse_refuse_operator(struct parser *ps);

#endif
