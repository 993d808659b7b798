#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/base/file.h"
#include "format/protocol/digest.h"
#include "guard/guard.h"
#include "guard/tree.h"

static struct guard_profile *good(const char *text)
{
    struct guard_profile *p = NULL;
    struct ct_err err = CT_ERR_INIT;
    cr_assert_eq(guard_profile_parse(text, strlen(text), "t", &p, &err), 0, "%s", err.msg);
    return p;
}

static void bad(const char *text, const char *says)
{
    struct guard_profile *p = NULL;
    struct ct_err err = CT_ERR_INIT;
    cr_assert_eq(guard_profile_parse(text, strlen(text), "t", &p, &err), -1, "%s", text);
    cr_assert_eq(err.code, CT_USAGE);
    cr_assert(strstr(err.msg, says), "'%s' lacks '%s'", err.msg, says);
}

Test(profile, the_built_in_ones)
{
    static const char *const names[] = {"strict", "drift", "off"};
    for (size_t i = 0; i < 3; i++) {
        struct guard_profile *p = NULL;
        struct ct_err err = CT_ERR_INIT;
        cr_assert_eq(guard_profile_load(names[i], &p, &err), 0, "%s", err.msg);
        cr_assert_str_eq(p->name, names[i]);
        cr_assert_eq(guard_profile_is_off(p), i == 2);
        for (int id = 0; id < GUARD_IDS && i < 2; id++) {
            if (guard_checks[id].about[GUARD_OWN] && i == 0) {
                cr_assert_eq(p->level[id][GUARD_OWN], GUARD_REQUIRE, "%s", guard_checks[id].name);
            }
            cr_assert(i == 0 || p->level[id][GUARD_READER] == GUARD_IGNORE);
        }
        guard_profile_free(p);
    }
    struct guard_profile *p = NULL;
    struct ct_err err = CT_ERR_INIT;
    cr_assert_eq(guard_profile_load("strikt", &p, &err), -1);
    cr_assert(strstr(err.msg, "strict, drift, off"));
    cr_assert_eq(guard_profile_load("./none-there", &p, &err), -1);
}

/* The built-in profiles name every check, so that nothing is there by accident. */
Test(profile, name_every_check)
{
    static const char *const files[] = {TEST_PROFILES "/strict", TEST_PROFILES "/drift"};
    for (size_t i = 0; i < 2; i++) {
        ct_autobuf text = {0};
        cr_assert_eq(ct_read_file(AT_FDCWD, files[i], 1 << 16, &text, NULL), 0);
        ct_buf_putc(&text, '\0');
        for (int id = 0; id < GUARD_IDS; id++) {
            char want[64];
            (void)snprintf(want, sizeof(want), "\n%s ", guard_checks[id].name);
            bool reader_only = !guard_checks[id].about[GUARD_OWN];
            cr_assert(strstr((char *)text.data, want) || (i == 1 && reader_only), "%s lacks %s",
                      files[i], guard_checks[id].name);
        }
    }
}

Test(profile, levels)
{
    struct guard_profile *p = good("profile a-1 # a name\n\nswap keep\ntracer ignore reader\n");
    cr_assert_eq(p->level[GUARD_SWAP][GUARD_OWN], GUARD_KEEP);
    cr_assert_eq(p->level[GUARD_SWAP][GUARD_READER], GUARD_IGNORE, "not about readers");
    cr_assert_eq(p->level[GUARD_TRACER][GUARD_OWN], GUARD_REQUIRE, "what is not named");
    cr_assert_eq(p->level[GUARD_TRACER][GUARD_READER], GUARD_IGNORE);
    guard_profile_free(p);
    p = good("profile a\n* ignore\nswap require\n");
    cr_assert_eq(p->level[GUARD_SWAP][GUARD_OWN], GUARD_REQUIRE);
    cr_assert_eq(p->level[GUARD_TRACER][GUARD_OWN], GUARD_IGNORE);
    cr_assert_not(guard_profile_is_off(p));
    guard_profile_free(p);
    p = good("profile a\n* ignore\n");
    cr_assert(guard_profile_is_off(p));
    guard_profile_free(p);
}

