/*
 * Any text as a policy, over a document that follows it after a NUL, or over the usual one. No
 * crash, no endless loop; a verdict that neither a second look nor what stands around the policy
 * changes; and a refusal that says why.
 */
#include "format/policy/policy.h"
#include "tests/fuzz/fuzz.h"

static json_t *usual;

void fuzz_start(void)
{
    usual = json_loads("{\"kvfs\":{\"version\":\"0.1.0\"},\"host\":\"node-7\",\"uid\":1000,"
                       "\"unix\":1795428000,\"path\":\"/m/x.safetensors\",\"model\":\"acme/llama\","
                       "\"guard\":{\"profile\":\"strict\",\"findings\":[],\"ok\":true},"
                       "\"tags\":[\"prod\",\"eu\"],\"zero\":0,\"empty\":\"\",\"nul\":null,"
                       "\"f\":1.5}",
                       0, NULL);
    MUST(usual);
}

static int allow(const char *text, size_t n, const json_t *input)
{
    struct ct_err err = CT_ERR_INIT;
    int r = ct_policy_allow(text, n, input, &err);
    MUST(r == 0 ? err.code == CT_OK : err.code == CT_POLICY && err.msg[0]);
    return r;
}

/* What is allowed still is with a comment before and after it, unless the text gets too long. */
static void check_surrounded(const char *text, size_t n, const json_t *input)
{
    ct_autobuf more = {0};
    ct_buf_puts(&more, "# one\n\n");
    ct_buf_put(&more, text, n);
    ct_buf_puts(&more, "\n# two\n");
    if (more.len <= CT_POLICY_MAX) {
        MUST(allow((char *)more.data, more.len, input) == 0);
    }
}

/* Between two policies that refuse nothing else may be found: a text that another rule follows
 * which is false for allow conflicts, or was not allowed. */
static void check_conflict(const char *text, size_t n, const json_t *input)
{
    ct_autobuf more = {0};
    ct_buf_put(&more, text, n);
    ct_buf_puts(&more, "\nallow = false\n");
    MUST(allow((char *)more.data, more.len, input) == -1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    const uint8_t *end = size ? memchr(data, '\0', size) : NULL;
    size_t n = end ? (size_t)(end - data) : size;
    json_t *own = end ? json_loadb(text + n + 1, size - n - 1, 0, NULL) : NULL;
    const json_t *input = own ? own : usual;
    int r = allow(text, n, input);
    MUST(allow(text, n, input) == r);
    if (r == 0) {
        check_surrounded(text, n, input);
        check_conflict(text, n, input);
    }
    (void)allow(text, n, NULL);
    if (end) { /* a policy may hold NUL: it is no end */
        (void)allow(text, size, input);
    }
    json_decref(own);
    return 0;
}
