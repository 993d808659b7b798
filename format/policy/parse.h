/* The policy as parsed and checked: every name resolved, nothing outside the subset left. */
#ifndef CT_POLICY_PARSE_H
#define CT_POLICY_PARSE_H

#include <jansson.h>

#include "format/base/arena.h"
#include "format/base/bytes.h"
#include "format/policy/lex.h"

enum ct_expr_kind {
    EXPR_CONST,   /* value */
    EXPR_ARRAY,   /* items */
    EXPR_OBJECT,  /* keys[i] : items[i] */
    EXPR_INPUT,   /* the input document */
    EXPR_RULE,    /* index */
    EXPR_VAR,     /* index, in the rule's frame */
    EXPR_INDEX,   /* items[0] [ items[1] ] */
    EXPR_CALL,    /* index is a ct_builtin */
    EXPR_COMPARE, /* op, items[0], items[1] */
    EXPR_IN,      /* items[0] in items[1] */
};

enum ct_builtin { BUILTIN_STARTSWITH, BUILTIN_ENDSWITH, BUILTIN_CONTAINS, BUILTIN_COUNT };
enum ct_compare { CMP_EQ, CMP_NE, CMP_LT, CMP_LE, CMP_GT, CMP_GE };

struct ct_expr {
    enum ct_expr_kind kind;
    unsigned line;
    json_t *value;
    const char **keys;
    struct ct_expr **items;
    size_t count;
    unsigned index;
    enum ct_compare op;
};

enum ct_stmt_kind {
    STMT_EXPR,   /* holds unless undefined or false */
    STMT_NOT,    /* holds if undefined or false */
    STMT_ASSIGN, /* var := expr */
    STMT_SOME,   /* some [key,] var in expr */
};

struct ct_stmt {
    enum ct_stmt_kind kind;
    unsigned line;
    struct ct_expr *expr;
    unsigned var, key;
    bool has_key;
    struct ct_stmt *next;
};

struct ct_definition {
    struct ct_expr *value; /* NULL: true */
    struct ct_stmt *body;  /* NULL: none */
    unsigned vars;         /* size of its frame */
    unsigned line;
    struct ct_definition *next;
};

struct ct_rule {
    const char *name;
    unsigned line;
    json_t *fallback; /* of `default`, or NULL */
    struct ct_definition *definitions;
};

struct ct_policy {
    struct ct_lexer lexer;
    struct ct_arena arena;
    json_t *consts; /* an array that owns every constant */
    struct ct_rule *rules;
    size_t rule_count, rule_cap;
};

/* CT_POLICY with a named reason; free with ct_policy_free() in any case. `err` is not NULL. */
int ct_policy_parse(struct ct_policy *p, const char *text, size_t len, struct ct_err *err);
void ct_policy_free(struct ct_policy *p);
/* -1 if there is no rule of that name. */
int ct_policy_rule(const struct ct_policy *p, const char *name);

#endif
