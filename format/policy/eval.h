/* Evaluating a parsed policy. */
#ifndef CT_POLICY_EVAL_H
#define CT_POLICY_EVAL_H

#include "format/policy/parse.h"

/* The value of a rule: 1 with *out owned by the caller, 0 undefined, -1 with err (not NULL). */
int ct_policy_eval(const struct ct_policy *p, unsigned rule, const json_t *input, json_t **out,
                   struct ct_err *err);

#endif
