#include "format/policy/eval.h"

#include <string.h>

/*
 * Three outcomes everywhere: 1 a value, 0 undefined, -1 an error, which refuses the policy as a
 * whole. Where Rego's implementations differ between undefined and an error (an index into a
 * string, startswith of a number), it is an error here. And since they order the statements of a
 * body as they like, all of it is evaluated, so that an error is found wherever they may meet it.
 */

enum { STEPS_MAX = 1000000 };

struct eval {
    const struct ct_policy *p;
    const json_t *input;
    struct ct_err *err;
    unsigned steps;
    json_t **known; /* a rule's value, once it is known */
    bool *evaluated;
};

struct frame {
    json_t **vars; /* borrowed references are not kept: each is owned */
};

static int fail(struct eval *ev, unsigned line, const char *what)
{
    return ct_policy_fail(ev->err, line, "%s", what);
}

static int exhausted(struct eval *ev, unsigned line)
{
    return ev->steps > STEPS_MAX ? fail(ev, line, "the policy takes too many steps") : 0;
}

static int rule_value(struct eval *ev, unsigned rule, json_t **out);
static int value_of(struct eval *ev, struct frame *f, const struct ct_expr *e, json_t **out);

/* ---- order and equality: null < bool < number < string < array < object ---- */

static int rank(const json_t *v)
{
    switch (v ? json_typeof(v) : JSON_NULL) {
    case JSON_NULL:
        return 0;
    case JSON_FALSE:
    case JSON_TRUE:
        return 1;
    case JSON_INTEGER:
    case JSON_REAL:
        return 2;
    case JSON_STRING:
        return 3;
    case JSON_ARRAY:
        return 4;
    case JSON_OBJECT:
        break;
    }
    return 5;
}

static int compare_numbers(const json_t *a, const json_t *b)
{
    if (json_is_integer(a) && json_is_integer(b)) {
        json_int_t x = json_integer_value(a);
        json_int_t y = json_integer_value(b);
        return (x > y) - (x < y);
    }
    double x = json_number_value(a);
    double y = json_number_value(b);
    return (x > y) - (x < y);
}

/* What it costs to look through a string. */
static unsigned length_steps(const json_t *text)
{
    return (unsigned)(json_string_length(text) / 64);
}

/* Rules share their values, so that a small policy can make one that is vast to look through: every
 * part is a step. False, whatever they are, when there were too many: see exhausted(). */
static bool equal(struct eval *ev, const json_t *a, const json_t *b)
{
    ev->steps += 1 + length_steps(a);
    if (ev->steps > STEPS_MAX || rank(a) != rank(b)) {
        return false;
    }
    if (json_is_number(a)) {
        return compare_numbers(a, b) == 0;
    }
    if (json_is_array(a)) {
        bool same = json_array_size(a) == json_array_size(b);
        for (size_t i = 0; same && i < json_array_size(a); i++) {
            same = equal(ev, json_array_get(a, i), json_array_get(b, i));
        }
        return same;
    }
    if (json_is_object(a)) {
        const char *key = NULL;
        json_t *value = NULL;
        if (json_object_size(a) != json_object_size(b)) {
            return false;
        }
        json_object_foreach((json_t *)a, key, value)
        {
            const json_t *other = json_object_get(b, key);
            if (!other || !equal(ev, value, other)) {
                return false;
            }
        }
        return true;
    }
    return json_equal(a, b); /* null, booleans, strings */
}

static int order(struct eval *ev, unsigned line, const json_t *a, const json_t *b, int *out)
{
    if (rank(a) != rank(b)) {
        *out = rank(a) < rank(b) ? -1 : 1;
    } else if (json_is_number(a)) {
        *out = compare_numbers(a, b);
    } else if (json_is_string(a)) {
        *out = ct_cmp_bytes(json_string_value(a), json_string_length(a), json_string_value(b),
                            json_string_length(b));
    } else if (rank(a) >= 4) {
        return fail(ev, line, "the order of arrays or objects is not in the subset");
    } else {
        *out = json_is_true(a) - json_is_true(b);
    }
    return 1;
}

