/* The table of policies with the verdicts of the reference's engine. What it allows and we refuse
 * must be refused by name. */
#include <criterion/criterion.h>
#include <string.h>

#include "format/base/bytes.h"
#include "format/base/secret.h"
#include "format/policy/policy.h"

static json_t *table;

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
    table = json_load_file(TEST_VECTORS "/policies.json", JSON_ALLOW_NUL, NULL);
    cr_assert(table);
}

TestSuite(policy, .init = setup);

Test(policy, table)
{
    size_t i = 0;
    const json_t *entry = NULL;
    int refused_by_name = 0;
    json_array_foreach(json_object_get(table, "policies"), i, entry)
    {
        struct ct_err err = CT_ERR_INIT;
        const json_t *text = json_object_get(entry, "policy");
        bool want = strcmp(json_string_value(json_object_get(entry, "verdict")), "allow") == 0;
        bool got = ct_policy_allow(json_string_value(text), json_string_length(text),
                                   json_object_get(table, "input"), &err) == 0;
        if (!want) {
            cr_expect(!got, "allowed: %s", json_string_value(text));
            cr_expect_eq(err.code, CT_POLICY);
        } else if (!got) {
            refused_by_name++;
            cr_expect(strstr(err.msg, "not in the subset"), "%s: %s", json_string_value(text),
                      err.msg);
        }
    }
    cr_expect(refused_by_name <= 3, "%d refused by name", refused_by_name);
}

static const struct {
    const char *text;
    const char *named; /* NULL: allowed */
} more[] = {
    {"package model\nallow if { x := 1; x := 1 }", "only a new variable"},
    {"package model\nallow if { x := input.uid }", "never used"},
    {"package model\nx := 1\nallow if { x := 1; x == 1 }", "variable and a rule"},
    {"package model\na if { b }\nb if { a }\nallow if { not a }", "needs itself"},
    {"package model\nallow contains 1", "head of a rule|without `=`"},
    {"package model\nallow[1] = true", "head of a rule|without `=`"},
    {"package model\nf(x) := true\nallow = true", "without `=`|head of a rule"},
    {"package model\nallow = true if { true } else = false", "else"},
    {"package model\nallow if { true with input as {} }", "with"},
    {"package model\nallow if { every x in [1] { x == 1 } }", "every"},
    {"package model\nallow if { count([x | x := 1]) == 1 }", "not in the subset"},
    {"package model\nimport data.other\nallow = true", "import"},
    {"package model\nallow if { http.send({}) }", "not in the subset|neither a rule"},
    {"package model\nallow if { 1e3 == 1000 }", "exponent"},
    {"package model\nallow if { 01 == 1 }", "leading zero"},
    {"package model\nallow if { 12345678901234567890 > 1 }", "15 digits"},
    {"package model\nallow = true allow = true", "here is not in the subset"},
    {"package model\nallow if { some x in [1, 2]; x == 2 }", NULL},
    {"package model\nallow if { some k, v in {\"a\": 1}; k == \"a\"; v == 1 }", NULL},
    {"package model\nallow if { not input.guard.ok == false }", NULL},
    {"package model\nallow if { -1 < 0 }", NULL},
    {"package model\nallow if { startswith(1, \"a\") }", "take strings"},
    {"package model\nallow if { not startswith(1, \"a\") }", "take strings"},
    {"package model\nallow if { input.host.name == 1 }", "neither object nor array"},
    {"package modeller\nallow = true", "only `model`"},
    {"package model\nallow if { (input).uid == 1000 }", "into brackets"},
    {"package model\nallow if { (input.tags)[0] == \"prod\" }", "into brackets"},
    {"package model\nimport rego .v1\nallow := true", "an import"},
    {"package model\nallow if { not input.default }", "the word `default`"},
    {"package model\nx := {\"if\": 1}\nallow if { x.if == 1 }", "the word `if`"},
    {"package model\nallow if { input.contains == 1 }", "undefined"},
    {"package model\nallow if { - 1 < 0 }", "arithmetic"},
    {"package model\nallow if { true; }", "`;` before"},
    {"package model\nallow if { true;\n\n}", "`;` before"},
    {"package model\nallow if { true;\n true }", NULL},
    {"package model\nallow if { count(\"\\u00e9\") == 1 }", NULL},
    {"package model\nallow if { count(\"\\ud83d\\ude00\") == 1 }", "above U+FFFF"},
};

