#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "format/aead/backend.h"

static const char *const alg_names[] = {"none", "aes128gcm", "aes256gcm", "chacha20poly1305"};

/* Of what ct_aead_open_read() reads: few calls, and small beside a second-level cache. */
enum { PART = 131072 };

size_t ct_alg_key_len(enum ct_alg alg)
{
    return alg == CT_ALG_AES128GCM ? 16 : alg == CT_ALG_NONE ? 0 : 32;
}

const char *ct_alg_name(enum ct_alg alg)
{
    return (unsigned)alg < sizeof(alg_names) / sizeof(alg_names[0]) ? alg_names[alg] : "unknown";
}

enum ct_alg ct_alg_parse(const char *text, size_t len)
{
    char plain[32];
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '-') {
            continue;
        }
        if (n == sizeof(plain) - 1) {
            return CT_ALG_NONE;
        }
        plain[n++] = (char)tolower((unsigned char)text[i]);
    }
    plain[n] = '\0';
    for (enum ct_alg alg = CT_ALG_AES128GCM; alg <= CT_ALG_CHACHA20POLY1305; alg++) {
        if (n == strlen(alg_names[alg]) && memcmp(plain, alg_names[alg], n) == 0) {
            return alg;
        }
    }
    return CT_ALG_NONE;
}

struct ct_aead *ct_aead_new(enum ct_alg alg, const uint8_t *key, struct ct_err *err)
{
    const struct ct_backend *by[CT_OPS];
    if (ct_choose(alg, by, err)) {
        return NULL;
    }
    struct ct_aead *a = calloc(1, sizeof(*a));
    bool good = a != NULL;
    for (enum ct_op op = 0; good && op < CT_OPS; op++) {
        for (enum ct_op k = 0; by[op] && k < op && !a->by[op]; k++) {
            a->by[op] = by[k] == by[op] ? a->by[k] : NULL;
        }
        if (by[op] && !a->by[op]) {
            a->by[op] = by[op]->create(alg);
            good = a->by[op] != NULL;
        }
    }
    if (!good) {
        ct_err_set(err, CT_NOMEM, "no memory for a key of %s", ct_alg_name(alg));
    } else {
        a->alg = alg;
        if (ct_aead_rekey(a, key, err) == 0) {
            return a;
        }
    }
    ct_aead_free(a);
    return NULL;
}

/* Whether this operation's context was not met under an earlier one. */
static bool is_first(const struct ct_aead *a, enum ct_op op)
{
    for (enum ct_op k = 0; k < op; k++) {
        if (a->by[k] == a->by[op]) {
            return false;
        }
    }
    return a->by[op] != NULL;
}

int ct_aead_rekey(struct ct_aead *a, const uint8_t *key, struct ct_err *err)
{
    for (enum ct_op op = 0; op < CT_OPS; op++) {
        if (is_first(a, op) && a->by[op]->backend->set_key(a->by[op], key)) {
            return ct_err_set(err, CT_IO, "the cipher cannot be keyed");
        }
    }
    return 0;
}

void ct_aead_free(struct ct_aead *a)
{
    if (!a) {
        return;
    }
    for (enum ct_op op = CT_OPS; op-- > 0;) {
        if (is_first(a, op)) {
            a->by[op]->backend->destroy(a->by[op]);
        }
    }
    free(a);
}

enum ct_alg ct_aead_alg(const struct ct_aead *a)
{
    return a->alg;
}

static int opened(int r, uint8_t *out, size_t n, struct ct_err *err)
{
    if (r == 0) {
        return 0;
    }
    if (n) {
        memset(out, 0, n);
    }
    return r > 0 ? ct_err_set(err, CT_TAG, "tag does not match")
                 : ct_err_set(err, CT_IO, "decryption failed");
}

int ct_aead_open(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                 const uint8_t tag[static 16], uint8_t *out, struct ct_err *err)
{
    return opened(ct_open(a->by[CT_OP_OPEN], iv, 12, in, n, tag, out), out, n, err);
}

int ct_aead_open_read(struct ct_aead *a, const uint8_t iv[static 12], ct_aead_read_fn read,
                      void *ctx, size_t n, const uint8_t tag[static 16], uint8_t *out,
                      struct ct_err *err)
{
    struct ct_impl *i = a->by[CT_OP_OPEN];
    _Alignas(64) uint8_t part[PART];
    int r = i->backend->open_start(i, iv, 12);
    for (size_t done = 0; r == 0 && done < n; done += PART) {
        size_t m = n - done < PART ? n - done : PART;
        if (read(ctx, done, part, m, err)) {
            memset(out, 0, n);
            return -1;
        }
        r = i->backend->open_add(i, part, m, out + done);
    }
    return opened(r ? -1 : i->backend->open_finish(i, tag), out, n, err);
}

int ct_aead_encrypt(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                    uint8_t *out, uint8_t tag[static 16], struct ct_err *err)
{
    struct ct_impl *i = a->by[CT_OP_ENCRYPT];
    return i->backend->start(i, iv) || i->backend->update(i, in, n, out) ||
                   i->backend->finish(i, tag)
               ? ct_err_set(err, CT_IO, "encryption failed")
               : 0;
}
