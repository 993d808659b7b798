#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "format/base/secret.h"
#include "kvfs/audit/verify.h"

/* A log as a mount writes it, with a lease and a worker that dies; and everything that can be done
 * to it. */

#define MOUNT "00112233445566778899aabbccddeeff"
#define LEASE "ffeeddccbbaa99887766554433221100"

enum { LINES_MAX = 512 };

static json_t *key;
static struct kvfs_audit_chain mount, lease;
static struct ct_buf lines[LINES_MAX];
static size_t count;

static void add(struct kvfs_audit_chain *c, const char *event, json_t *details)
{
    ct_autobuf body = {0};
    ct_autobuf record = {0};
    struct ct_err err = CT_ERR_INIT;
    cr_assert_eq(kvfs_audit_body(event, details, &body, &err), 0, "%s", err.msg);
    ct_buf_putc(&body, '\0');
    cr_assert(kvfs_audit_body_is_sound((char *)body.data));
    cr_assert_eq(kvfs_audit_extend(c, (char *)body.data, &record, &err), 0, "%s", err.msg);
    cr_assert_lt(count, LINES_MAX);
    kvfs_audit_line(c, &record, &lines[count++]);
}

static void sign_other(struct kvfs_audit_chain *c, const struct kvfs_audit_chain *what,
                       const json_t *with)
{
    kx_autojson payload = json_pack("{s:i,s:s,s:I,s:s}", "version", 1, "chain", what->id,
                                    "sequence", (json_int_t)what->count, "head", what->head);
    add(c, "signature",
        json_pack("{s:o}", "signed", kx_jws_sign(with, KVFS_AUDIT_TYP, payload, NULL)));
}

static void sign(struct kvfs_audit_chain *c)
{
    const struct kvfs_audit_chain now = *c;
    sign_other(c, &now, key);
}

static void begin(void)
{
    cr_assert_eq(kvfs_audit_start(&mount, MOUNT, NULL), 0);
    cr_assert_eq(kvfs_audit_start(&lease, LEASE, NULL), 0);
    add(&mount, "mount",
        json_pack("{s:s,s:o}", "mountpoint", "/m", "audit_key", kx_jwk_public(key)));
    add(&lease, "release",
        json_pack("{s:s,s:s,s:s,s:o}", "lease", LEASE, "mount", MOUNT, "model", "a/m", "audit_key",
                  kx_jwk_public(key)));
    add(&mount, "release", json_pack("{s:s}", "lease", LEASE));
    sign(&mount);
    sign(&lease);
}

static void make_log(void)
{
    begin();
    add(&lease, "open", json_pack("{s:s,s:i}", "file", "a \"b\" \\ \u00fc.safetensors", "pid", 1));
    add(&mount, "refusal", json_pack("{s:s}", "detail", "no"));
    add(&lease, "renewal", NULL);
    sign(&lease);
    add(&lease, "worker-ended", json_pack("{s:b}", "signed", 0));
    add(&mount, "worker-ended", json_pack("{s:b}", "signed", 0));
}

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
    key = kx_jwk_new(NULL);
    cr_assert(key);
    count = 0;
}

static void teardown(void)
{
    for (size_t i = 0; i < LINES_MAX; i++) {
        ct_buf_free(&lines[i]);
    }
    json_decref(key);
}

TestSuite(audit, .init = setup, .fini = teardown);

/* ---- the verifier over a text ---- */

static struct {
    size_t faults, line; /* of the first */
    char first[512];
    int64_t behind, is_signed, chains;
} found;

static void fault(void *ctx, size_t line, const char *sentence)
{
    (void)ctx;
    if (found.faults++ == 0) {
        found.line = line;
        (void)snprintf(found.first, sizeof(found.first), "%s", sentence);
    }
}

static size_t verify_text(const char *text, size_t n, const char *head)
{
    struct kvfs_audit_verifier v;
    memset(&found, 0, sizeof(found));
    kvfs_audit_verify_init(&v, head, fault, NULL);
    while (n) {
        const char *stop = memchr(text, '\n', n);
        size_t len = stop ? (size_t)(stop - text) : n;
        cr_assert_eq(kvfs_audit_verify_line(&v, text, len, stop != NULL, NULL), 0);
        len += stop ? 1 : 0;
        text += len;
        n -= len;
    }
    kvfs_audit_verify_end(&v);
    found.behind = v.behind;
    found.chains = (int64_t)v.count;
    for (size_t i = 0; i < v.count; i++) {
        found.is_signed += v.chains[i]->is_signed;
    }
    kvfs_audit_verify_free(&v);
    cr_assert_eq(v.faults, found.faults);
    return found.faults;
}