static bool names_one(const char *message, const char *alternatives)
{
    char all[128];
    char *rest = all;
    strncpy(all, alternatives, sizeof(all) - 1);
    all[sizeof(all) - 1] = '\0';
    for (const char *one; (one = strsep(&rest, "|"));) {
        if (strstr(message, one)) {
            return true;
        }
    }
    return false;
}

Test(policy, constructs)
{
    for (size_t i = 0; i < sizeof(more) / sizeof(more[0]); i++) {
        struct ct_err err = CT_ERR_INIT;
        int r = ct_policy_allow(more[i].text, strlen(more[i].text), json_object_get(table, "input"),
                                &err);
        if (!more[i].named) {
            cr_expect_eq(r, 0, "%s: %s", more[i].text, err.msg);
        } else {
            cr_expect_eq(r, -1, "allowed: %s", more[i].text);
            cr_expect(names_one(err.msg, more[i].named), "%s: %s", more[i].text, err.msg);
        }
    }
}

Test(policy, bounds)
{
    struct ct_err err = CT_ERR_INIT;
    ct_autobuf text = {0};
    ct_buf_puts(&text, "package model\nallow = true\n");
    while (text.len <= CT_POLICY_MAX) {
        ct_buf_puts(&text, "# a comment that makes the policy too large to be looked at\n");
    }
    cr_expect_eq(ct_policy_allow((char *)text.data, text.len, NULL, &err), -1);
    cr_expect(strstr(err.msg, "larger"), "%s", err.msg);

    text.len = 0;
    ct_buf_puts(&text, "package model\nallow if { ");
    for (int i = 0; i < 1000; i++) {
        ct_buf_puts(&text, "[");
    }
    cr_expect_eq(ct_policy_allow((char *)text.data, text.len, NULL, &err), -1);
    cr_expect(strstr(err.msg, "deeper"), "%s", err.msg);

    text.len = 0;
    ct_buf_puts(&text, "package model\nallow if { not input");
    for (int i = 0; i < 30000; i++) {
        ct_buf_puts(&text, ".a");
    }
    ct_buf_puts(&text, " }\n");
    cr_expect_eq(ct_policy_allow((char *)text.data, text.len, NULL, &err), -1);
    cr_expect(strstr(err.msg, "deeper"), "%s", err.msg);

    /* Two values that share their parts, and would take 2^40 comparisons. */
    text.len = 0;
    ct_buf_puts(&text, "package model\na0 := [1]\nb0 := [1]\nallow if { a40 == b40 }\n");
    for (int i = 0; i < 40; i++) {
        ct_buf_printf(&text, "a%d := [a%d, a%d]\nb%d := [b%d, b%d]\n", i + 1, i, i, i + 1, i, i);
    }
    cr_expect_eq(ct_policy_allow((char *)text.data, text.len, NULL, &err), -1);
    cr_expect(strstr(err.msg, "steps"), "%s", err.msg);

    /* A few thousand looks at a long string. */
    text.len = 0;
    ct_buf_printf(&text, "package model\nn := [1,2,3,4,5,6,7,8]\nlong := \"%050000d\"\n", 0);
    ct_buf_puts(&text, "allow if {\nsome a in n\nsome b in n\nsome c in n\nsome d in n\n");
    ct_buf_puts(&text, "n != [a, b, c, d]\ncontains(long, \"1\") == false\n}\n");
    cr_expect_eq(ct_policy_allow((char *)text.data, text.len, NULL, &err), -1);
    cr_expect(strstr(err.msg, "steps"), "%s", err.msg);

    /* Nested iterations: stopped, not endless. */
    text.len = 0;
    ct_buf_puts(&text,
                "package model\nn := [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]\nallow if {\n");
    for (int i = 0; i < 12; i++) {
        ct_buf_printf(&text, "some v%d in n\nv%d > 0\n", i, i);
    }
    ct_buf_puts(&text, "false\n}\n");
    cr_expect_eq(ct_policy_allow((char *)text.data, text.len, NULL, &err), -1);
    cr_expect(strstr(err.msg, "steps"), "%s", err.msg);
}
