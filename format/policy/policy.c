#include "format/policy/policy.h"

#include "format/policy/eval.h"

static int decide(struct ct_policy *p, const json_t *input, struct ct_err *err)
{
    json_t *value = NULL;
    int rule = ct_policy_rule(p, "allow");
    if (rule < 0) {
        return ct_err_set(err, CT_POLICY, "the policy has no rule called allow");
    }
    int r = ct_policy_eval(p, (unsigned)rule, input, &value, err);
    bool yes = r == 1 && json_is_true(value);
    json_decref(value);
    if (r < 0) {
        return -1;
    }
    return yes ? 0
           : r == 0
               ? ct_err_set(err, CT_POLICY, "the policy does not allow this: allow is undefined")
               : ct_err_set(err, CT_POLICY, "the policy does not allow this: allow is not true");
}

int ct_policy_allow(const char *text, size_t len, const json_t *input, struct ct_err *err)
{
    struct ct_err mine = CT_ERR_INIT;
    struct ct_policy p;
    json_t *empty = input ? NULL : json_object();
    int r = ct_policy_parse(&p, text, len, &mine);
    if (r == 0) {
        r = decide(&p, input ? input : empty, &mine);
    }
    ct_policy_free(&p);
    json_decref(empty);
    if (r && err) {
        *err = mine;
    }
    return r ? -1 : 0;
}
