/* Tokens of the policy language. Positions are lines, for messages. */
#ifndef CT_POLICY_LEX_H
#define CT_POLICY_LEX_H

#include <stdbool.h>
#include <stddef.h>

#include "format/base/bytes.h"
#include "format/base/err.h"

enum ct_tok {
    TOK_END,
    TOK_NEWLINE,
    TOK_NAME,   /* identifier or keyword; text */
    TOK_STRING, /* decoded; text */
    TOK_NUMBER, /* text */
    TOK_PUNCT,  /* one or two characters; text */
};

struct ct_token {
    enum ct_tok type;
    unsigned line;
    bool glued;       /* nothing stands between it and the token before */
    const char *text; /* NUL-terminated, in the lexer's memory */
    size_t len;
};

struct ct_lexer {
    const char *p, *end;
    unsigned line;
    struct ct_buf text; /* of all tokens so far: as large as the policy at most, never moved */
    struct ct_err *err;
};

/* `err` is not NULL. Reserves the memory for all tokens. */
int ct_lex_start(struct ct_lexer *l, const char *text, size_t len, struct ct_err *err);
int ct_lex_next(struct ct_lexer *l, struct ct_token *out);
void ct_lex_free(struct ct_lexer *l);

/* CT_POLICY "policy line N: …". */
int ct_policy_fail(struct ct_err *err, unsigned line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
