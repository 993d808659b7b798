#include "kvfs/audit/chain.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "format/base/secret.h"

int kvfs_audit_start(struct kvfs_audit_chain *c, const char *id, struct ct_err *err)
{
    if (!kx_is_hex(id, KVFS_AUDIT_ID)) {
        return ct_err_set(err, CT_MALFORMED, "not the name of an audit chain");
    }
    c->count = 0;
    memcpy(c->id, id, sizeof(c->id));
    return kx_audit_start(id, c->head, err);
}

static void put_time(struct ct_buf *out)
{
    struct timespec now;
    struct tm utc;
    char text[32] = "";
    clock_gettime(CLOCK_REALTIME, &now);
    if (gmtime_r(&now.tv_sec, &utc)) {
        (void)strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &utc);
    }
    ct_buf_printf(out, "\"time\":\"%s.%03ldZ\"", text, now.tv_nsec / 1000000);
}

int kvfs_audit_body(const char *event, json_t *details, struct ct_buf *out, struct ct_err *err)
{
    const size_t before = out->len;
    char *more = details ? json_dumps(details, JSON_COMPACT) : NULL;
    bool lacks = details && !more;
    json_decref(details);
    put_time(out);
    ct_buf_printf(out, ",\"event\":\"%s\"", event);
    if (more && more[1] != '}') {
        ct_buf_printf(out, ",%s", more + 1);
    } else {
        ct_buf_putc(out, '}');
    }
    ct_wiping_free(more);
    if (lacks || ct_buf_ok(out, NULL)) {
        return ct_err_set(err, CT_NOMEM, "no memory for an audit record");
    }
    return out->len - before <= KVFS_AUDIT_BODY_MAX
               ? 0
               : ct_err_set(err, CT_MALFORMED, "an audit record of %zu bytes", out->len - before);
}

bool kvfs_audit_body_is_sound(const char *body)
{
    size_t n = strnlen(body, KVFS_AUDIT_BODY_MAX + 1);
    if (n < 2 || n > KVFS_AUDIT_BODY_MAX || body[0] != '"' || body[n - 1] != '}') {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)body[i] < 0x20 || body[i] == 0x7f) {
            return false;
        }
    }
    return ct_utf8_ok((const uint8_t *)body, n);
}

int kvfs_audit_extend(struct kvfs_audit_chain *c, const char *body, struct ct_buf *record,
                      struct ct_err *err)
{
    const size_t before = record->len;
    ct_buf_printf(record, "{\"chain\":\"%s\",\"n\":%lld,%s", c->id, (long long)c->count + 1, body);
    ct_buf_putc(record, '\0');
    if (ct_buf_ok(record, err)) {
        return -1;
    }
    record->len--;
    if (kx_audit_next(c->head, c->count + 1, (const char *)record->data + before, err)) {
        return -1;
    }
    c->count++;
    return 0;
}

void kvfs_audit_line(const struct kvfs_audit_chain *c, const struct ct_buf *record,
                     struct ct_buf *line)
{
    ct_buf_put(line, record->data, record->len - 1);
    ct_buf_printf(line, ",\"head\":\"%s\"}\n", c->head);
}

json_t *kvfs_audit_text(const char *text)
{
    char cut[KVFS_AUDIT_TEXT_MAX];
    ct_utf8_copy(cut, sizeof(cut), text);
    for (char *p = cut; *p; p++) {
        *p = *p == 0x7f ? '?' : *p; /* JSON would leave it as it is */
    }
    json_t *value = json_string(cut);
    return value ? value : json_string("(not UTF-8)");
}