/* ---- expressions ---- */

static int index_value(struct eval *ev, unsigned line, const json_t *base, const json_t *key,
                       json_t **out)
{
    json_t *found = NULL;
    if (json_is_object(base)) {
        if (!json_is_string(key)) {
            return fail(ev, line, "an object indexed by something that is no string");
        }
        const char *name = json_string_value(key);
        if (strlen(name) == json_string_length(key)) {
            found = json_object_get(base, name);
        }
    } else if (json_is_array(base)) {
        if (!json_is_integer(key)) {
            return fail(ev, line, "an array indexed by something that is no integer");
        }
        json_int_t i = json_integer_value(key);
        found = i < 0 ? NULL : json_array_get(base, (size_t)i);
    } else {
        return fail(ev, line, "an index into something that is neither object nor array");
    }
    *out = json_incref(found);
    return found != NULL;
}

static int parts(struct eval *ev, struct frame *f, const struct ct_expr *e, json_t *out[2])
{
    out[0] = out[1] = NULL;
    int r = 1;
    for (size_t i = 0; r >= 0 && i < e->count && i < 2; i++) {
        int one = value_of(ev, f, e->items[i], &out[i]);
        r = one < r ? one : r;
    }
    if (r != 1) {
        json_decref(out[0]);
        json_decref(out[1]);
    }
    return r;
}

static bool ends_with(const json_t *text, const json_t *part)
{
    size_t n = json_string_length(text);
    size_t m = json_string_length(part);
    return m <= n && memcmp(json_string_value(text) + n - m, json_string_value(part), m) == 0;
}

static size_t characters(const json_t *text)
{
    size_t n = 0;
    for (size_t i = 0; i < json_string_length(text); i++) {
        n += ((unsigned char)json_string_value(text)[i] & 0xc0) != 0x80;
    }
    return n;
}

/* Engines differ on whether a character above U+FFFF counts as one or as two. */
static bool in_one_plane(const json_t *text)
{
    bool yes = true;
    for (size_t i = 0; i < json_string_length(text); i++) {
        yes &= (unsigned char)json_string_value(text)[i] < 0xf0;
    }
    return yes;
}

static int call(struct eval *ev, const struct ct_expr *e, json_t *const a[2], json_t **out)
{
    if (e->index == BUILTIN_COUNT) {
        if (!json_is_string(a[0]) && !json_is_array(a[0]) && !json_is_object(a[0])) {
            return fail(ev, e->line, "count takes a string, an array or an object");
        }
        if (json_is_string(a[0]) && !in_one_plane(a[0])) {
            return fail(ev, e->line, "count of a string with characters above U+FFFF");
        }
        size_t n = json_is_string(a[0])  ? characters(a[0])
                   : json_is_array(a[0]) ? json_array_size(a[0])
                                         : json_object_size(a[0]);
        *out = json_integer((json_int_t)n);
        return 1;
    }
    if (!json_is_string(a[0]) || !json_is_string(a[1])) {
        return fail(ev, e->line, "startswith, endswith and contains take strings");
    }
    size_t n = json_string_length(a[0]);
    size_t m = json_string_length(a[1]);
    bool yes =
        e->index == BUILTIN_STARTSWITH
            ? m <= n && memcmp(json_string_value(a[0]), json_string_value(a[1]), m) == 0
        : e->index == BUILTIN_ENDSWITH
            ? ends_with(a[0], a[1])
            : m == 0 || memmem(json_string_value(a[0]), n, json_string_value(a[1]), m) != NULL;
    *out = json_boolean(yes);
    return 1;
}

static int member(struct eval *ev, const struct ct_expr *e, json_t *const a[2], json_t **out)
{
    bool found = false;
    size_t i = 0;
    const char *key = NULL;
    json_t *value = NULL;
    if (json_is_array(a[1])) {
        json_array_foreach(a[1], i, value)
        {
            found |= equal(ev, a[0], value);
        }
    } else if (json_is_object(a[1])) {
        json_object_foreach(a[1], key, value)
        {
            found |= equal(ev, a[0], value);
        }
    } else {
        return fail(ev, e->line, "`in` takes an array or an object");
    }
    *out = json_boolean(found);
    return exhausted(ev, e->line) ? -1 : 1;
}

