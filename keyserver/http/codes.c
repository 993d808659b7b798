#include "keyserver/http/codes.h"

static const struct {
    const char *name;
    unsigned status;
    const char *sentence;
} codes[KS_CODE_COUNT] = {
#define X(name, text, status, sentence) [KS_##name] = {text, status, sentence},
    KS_CODES(X)
#undef X
};

const char *ks_code_name(enum ks_code code)
{
    return codes[code].name;
}

unsigned ks_code_status(enum ks_code code)
{
    return codes[code].status;
}

const char *ks_code_sentence(enum ks_code code)
{
    return codes[code].sentence;
}
