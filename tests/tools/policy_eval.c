/*
 * Evaluates policies for tests/system/policy_differential.py: reads {"input":…,"policies":[…]} from
 * stdin, writes one line a policy: "allow", or "refuse: why".
 */
#include <stdio.h>
#include <string.h>

#include "format/base/secret.h"
#include "format/policy/policy.h"

int main(void)
{
    if (ct_secret_init(NULL)) {
        return 1;
    }
    json_t *all = json_loadf(stdin, JSON_ALLOW_NUL, NULL);
    const json_t *input = json_object_get(all, "input");
    size_t i = 0;
    const json_t *policy = NULL;
    if (!all) {
        return 1;
    }
    json_array_foreach(json_object_get(all, "policies"), i, policy)
    {
        struct ct_err err = CT_ERR_INIT;
        if (ct_policy_allow(json_string_value(policy), json_string_length(policy), input, &err) ==
            0) {
            puts("allow");
            continue;
        }
        for (char *p = err.msg; *p; p++) {
            *p = (unsigned char)*p < 0x20 ? '?' : *p;
        }
        printf("refuse: %s\n", err.msg);
    }
    json_decref(all);
    return 0;
}
