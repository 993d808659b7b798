/*
 * The one error type of kvfs.
 *
 * A function that can fail takes `struct ct_err *err` as its last argument and returns -1 (or
 * NULL) after filling it. `err` may be NULL where the caller wants no reason. Callers add context
 * with ct_err_wrap(), innermost reason last, so that a message reads from the file to the cause:
 *
 *     model-00001.safetensors: tensor w0: chunk 2: tag does not match
 *
 * Inside, errors are the small enum below. errno is chosen in one place, where a reply is made
 * (ct_err_errno()), so that the same failure always looks the same to a reader.
 * No message ever contains key material.
 */
#ifndef CT_BASE_ERR_H
#define CT_BASE_ERR_H

#include <stddef.h>

enum ct_code {
    CT_OK = 0,
    CT_IO,          /* the disk, the network: EIO, or the system's errno where it says more */
    CT_NOMEM,       /* ENOMEM */
    CT_MALFORMED,   /* not what the format says: EBADMSG */
    CT_TAG,         /* an AEAD tag or a digest does not match: EBADMSG */
    CT_UNSUPPORTED, /* unknown version or algorithm: EOPNOTSUPP */
    CT_NOKEY,       /* no master or verification key of this kid: ENOKEY */
    CT_REJECTED,    /* signature or unwrapping failed, key of another algorithm, or nothing
                       vouches for the content: EKEYREJECTED */
    CT_POLICY,      /* the policy does not say exactly true: EACCES */
    CT_STALE,       /* the source changed: ESTALE */
    CT_EXISTS,      /* would overwrite: EEXIST */
    CT_NOTFOUND,    /* ENOENT */
    CT_LEAVES,      /* a link leaves the source directory: EXDEV */
    CT_USAGE,       /* a caller's or a user's argument is wrong: EINVAL */
    CT_BUSY,        /* EBUSY */
    CT_SEALED,      /* the mount is sealed: EKEYREVOKED */
    CT_DENIED,      /* the key server refuses: EACCES */
    CT_EXPIRED,     /* the lease is over: EKEYEXPIRED */
    CT_REVOKED,     /* the lease was revoked: EKEYREVOKED */
    CT_UNADMITTED,  /* the guard does not admit the reader: EPERM */
    CT_CODE_COUNT
};

enum { CT_ERR_MSG_MAX = 640 };

struct ct_err {
    enum ct_code code;
    int sys; /* errno of the system call behind it, or 0 */
    char msg[CT_ERR_MSG_MAX];
};

#define CT_ERR_INIT                                                                                \
    {                                                                                              \
        .code = CT_OK                                                                              \
    }

/* Sets code and message; returns -1, so that `return ct_err_set(...)` reads well. */
int ct_err_set(struct ct_err *err, enum ct_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* As ct_err_set() with CT_IO (CT_NOMEM for ENOMEM); appends the text of `sys`, an errno value. */
int ct_err_sys(struct ct_err *err, int sys, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "<context>: " before the message that is there; returns -1. */
int ct_err_wrap(struct ct_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "bad message", "no key", …: a short name for logs, status and JSON, stable. */
const char *ct_code_name(enum ct_code code);

/* The errno that a reader sees. Never 0 for an error. */
int ct_err_errno(const struct ct_err *err);
int ct_code_errno(enum ct_code code);

/* "EBADMSG" for EBADMSG and so on, for the errnos kvfs answers with; "E?" otherwise. */
const char *ct_errno_name(int err);

#endif
