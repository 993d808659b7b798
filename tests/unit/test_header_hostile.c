/* Hostile headers of 20 MB: time and memory stay a small multiple of reading them, whatever they
 * hold. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

#include "format/base/secret.h"
#include "tests/unit/header_fixture.h"

enum {
    SIZE = KVFS_SANITIZED ? 4000000 : 20000000,
    MEMORY_FACTOR = 8,                            /* of the JSON's length, at most */
    MILLISECONDS = KVFS_SANITIZED ? 20000 : 4000, /* of CPU for one header */
};

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
}

TestSuite(hostile, .init = setup);

static double cpu_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static size_t peak(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (size_t)u.ru_maxrss * 1024;
}

/* Appends what `fmt` makes of ever new numbers until SIZE is reached, commas between. */
static void fill(struct ct_buf *b, const char *fmt)
{
    (void)ct_buf_reserve(b, SIZE + 1000); /* the peak below is the parser's then */
    for (uint64_t i = 0; b->len < SIZE; i++) {
        char item[256];
        const char *c = i ? "," : "";
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        int n = snprintf(item, sizeof(item), fmt, (unsigned long long)i, (unsigned long long)i);
#pragma GCC diagnostic pop
        ct_buf_puts(b, c);
        ct_buf_put(b, item, (size_t)n);
    }
}

static void judge(const char *what, const struct ct_buf *json, uint64_t body, bool legal)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_measure m;
    struct ct_header *h = NULL;
    double start = cpu_ms();
    (void)measure_json(json->data, json->len, body, &m, &err);
    double measured = cpu_ms() - start;
    size_t before = peak();
    start = cpu_ms();
    int r = ct_header_parse(json->data, json->len, body, &h, &err);
    double parsed = cpu_ms() - start;
    size_t more = peak() - before;
    cr_expect_eq(r == 0, legal, "%s: %s", what, err.msg);
    cr_expect_lt(measured, MILLISECONDS, "%s: %.0f ms to measure", what, measured);
    cr_expect_lt(parsed, MILLISECONDS, "%s: %.0f ms to parse", what, parsed);
    if (!KVFS_SANITIZED) {
        cr_expect_lt(more, (size_t)MEMORY_FACTOR * json->len, "%s: %zu bytes", what, more);
        cr_expect(!h || ct_header_memory(h) < (size_t)MEMORY_FACTOR * json->len, "%s", what);
    }
    ct_header_free(h);
}

static const struct {
    const char *what, *begin, *item, *end;
    bool legal;
} lists[] = {
    {"empty tensors", "{", "\"%llx\":{\"dtype\":\"F4\",\"shape\":[0],\"data_offsets\":[0,0]}", "}",
     true},
    {"one name", "{", "\"a\":{\"dtype\":\"F4\",\"shape\":[0],\"data_offsets\":[0,0]}", "}", false},
    {"unknown dtypes", "{", "\"%llx\":{\"dtype\":\"%llx\",\"shape\":[],\"data_offsets\":[0,0]}",
     "}", true},
    {"overlaps", "{", "\"%llx\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%llu,9999999]}",
     "}", false},
    {"metadata", "{\"__metadata__\":{", "\"%llx\":\"\"", "}}", true},
    {"one key", "{\"__metadata__\":{", "\"\":\"\"", "}}", false},
    {"a shape", "{\"a\":{\"dtype\":\"U8\",\"shape\":[0,", "1", "],\"data_offsets\":[0,0]}}", true},
    {"a shape that overflows", "{\"a\":{\"dtype\":\"U8\",\"shape\":[", "9",
     "],\"data_offsets\":[0,0]}}", false},
    {"offsets", "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,", "0", "]}}", false},
    {"members", "{\"a\":{", "\"%llx\":0", "}}", false},
    {"arrays in a shape", "{\"a\":{\"shape\":[", "[]", "]}}", false},
};

Test(hostile, lists)
{
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        ct_autobuf json = {0};
        ct_buf_puts(&json, lists[i].begin);
        fill(&json, lists[i].item);
        ct_buf_puts(&json, lists[i].end);
        judge(lists[i].what, &json, 0, lists[i].legal);
    }
}