static int compare(struct eval *ev, const struct ct_expr *e, json_t *const a[2], json_t **out)
{
    int c = 0;
    bool yes = false;
    if (e->op == CMP_EQ || e->op == CMP_NE) {
        yes = equal(ev, a[0], a[1]) == (e->op == CMP_EQ);
        if (exhausted(ev, e->line)) {
            return -1;
        }
    } else {
        if (order(ev, e->line, a[0], a[1], &c) < 0) {
            return -1;
        }
        yes = e->op == CMP_LT ? c < 0 : e->op == CMP_LE ? c <= 0 : e->op == CMP_GT ? c > 0 : c >= 0;
    }
    *out = json_boolean(yes);
    return 1;
}

static int binary(struct eval *ev, struct frame *f, const struct ct_expr *e, json_t **out)
{
    json_t *a[2];
    int r = parts(ev, f, e, a);
    if (r != 1) {
        return r;
    }
    ev->steps += length_steps(a[0]);
    r = e->kind == EXPR_CALL      ? call(ev, e, a, out)
        : e->kind == EXPR_IN      ? member(ev, e, a, out)
        : e->kind == EXPR_COMPARE ? compare(ev, e, a, out)
                                  : index_value(ev, e->line, a[0], a[1], out);
    json_decref(a[0]);
    json_decref(a[1]);
    return r;
}

static int literal(struct eval *ev, struct frame *f, const struct ct_expr *e, json_t **out)
{
    bool array = e->kind == EXPR_ARRAY;
    json_t *all = array ? json_array() : json_object();
    int r = 1;
    for (size_t i = 0; r >= 0 && i < e->count; i++) {
        json_t *v = NULL;
        int one = value_of(ev, f, e->items[i], &v);
        if (one == 1 && (array ? json_array_append_new(all, v)
                               : json_object_set_new_nocheck(all, e->keys[i], v))) {
            one = ct_err_set(ev->err, CT_NOMEM, "no memory for a policy");
        }
        r = one < r ? one : r;
    }
    if (r == 1) {
        *out = all;
    } else {
        json_decref(all);
    }
    return r;
}

static int value_of(struct eval *ev, struct frame *f, const struct ct_expr *e, json_t **out)
{
    *out = NULL;
    ev->steps++;
    if (exhausted(ev, e->line)) {
        return -1;
    }
    switch (e->kind) {
    case EXPR_CONST:
        *out = json_incref(e->value);
        return 1;
    case EXPR_INPUT:
        *out = json_incref((json_t *)ev->input);
        return 1;
    case EXPR_VAR:
        /* NULL when what it was assigned is undefined. */
        *out = json_incref(f->vars[e->index]);
        return *out != NULL;
    case EXPR_RULE:
        return rule_value(ev, e->index, out);
    case EXPR_ARRAY:
    case EXPR_OBJECT:
        return literal(ev, f, e, out);
    case EXPR_INDEX:
    case EXPR_CALL:
    case EXPR_COMPARE:
    case EXPR_IN:
        return binary(ev, f, e, out);
    }
    return -1;
}

/* ---- bodies ---- */

/* 1 when some solution of the statements exists; all are looked at, so that an error in any of
 * them refuses. The head's value cannot depend on which. */
static int holds(struct eval *ev, struct frame *f, const struct ct_stmt *s);

static void bind(struct frame *f, unsigned var, json_t *value)
{
    json_decref(f->vars[var]);
    f->vars[var] = value;
}

static int each(struct eval *ev, struct frame *f, const struct ct_stmt *s, json_t *key,
                json_t *value, int *any)
{
    bind(f, s->var, json_incref(value));
    if (s->has_key) {
        bind(f, s->key, json_incref(key));
    }
    json_decref(key);
    int r = holds(ev, f, s->next);
    *any |= r == 1;
    return r;
}