/* The lines but for `without`, with a and b exchanged (all: count for none). */
static size_t verify(size_t without, size_t a, size_t b, size_t upto, const char *head)
{
    ct_autobuf text = {0};
    for (size_t i = 0; i < upto; i++) {
        const struct ct_buf *line = &lines[i == a ? b : i == b ? a : i];
        if (i != without) {
            ct_buf_put(&text, line->data, line->len);
        }
    }
    return verify_text((char *)text.data, text.len, head);
}

static size_t verify_all(void)
{
    return verify(count, count, count, count, NULL);
}

Test(audit, what_was_written_is_as_it_was_written)
{
    make_log();
    cr_assert_eq(verify_all(), 0, "line %zu: %s", found.line, found.first);
    cr_assert_eq(found.chains, 2);
    cr_assert_eq(found.is_signed, 2 + 4);
}

Test(audit, a_line_that_is_missing)
{
    make_log();
    for (size_t i = 0; i < count; i++) {
        /* The last of a chain can only be missed by who knows the head. */
        const struct kvfs_audit_chain *last = i == count - 2   ? &lease
                                              : i == count - 1 ? &mount
                                                               : NULL;
        cr_assert_gt(verify(i, count, count, count, last ? last->head : NULL), 0, "line %zu", i);
    }
}

Test(audit, two_lines_exchanged)
{
    make_log();
    for (size_t a = 0; a < count; a++) {
        for (size_t b = a + 1; b < count; b++) {
            /* Of two chains, the order between them is not told; unless it moves within its own. */
            size_t faults = verify(count, a, b, count, NULL);
            bool same = memcmp(lines[a].data, lines[b].data, 44) == 0;
            cr_assert(faults || !same, "%zu %zu", a, b);
        }
    }
}

Test(audit, a_tail_that_was_cut)
{
    make_log();
    for (size_t n = 0; n < count; n++) {
        bool of_mount = memcmp(lines[count - 1].data, lines[n].data, 44) == 0;
        cr_assert_gt(verify(count, count, count, n, mount.head), 0, "%zu lines", n);
        cr_assert(verify(count, count, count, n, lease.head) || (of_mount && n == count - 1));
    }
    cr_assert_eq(verify(count, count, count, count, lease.head), 0);
    cr_assert_eq(found.behind, 0);
}

Test(audit, a_head_in_the_middle)
{
    begin();
    char head[KX_HEX + 1];
    memcpy(head, lease.head, sizeof(head));
    add(&lease, "open", NULL);
    add(&mount, "open", NULL);
    add(&lease, "open", NULL);
    cr_assert_eq(verify(count, count, count, count, head), 0, "%s", found.first);
    cr_assert_eq(found.behind, 2);
    head[0] = head[0] == '0' ? '1' : '0';
    cr_assert_eq(verify(count, count, count, count, head), 1);
}

/* Every byte, each bit that a text can lose without becoming another kind of text, and then some.
 */
Test(audit, any_byte_altered)
{
    ct_autobuf text = {0};
    make_log();
    for (size_t i = 0; i < count; i++) {
        ct_buf_put(&text, lines[i].data, lines[i].len);
    }
    size_t line = 0;
    for (size_t i = 0, end = lines[0].len; i < text.len; i++) {
        static const uint8_t masks[] = {0x01, 0x20, 0x80};
        const uint8_t was = text.data[i];
        end += i == end ? lines[++line].len : 0;
        cr_assert(i % 100 || verify_text((char *)text.data, end, NULL) == 0);
        text.data[i] ^= masks[i % sizeof(masks)];
        cr_assert_gt(verify_text((char *)text.data, end, NULL), 0, "byte %zu (%c)", i, was);
        text.data[i] = was;
    }
    cr_assert_eq(verify_text((char *)text.data, text.len, NULL), 0);
}

static uint32_t dice(void)
{
    static uint32_t state = 1;
    state = state * 1664525 + 1013904223;
    return state >> 8;
}

/* Bytes inserted, removed, replaced, doubled, anywhere; never a crash, and never unseen. */
Test(audit, random_alterations)
{
    ct_autobuf text = {0};
    make_log();
    for (size_t i = 0; i < count; i++) {
        ct_buf_put(&text, lines[i].data, lines[i].len);
    }
    cr_assert(text.data && text.len > 1000);
    for (int turn = 0; turn < 1000; turn++) {
        const size_t at = dice() % (text.len - 64);
        const size_t n = 1 + dice() % 40;
        const uint32_t how = dice() % 3;
        ct_autobuf other = {0};
        ct_buf_put(&other, text.data, at);
        for (size_t i = 0; how == 1 && i < n; i++) {
            ct_buf_putc(&other, (char)dice());
        }
        if (how == 2) {
            ct_buf_put(&other, text.data + at, n); /* twice */
        }
        const size_t from = how == 2 ? at : at + n;
        ct_buf_put(&other, text.data + from, text.len - from);
        cr_assert(other.data);
        bool same = other.len == text.len && memcmp(other.data, text.data, text.len) == 0;
        cr_assert(same || verify_text((char *)other.data, other.len, NULL), "turn %d", turn);
    }
}

