#include "format/base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "format/base/bytes.h"

static const struct {
    const char *name;
    int err;
} codes[CT_CODE_COUNT] = {
    [CT_OK] = {"ok", 0},
    [CT_IO] = {"i/o error", EIO},
    [CT_NOMEM] = {"no memory", ENOMEM},
    [CT_MALFORMED] = {"malformed", EBADMSG},
    [CT_TAG] = {"tag mismatch", EBADMSG},
    [CT_UNSUPPORTED] = {"unsupported", EOPNOTSUPP},
    [CT_NOKEY] = {"no key", ENOKEY},
    [CT_REJECTED] = {"rejected", EKEYREJECTED},
    [CT_POLICY] = {"policy", EACCES},
    [CT_STALE] = {"source changed", ESTALE},
    [CT_EXISTS] = {"exists", EEXIST},
    [CT_NOTFOUND] = {"not found", ENOENT},
    [CT_LEAVES] = {"link leaves the source", EXDEV},
    [CT_USAGE] = {"usage", EINVAL},
    [CT_BUSY] = {"busy", EBUSY},
    [CT_SEALED] = {"sealed", EKEYREVOKED},
    [CT_UNADMITTED] = {"not admitted", EPERM},
    [CT_DENIED] = {"denied", EACCES},
    [CT_EXPIRED] = {"lease expired", EKEYEXPIRED},
    [CT_REVOKED] = {"lease revoked", EKEYREVOKED},
};

__attribute__((format(printf, 4, 0))) static void vset(struct ct_err *err, enum ct_code code,
                                                       int sys, const char *fmt, va_list ap)
{
    if (!err) {
        return;
    }
    err->code = code;
    err->sys = sys;
    int n = vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
    err->msg[ct_utf8_cut(err->msg, n > 0 ? (size_t)n : 0, sizeof(err->msg) - 1)] = '\0';
}

int ct_err_set(struct ct_err *err, enum ct_code code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vset(err, code, 0, fmt, ap);
    va_end(ap);
    return -1;
}

int ct_err_sys(struct ct_err *err, int sys, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vset(err, sys == ENOMEM ? CT_NOMEM : CT_IO, sys, fmt, ap);
    va_end(ap);
    if (err) {
        char text[128];
        size_t n = strlen(err->msg);
        (void)snprintf(err->msg + n, sizeof(err->msg) - n, ": %s",
                       strerror_r(sys, text, sizeof(text)));
    }
    return -1;
}

int ct_err_wrap(struct ct_err *err, const char *fmt, ...)
{
    if (!err) {
        return -1;
    }
    char context[CT_ERR_MSG_MAX];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(context, sizeof(context), fmt, ap);
    va_end(ap);

    size_t room = sizeof(err->msg) - 1;
    /* A long path must not push the reason out. */
    size_t add = ct_utf8_cut(context, strlen(context), room / 2 - 2);
    size_t have = ct_utf8_cut(err->msg, strlen(err->msg), room - add - 2);
    memmove(err->msg + add + 2, err->msg, have);
    memcpy(err->msg, context, add);
    memcpy(err->msg + add, ": ", 2);
    err->msg[add + 2 + have] = '\0';
    return -1;
}

const char *ct_code_name(enum ct_code code)
{
    return (unsigned)code < CT_CODE_COUNT ? codes[code].name : "unknown";
}

int ct_code_errno(enum ct_code code)
{
    return (unsigned)code < CT_CODE_COUNT && codes[code].err ? codes[code].err : EIO;
}

int ct_err_errno(const struct ct_err *err)
{
    if (err->code == CT_IO && (err->sys == ENOSPC || err->sys == EACCES || err->sys == ENOENT ||
                               err->sys == EMFILE || err->sys == ENFILE)) {
        return err->sys;
    }
    return ct_code_errno(err->code);
}

const char *ct_errno_name(int err)
{
    const char *name = strerrorname_np(err);
    return name ? name : "E?";
}