Test(profile, what_is_declared)
{
    char text[512];
    char hex[65];
    memset(hex, 'a', 64);
    hex[64] = '\0';
    (void)snprintf(text, sizeof(text),
                   "profile a\nbase drift\nbind /x/\nbind /x rw\ndevice /dev/nvidia*\n"
                   "admit exe /bin/python tree %s\nadmit exe /bin/python\nadmit uid 0 7\n"
                   "admit pin cgroup\nperiod 20\ngap 30\n",
                   hex);
    struct guard_profile *p = good(text);
    cr_assert_eq(p->count_of[GUARD_BIND], 1, "the same path, said twice");
    cr_assert_eq(p->count_of[GUARD_ADMIT_EXE], 2, "with and without a digest");
    cr_assert_eq(p->count_of[GUARD_ADMIT_UID], 2);
    cr_assert_eq(p->pins, GUARD_PIN_CGROUP);
    cr_assert(p->period_ms == 20 && p->gap_ms == 30);
    for (size_t i = 0; i < p->count; i++) {
        const struct guard_declared *d = &p->declared[i];
        if (d->kind == GUARD_BIND) {
            cr_assert(d->rw && strcmp(d->path, "/x") == 0);
        }
        if (d->kind == GUARD_ADMIT_EXE && d->has_digest) {
            cr_assert(d->needs_tree && d->digest[31] == 0xaa);
        }
    }
    guard_profile_free(p);
}

Test(profile, refuses)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "profile NAME"},
        {"swap keep\n", "t:1: the first statement"},
        {"profile strict\n", "taken"},
        {"profile off\n", "taken"},
        {"profile A\n", "a-z"},
        {"profile a b\n", "a-z"},
        {"profile a\nprofile b\n", "t:2"},
        {"profile aaaaaaaaaabbbbbbbbbbccccccccccddd\n", "a-z"},
        {"profile a\n\nswop keep\n", "t:3: there is no such statement or check: swop"},
        {"profile a\nswap\n", "CHECK"},
        {"profile a\nswap maybe\n", "CHECK"},
        {"profile a\nswap keep own x\n", "CHECK"},
        {"profile a\nswap keep reader\n", "not about those"},
        {"profile a\nreader-pin keep own\n", "not about those"},
        {"profile a\nswap keep\nbase strict\n", "before everything"},
        {"profile a\nbase strict\nbase drift\n", "once"},
        {"profile a\nbase none\n", "base"},
        {"profile a\nbind relative\n", "absolute"},
        {"profile a\nbind\n", "what"},
        {"profile a\nbind /x ro\n", "what"},
        {"profile a\ntmpfs /x rw\n", "what"},
        {"profile a\nadmit\n", "admit"},
        {"profile a\nadmit uid\n", "admit"},
        {"profile a\nadmit uid -1\n", "admit"},
        {"profile a\nadmit uid 4294967295\n", "admit"},
        {"profile a\nadmit uid 1x\n", "admit"},
        {"profile a\nadmit exe /x abc\n", "SHA-256"},
        {"profile a\nadmit tree /x tree\n", "SHA-256"},
        {"profile a\nadmit pin host\n", "admit"},
        {"profile a\nperiod 0\n", "milliseconds"},
        {"profile a\nperiod 99999999999999999999\n", "milliseconds"},
        {"profile a\nperiod\n", "milliseconds"},
        {"profile a\nswap 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", "too many"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        bad(cases[i].text, cases[i].says);
    }
    struct guard_profile *p = NULL;
    cr_assert_eq(guard_profile_parse("profile a\n\0", 11, "t", &p, NULL), -1, "NUL");
    ct_autobuf many = {0};
    ct_buf_puts(&many, "profile a\n");
    for (int i = 0; i <= GUARD_DECLARED_MAX; i++) {
        ct_buf_printf(&many, "bind /%d\n", i);
    }
    cr_assert_eq(guard_profile_parse((char *)many.data, many.len, "t", &p, NULL), -1);
    ct_buf_reserve(&many, GUARD_PROFILE_MAX);
    memset(many.data, ' ', GUARD_PROFILE_MAX);
    cr_assert_eq(guard_profile_parse((char *)many.data, GUARD_PROFILE_MAX, "t", &p, NULL), -1);
}

