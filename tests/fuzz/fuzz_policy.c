/* Any text as a policy: no crash, no endless loop, and the same verdict twice. */
#include <stdlib.h>

#include "format/base/secret.h"
#include "format/policy/policy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static json_t *input;
    if (!input) {
        if (ct_secret_init(NULL)) {
            abort();
        }
        input = ct_policy_input(&(struct ct_policy_context){
            .host = "node-7", .uid = 1000, .unix_time = 1795428000, .path = "/m/x", .model = "m"});
    }
    int first = ct_policy_allow((const char *)data, size, input, NULL);
    if (first != ct_policy_allow((const char *)data, size, input, NULL)) {
        abort();
    }
    return 0;
}