static int holds_some(struct eval *ev, struct frame *f, const struct ct_stmt *s)
{
    json_t *all = NULL;
    size_t i = 0;
    const char *key = NULL;
    json_t *value = NULL;
    int any = 0;
    int r = value_of(ev, f, s->expr, &all);
    if (r != 1) {
        return r;
    }
    if (json_is_array(all)) {
        json_array_foreach(all, i, value)
        {
            if ((r = each(ev, f, s, json_integer((json_int_t)i), value, &any)) < 0) {
                break;
            }
        }
    } else if (json_is_object(all)) {
        json_object_foreach(all, key, value)
        {
            if ((r = each(ev, f, s, json_string(key), value, &any)) < 0) {
                break;
            }
        }
    } else {
        r = fail(ev, s->line, "`some … in` takes an array or an object");
    }
    json_decref(all);
    return r < 0 ? r : any;
}

static int holds(struct eval *ev, struct frame *f, const struct ct_stmt *s)
{
    int all = 1;
    for (; s; s = s->next) {
        json_t *v = NULL;
        if (s->kind == STMT_SOME) {
            int r = holds_some(ev, f, s);
            return r < all ? r : all;
        }
        int r = value_of(ev, f, s->expr, &v);
        if (r < 0) {
            return r;
        }
        if (s->kind == STMT_ASSIGN) {
            bind(f, s->var, v);
            all &= r;
            continue;
        }
        bool yes = r == 1 && !json_is_false(v);
        json_decref(v);
        all &= yes != (s->kind == STMT_NOT);
    }
    return all;
}

/* ---- rules ---- */

static int definition_value(struct eval *ev, const struct ct_definition *d, json_t **out)
{
    json_t *vars[64] = {0}; /* parse_parts.h: VARS_MAX */
    struct frame f = {vars};
    int r = holds(ev, &f, d->body);
    if (r == 1) {
        *out = json_true();
        r = d->value ? value_of(ev, &f, d->value, out) : 1;
    }
    for (unsigned i = 0; i < d->vars; i++) {
        json_decref(vars[i]);
    }
    return r;
}

static int evaluate(struct eval *ev, const struct ct_rule *rule, json_t **out)
{
    json_t *found = NULL;
    for (const struct ct_definition *d = rule->definitions; d; d = d->next) {
        json_t *v = NULL;
        int r = definition_value(ev, d, &v);
        if (r == 1 && found && !equal(ev, found, v)) {
            json_decref(v);
            r = ct_policy_fail(ev->err, d->line, "rule %s has two values at once", rule->name);
        }
        if (r < 0) {
            json_decref(found);
            return -1;
        }
        if (r == 1) {
            json_decref(found);
            found = v;
        }
    }
    *out = found ? found : json_incref(rule->fallback);
    return *out != NULL;
}

static int rule_value(struct eval *ev, unsigned rule, json_t **out)
{
    if (!ev->evaluated[rule]) {
        if (evaluate(ev, &ev->p->rules[rule], &ev->known[rule]) < 0) {
            return -1;
        }
        ev->evaluated[rule] = true;
    }
    *out = json_incref(ev->known[rule]);
    return *out != NULL;
}

int ct_policy_eval(const struct ct_policy *p, unsigned rule, const json_t *input, json_t **out,
                   struct ct_err *err)
{
    struct eval ev = {.p = p, .input = input, .err = err};
    ev.known = calloc(p->rule_count, sizeof(json_t *));
    ev.evaluated = calloc(p->rule_count, sizeof(*ev.evaluated));
    int r = ev.known && ev.evaluated ? rule_value(&ev, rule, out)
                                     : ct_err_set(err, CT_NOMEM, "no memory for a policy");
    for (size_t i = 0; ev.known && i < p->rule_count; i++) {
        json_decref(ev.known[i]);
    }
    free(ev.known);
    free(ev.evaluated);
    return r;
}