/* The effective profile is a profile again, and means the same. */
Test(profile, its_text_means_the_same)
{
    struct guard_profile *p =
        good("profile a\nbase strict\nswap ignore\nbind /z\nbind /a rw\nadmit uid 9\n"
             "admit exe /bin/x tree\n");
    ct_autobuf text = {0};
    ct_autobuf again = {0};
    cr_assert_eq(guard_profile_text(p, &text, NULL), 0);
    struct guard_profile *q = NULL;
    struct ct_err err = CT_ERR_INIT;
    cr_assert_eq(guard_profile_parse((char *)text.data, text.len, "again", &q, &err), 0, "%s",
                 err.msg);
    cr_assert_eq(guard_profile_text(q, &again, NULL), 0);
    cr_assert_eq(ct_cmp_bytes(text.data, text.len, again.data, again.len), 0);
    guard_profile_free(p);
    guard_profile_free(q);
}

Test(profile, one_byte_altered)
{
    static const char text[] = "profile a\nbase drift\nswap keep own\nbind /x rw\nadmit uid 1 2\n"
                               "admit pin mnt\nperiod 10\n* ignore\n";
    static const char bytes[] = {' ', '\n', '#', '\t', '9', '*', (char)0xff};
    for (size_t at = 0; at < sizeof(text) - 1; at++) {
        for (size_t k = 0; k < sizeof(bytes); k++) {
            char copy[sizeof(text)];
            struct guard_profile *p = NULL;
            memcpy(copy, text, sizeof(text));
            copy[at] = bytes[k];
            if (guard_profile_parse(copy, sizeof(text) - 1, "t", &p, NULL) == 0) {
                guard_profile_free(p);
            }
        }
    }
}

/* ---- Reports ---- */

Test(report, goes_over_the_wire)
{
    static struct guard_report report;
    struct guard_profile *p = good("profile a\n");
    struct guard_profile *off = good("profile a\n* ignore\n");
    cr_assert_str_eq(guard_report_state(p, &report), "ok");
    cr_assert_str_eq(guard_report_state(off, &report), "off");
    report.count = GUARD_FINDINGS_MAX;
    for (size_t i = 0; i < report.count; i++) {
        report.findings[i].id = (enum guard_id)(i % GUARD_IDS);
        memset(report.findings[i].text, 'x', GUARD_TEXT_MAX - 1);
    }
    json_t *wire = guard_report_wire(p, &report);
    cr_assert_str_eq(json_string_value(json_object_get(wire, "state")), "drift");
    const json_t *all = json_object_get(wire, "findings");
    cr_assert_eq(json_array_size(all), 64);
    for (size_t i = 0; i < json_array_size(all); i++) {
        cr_assert(kx_is_text(json_string_value(json_array_get(all, i)), 256));
    }
    json_decref(wire);
    json_t *full = guard_report_json(p, &report);
    cr_assert(json_is_array(json_object_get(full, "checks")));
    json_decref(full);
    guard_profile_free(p);
    guard_profile_free(off);
}

Test(checks, are_all_there)
{
    for (int id = 0; id < GUARD_IDS; id++) {
        const struct guard_check_info *c = &guard_checks[id];
        cr_assert(c->name && c->holds && c->fix && c->blind, "%d", id);
        cr_assert(c->about[GUARD_OWN] || c->about[GUARD_READER], "%s", c->name);
        cr_assert_lt(strlen(c->name), 30);
        cr_assert_eq(guard_check_named(c->name), id);
    }
    cr_assert_eq(guard_check_named("none"), -1);
}

/* ---- Trees ---- */