/* ---- what somebody writes who can chain, and not sign ---- */

Test(audit, signatures_of_others_and_for_others)
{
    kx_autojson stranger = kx_jwk_new(NULL);
    begin();
    sign_other(&lease, &lease, stranger);
    cr_assert_eq(verify_all(), 1);
    cr_assert(strstr(found.first, "another key"), "%s", found.first);
    struct kvfs_audit_chain wrong = lease;
    wrong.count--;
    sign_other(&lease, &wrong, key);
    sign_other(&lease, &mount, key);
    cr_assert_eq(verify_all(), 3);
    add(&lease, "signature", NULL);
    cr_assert_eq(verify_all(), 4);
}

Test(audit, records_that_should_be_signed)
{
    begin();
    for (int i = 0; i < KVFS_AUDIT_SIGN_LATEST - 1; i++) {
        add(&lease, "open", NULL);
    }
    cr_assert_eq(verify_all(), 0, "%s", found.first);
    add(&lease, "open", NULL);
    add(&lease, "open", NULL);
    cr_assert_eq(verify_all(), 1);
    cr_assert(strstr(found.first, "should be signed"), "%s", found.first);
}

Test(audit, the_dead_do_not_sign)
{
    begin();
    add(&lease, "worker-ended", NULL);
    for (int i = 0; i < 3 * KVFS_AUDIT_SIGN_LATEST; i++) {
        add(&lease, "drift", NULL);
    }
    cr_assert_eq(verify_all(), 0, "%s", found.first);
}

Test(audit, chains_that_name_each_other)
{
    begin();
    ct_autobuf text = {0};
    for (size_t i = 0; i < count; i++) {
        if (memmem(lines[i].data, 44, MOUNT, 32)) {
            ct_buf_put(&text, lines[i].data, lines[i].len);
        }
    }
    cr_assert_eq(verify_text((char *)text.data, text.len, NULL), 1);
    cr_assert(strstr(found.first, "lease " LEASE), "%s", found.first);
    text.len = 0;
    for (size_t i = 0; i < count; i++) {
        if (memmem(lines[i].data, 44, LEASE, 32)) {
            ct_buf_put(&text, lines[i].data, lines[i].len);
        }
    }
    cr_assert_eq(verify_text((char *)text.data, text.len, NULL), 1);
    cr_assert(strstr(found.first, MOUNT), "%s", found.first);
}

Test(audit, first_lines_that_name_no_key)
{
    kvfs_audit_start(&mount, MOUNT, NULL);
    add(&mount, "mount", NULL);
    cr_assert_eq(verify_all(), 1);
    add(&mount, "mount", json_pack("{s:s}", "audit_key", "x"));
    cr_assert_eq(verify_all(), 1);
}

/* ---- bodies ---- */

Test(audit, bodies_that_are_refused)
{
    char long_one[KVFS_AUDIT_BODY_MAX + 2];
    static const char *const bad[] = {
        "", "\"", "}", "{}", "\"a\"", "a}", "\"a\":\"\n\"}", "\"a\":\"\x7f\"}", "\"a\":\"\xff\"}"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        cr_assert_not(kvfs_audit_body_is_sound(bad[i]), "%zu", i);
    }
    memset(long_one, 'a', sizeof(long_one));
    long_one[0] = '"';
    long_one[sizeof(long_one) - 2] = '}';
    long_one[sizeof(long_one) - 1] = '\0';
    cr_assert_not(kvfs_audit_body_is_sound(long_one));
    long_one[sizeof(long_one) - 3] = '}';
    long_one[sizeof(long_one) - 2] = '\0';
    cr_assert(kvfs_audit_body_is_sound(long_one));
}

Test(audit, texts_of_any_kind)
{
    char text[4 * KVFS_AUDIT_TEXT_MAX];
    memset(text, '\\', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    begin();
    add(&mount, "refusal",
        json_pack("{s:o,s:o}", "detail", kvfs_audit_text(text), "file",
                  kvfs_audit_text("a\nb\x7f\x01\"c\xff")));
    add(&mount, "refusal", json_pack("{s:o}", "detail", kvfs_audit_text("\nb\x7f\x01\"c")));
    cr_assert_eq(verify_all(), 0, "%s", found.first);
}