/* Tensors from the end of the body to its beginning, and keys with one long prefix: the worst for
 * a sort. */
Test(hostile, order)
{
    ct_autobuf json = {0};
    const uint64_t count = SIZE / 70;
    ct_buf_putc(&json, '{');
    for (uint64_t i = count; i-- > 0;) {
        ct_buf_printf(
            &json, "\"%llx\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%llu,%llu]}%s",
            (unsigned long long)i, (unsigned long long)i, (unsigned long long)i + 1, i ? "," : "}");
    }
    judge("backwards", &json, count, true);

    json.len = 0;
    char prefix[1001];
    memset(prefix, 'p', 1000);
    prefix[1000] = '\0';
    ct_buf_puts(&json, "{\"__metadata__\":{");
    for (uint64_t i = SIZE / 1010; i-- > 0;) {
        ct_buf_printf(&json, "\"%s%llx\":\"\"%s", prefix, (unsigned long long)i, i ? "," : "}}");
    }
    judge("long keys", &json, 0, true);
}

static const struct {
    const char *what, *begin, *again, *end;
    bool legal;
} runs[] = {
    {"arrays", "{\"a\":", "[", "", false},
    {"objects", "", "{\"a\":", "", false},
    {"arrays in metadata", "{\"__metadata__\":{\"a\":", "[", "", false},
    {"blanks", "{", " ", "}", true},
    {"no end", "{\"", "a", "", false},
    {"a name", "{\"", "a", "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", true},
    {"an escaped name", "{\"", "\\u0001",
     "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", true},
    {"quotes", "{\"__metadata__\":{\"", "\\\"", "\":\"\"}}", true},
    {"a dtype", "{\"a\":{\"shape\":[],\"data_offsets\":[0,0],\"dtype\":\"", "\xc3\xa9", "\"}}",
     true},
    {"a member", "{\"a\":{\"", "x", "\":0}}", false},
    {"digits", "{\"a\":{\"shape\":[", "0", "", false},
};

Test(hostile, runs)
{
    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
        ct_autobuf json = {0};
        (void)ct_buf_reserve(&json, SIZE + 1000);
        ct_buf_puts(&json, runs[i].begin);
        while (json.len < SIZE) {
            ct_buf_puts(&json, runs[i].again);
        }
        ct_buf_puts(&json, runs[i].end);
        judge(runs[i].what, &json, 0, runs[i].legal);
    }
}

/* Names that fill their memory to the last byte, and behind the last of them a dtype, of which
 * nothing is kept. */
Test(hostile, full_to_the_brim)
{
    enum { NAMES = 131072 }; /* so large that a block is theirs alone */
    struct ct_err err = CT_ERR_INIT;
    struct ct_header *h = NULL;
    ct_autobuf json = {0};
    ct_buf_puts(&json, "{\"");
    while (json.len < NAMES + 2) {
        ct_buf_putc(&json, 'n');
    }
    ct_buf_puts(&json, "\":{\"shape\":[4],\"data_offsets\":[0,3],\"dtype\":\"F6_E2M3\"}}");
    cr_expect_eq(ct_header_parse(json.data, json.len, 3, &h, &err), 0, "%s", err.msg);
    cr_expect_eq(h->tensors[0].name.n, NAMES);
    ct_header_free(h);
}

/* A length that no memory was asked for before anything else was checked. */
Test(hostile, too_long)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_header *h = NULL;
    size_t n = (size_t)CT_HEADER_MAX + 1;
    uint8_t *json = malloc(n);
    cr_assert(json);
    memset(json, ' ', n);
    json[0] = '{';
    json[1] = '}';
    cr_expect_eq(ct_header_parse(json, n, 0, &h, &err), -1);
    cr_expect_eq(err.code, CT_MALFORMED);
    cr_expect_eq(ct_header_parse(json, n - 1, 0, &h, &err), 0, "%s", err.msg);
    ct_header_free(h);
    free(json);
}