static void put(int dir, const char *name, const char *text)
{
    ct_autofd fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    cr_assert(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
}

Test(tree, digests_say_what_is_in_it)
{
    char root[] = "/tmp/test-tree-XXXXXX";
    uint8_t d[5][CT_SHA256_LEN];
    uint8_t marks[2][CT_SHA256_LEN];
    struct ct_err err = CT_ERR_INIT;
    cr_assert(mkdtemp(root));
    ct_autofd dir = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    cr_assert_eq(mkdirat(dir, "sub", 0755), 0);
    put(dir, "a", "1");
    put(dir, "sub/b", "22");
    cr_assert_eq(symlinkat("a", dir, "link"), 0);
    cr_assert_eq(guard_tree_digest(dir, d[0], &err), 0, "%s", err.msg);
    cr_assert_eq(guard_tree_marks(dir, marks[0], NULL), 0);
    put(dir, "a", "1");
    cr_assert_eq(guard_tree_digest(dir, d[1], NULL), 0);
    cr_assert_eq(guard_tree_marks(dir, marks[1], NULL), 0);
    cr_assert_eq(memcmp(d[0], d[1], CT_SHA256_LEN), 0, "times are no part of it");
    cr_assert_neq(memcmp(marks[0], marks[1], CT_SHA256_LEN), 0, "of marks they are");
    put(dir, "a", "2");
    cr_assert_eq(guard_tree_digest(dir, d[2], NULL), 0);
    cr_assert_neq(memcmp(d[0], d[2], CT_SHA256_LEN), 0);
    put(dir, "a", "1");
    cr_assert_eq(unlinkat(dir, "link", 0), 0);
    cr_assert_eq(symlinkat("sub", dir, "link"), 0);
    cr_assert_eq(guard_tree_digest(dir, d[3], NULL), 0);
    cr_assert_neq(memcmp(d[0], d[3], CT_SHA256_LEN), 0);
    cr_assert_eq(mkfifoat(dir, "pipe", 0644), 0);
    cr_assert_eq(guard_tree_digest(dir, d[4], &err), -1);
    cr_assert(strstr(err.msg, "pipe"));
    static const char *const names[] = {"pipe", "link", "sub/b", "a"};
    for (size_t i = 0; i < 4; i++) {
        (void)unlinkat(dir, names[i], 0);
    }
    (void)unlinkat(dir, "sub", AT_REMOVEDIR);
    (void)rmdir(root);
}

Test(tree, changed_between_its_measurement_and_the_start)
{
    char root[] = "/tmp/kvfs-test-XXXXXX";
    char text[128];
    struct ct_err err = CT_ERR_INIT;
    struct guard *g = NULL;
    const struct guard_config config = {.source = NULL};
    uint8_t digest[CT_SHA256_LEN];
    cr_assert(mkdtemp(root));
    (void)snprintf(text, sizeof(text), "profile p\n* ignore\ntree-changed keep\ntree %s\n", root);
    struct guard_profile *p = good(text);
    int dir = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    cr_assert_eq(guard_tree_measure(dir, digest, p->declared[0].marks, &err), 0, "%s", err.msg);
    p->declared[0].marked = true;
    cr_assert_eq(guard_new(p, &config, &g, &err), 0, "%s", err.msg);
    guard_free(g);
    cr_assert_eq(mkdirat(dir, "more", 0700), 0);
    cr_assert_eq(guard_new(p, &config, &g, &err), -1);
    cr_assert_eq(err.code, CT_STALE, "%s", err.msg);
    cr_assert_eq(unlinkat(dir, "more", AT_REMOVEDIR), 0);
    guard_profile_free(p);
    close(dir);
    cr_assert_eq(rmdir(root), 0);
}

Test(profile, who_is_admitted_counts_whatever_the_base_says)
{
    struct guard_profile *p = good("profile p\nbase drift\nadmit uid 5\nadmit exe /x tree\n");
    cr_assert_eq(p->level[GUARD_READER_UID][GUARD_READER], GUARD_REQUIRE);
    cr_assert_eq(p->level[GUARD_READER_EXE][GUARD_READER], GUARD_REQUIRE);
    cr_assert_eq(p->level[GUARD_READER_TREE][GUARD_READER], GUARD_REQUIRE);
    cr_assert_eq(p->level[GUARD_READER_PIN][GUARD_READER], GUARD_IGNORE);
    cr_assert_eq(p->level[GUARD_INSPECT][GUARD_READER], GUARD_IGNORE);
    cr_assert(guard_profile_judges_readers(p));
    guard_profile_free(p);
    p = good("profile p\nbase drift\nreader-uid ignore\nadmit uid 5\nadmit pin mnt\n");
    cr_assert_eq(p->level[GUARD_READER_UID][GUARD_READER], GUARD_IGNORE, "it says so itself");
    cr_assert_eq(p->level[GUARD_READER_PIN][GUARD_READER], GUARD_REQUIRE);
    guard_profile_free(p);
}
