#include "keyserver/crypto/seal.h"

#include <fcntl.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <string.h>

#include "keyserver/crypto/newfile.h"

enum { KEYS_MAX = 8, KEY_LEN = 32, IV_LEN = 12, TAG_LEN = 16, FILE_MAX = 16384, FORM = 1 };
enum { HEAD = 1 + KS_SEALKEY_ID + IV_LEN };

struct ks_seal {
    pthread_mutex_t lock; /* guards all but the path */
    char *path;
    struct ct_version read; /* the file that was read last */
    size_t count;
    char ids[KEYS_MAX][KS_SEALKEY_ID + 1];
    struct ct_secret *keys; /* KEYS_MAX * KEY_LEN */
};

/* ---- the key file ---- */

static int make_key(char id[static KS_SEALKEY_ID + 1], uint8_t *key, struct ct_err *err)
{
    uint8_t random[KS_SEALKEY_ID / 2];
    if (RAND_bytes(random, sizeof(random)) != 1 || RAND_priv_bytes(key, KEY_LEN) != 1) {
        return ct_err_set(err, CT_IO, "no random numbers");
    }
    ct_hex(id, random, sizeof(random));
    return 0;
}

static int write_file(const char *path, char (*ids)[KS_SEALKEY_ID + 1], size_t count,
                      const struct ct_secret *keys, bool replace, struct ct_err *err)
{
    ct_autobuf text = {0};
    for (size_t i = 0; i < count; i++) {
        ct_buf_puts(&text, i ? ",\n" : "{\"keys\":[\n");
        ct_buf_printf(&text, "{\"kty\":\"oct\",\"alg\":\"A256GCM\",\"kid\":\"%s\",\"k\":\"",
                      ids[i]);
        ct_base64url_put(&text, ct_secret_peek(keys) + i * KEY_LEN, KEY_LEN);
        ct_buf_puts(&text, "\"}");
    }
    ct_buf_puts(&text, "\n]}\n");
    return ct_buf_ok(&text, err) ||
                   ks_write_file(path, S_IRUSR | S_IWUSR, replace, text.data, text.len, err)
               ? -1
               : 0;
}

int ks_seal_create(const char *path, struct ct_err *err)
{
    char ids[1][KS_SEALKEY_ID + 1];
    ct_autosecret keys = ct_secret_new(KEY_LEN, err);
    if (!keys || make_key(ids[0], ct_secret_bytes(keys), err)) {
        return -1;
    }
    return write_file(path, ids, 1, keys, false, err);
}

static int take_key(struct ks_seal *s, const json_t *jwk, struct ct_err *err)
{
    const char *kid = json_string_value(json_object_get(jwk, "kid"));
    const char *k = json_string_value(json_object_get(jwk, "k"));
    uint8_t *to = ct_secret_bytes(s->keys) + s->count * KEY_LEN;
    if (!kid || !k || strlen(kid) != KS_SEALKEY_ID || s->count == KEYS_MAX ||
        ct_base64_decode(k, strlen(k), to, KEY_LEN) != KEY_LEN) {
        return ct_err_set(err, CT_MALFORMED, "not a set of at most %d A256GCM keys", KEYS_MAX);
    }
    memcpy(s->ids[s->count++], kid, KS_SEALKEY_ID + 1);
    return 0;
}

static void version_now(const struct ks_seal *s, struct ct_version *v)
{
    struct stat st;
    *v = (struct ct_version){0};
    if (stat(s->path, &st) == 0) {
        ct_version_of(&st, v);
    }
}

static int read_file(struct ks_seal *s, struct ct_err *err)
{
    ct_autobuf text = {0};
    version_now(s, &s->read);
    if (ct_read_file(AT_FDCWD, s->path, FILE_MAX, &text, err)) {
        return -1;
    }
    json_t *set = json_loadb((char *)text.data, text.len, JSON_REJECT_DUPLICATES, NULL);
    const json_t *keys = json_object_get(set, "keys");
    size_t i = 0;
    const json_t *jwk = NULL;
    int r = 0;
    s->count = 0;
    json_array_foreach(keys, i, jwk)
    {
        r = r ? r : take_key(s, jwk, err);
    }
    json_decref(set);
    if (r == 0 && s->count == 0) {
        r = ct_err_set(err, CT_MALFORMED, "no key in it");
    }
    return r ? ct_err_wrap(err, "%s", s->path) : 0;
}

int ks_seal_open(const char *path, struct ks_seal **out, struct ct_err *err)
{
    struct ks_seal *s = calloc(1, sizeof(*s));
    *out = NULL;
    if (!s) {
        return ct_err_set(err, CT_NOMEM, "no memory for keys");
    }
    pthread_mutex_init(&s->lock, NULL);
    s->path = strdup(path);
    s->keys = ct_secret_new((size_t)KEYS_MAX * KEY_LEN, err);
    if (!s->path || !s->keys || read_file(s, err)) {
        ks_seal_free(s);
        return -1;
    }
    *out = s;
    return 0;
}

void ks_seal_free(struct ks_seal *s)
{
    if (s) {
        ct_secret_free(s->keys);
        pthread_mutex_destroy(&s->lock);
        free(s->path);
        free(s);
    }
}

static int add_locked(struct ks_seal *s, struct ct_err *err)
{
    if (s->count == KEYS_MAX) {
        return ct_err_set(err, CT_USAGE, "the file holds %d keys already", KEYS_MAX);
    }
    if (make_key(s->ids[s->count], ct_secret_bytes(s->keys) + s->count * KEY_LEN, err)) {
        return -1;
    }
    s->count++;
    return write_file(s->path, s->ids, s->count, s->keys, true, err);
}

int ks_seal_add(struct ks_seal *s, struct ct_err *err)
{
    pthread_mutex_lock(&s->lock);
    int r = add_locked(s, err);
    pthread_mutex_unlock(&s->lock);
    return r;
}

static int use_locked(struct ks_seal *s, struct ct_err *err)
{
    char id[KS_SEALKEY_ID + 1];
    uint8_t key[KEY_LEN];
    uint8_t *keys = ct_secret_bytes(s->keys);
    const size_t last = s->count - 1;
    memcpy(id, s->ids[last], sizeof(id));
    memcpy(key, keys + last * KEY_LEN, KEY_LEN);
    memmove(keys + KEY_LEN, keys, last * KEY_LEN);
    memmove(s->ids[1], s->ids[0], last * sizeof(s->ids[0]));
    memcpy(keys, key, KEY_LEN);
    memcpy(s->ids[0], id, sizeof(id));
    ct_wipe(key, sizeof(key));
    return write_file(s->path, s->ids, s->count, s->keys, true, err);
}

int ks_seal_use(struct ks_seal *s, struct ct_err *err)
{
    pthread_mutex_lock(&s->lock);
    int r = use_locked(s, err);
    pthread_mutex_unlock(&s->lock);
    return r;
}

int ks_seal_drop_old(struct ks_seal *s, struct ct_err *err)
{
    pthread_mutex_lock(&s->lock);
    s->count = 1;
    int r = write_file(s->path, s->ids, s->count, s->keys, true, err);
    pthread_mutex_unlock(&s->lock);
    return r;
}

/* ---- sealing ---- */

static void put_text(struct ct_buf *b, const char *text)
{
    uint8_t n[4];
    ct_put_be32(n, (uint32_t)strlen(text));
    ct_buf_put(b, n, sizeof(n));
    ct_buf_puts(b, text);
}

static void put_place(struct ct_buf *b, const struct ks_place *at)
{
    uint8_t generation[8];
    ct_put_le64(generation, (uint64_t)at->generation);
    put_text(b, "kvfs-sealed-v1");
    put_text(b, at->table);
    put_text(b, at->row);
    put_text(b, at->column);
    put_text(b, at->owner);
    ct_buf_put(b, generation, sizeof(generation));
}

/* Either direction; `in` and `out` have n bytes. */
static bool gcm(bool encrypt, const uint8_t *key, const uint8_t *iv, const struct ct_buf *aad,
                const uint8_t *in, size_t n, uint8_t *out, uint8_t *tag)
{
    int len = 0;
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    bool good = c && EVP_CipherInit_ex(c, EVP_aes_256_gcm(), NULL, key, iv, encrypt) == 1 &&
                (encrypt || EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_SET_TAG, TAG_LEN, tag) == 1) &&
                EVP_CipherUpdate(c, NULL, &len, aad->data, (int)aad->len) == 1 &&
                EVP_CipherUpdate(c, out, &len, in, (int)n) == 1 &&
                EVP_CipherFinal_ex(c, out + len, &len) == 1 &&
                (!encrypt || EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_GET_TAG, TAG_LEN, tag) == 1);
    EVP_CIPHER_CTX_free(c);
    return good;
}

/* Nothing is sealed with a key that is being rotated out. */
static int refresh(struct ks_seal *s, struct ct_err *err)
{
    struct ct_version now;
    version_now(s, &now);
    return ct_version_same(&now, &s->read) || now.ino == 0 ? 0 : read_file(s, err);
}

int ks_seal(struct ks_seal *s, const struct ks_place *at, const struct ct_secret *secret,
            struct ct_buf *out, struct ct_err *err)
{
    const size_t n = ct_secret_len(secret);
    ct_autobuf aad = {0};
    put_place(&aad, at);
    uint8_t *to = ct_buf_reserve(out, HEAD + n + TAG_LEN);
    if (!to || n > (1 << 20) || ct_buf_ok(&aad, err)) {
        return ct_err_set(err, CT_NOMEM, "no memory for a secret");
    }
    to[0] = FORM;
    uint8_t *iv = to + 1 + KS_SEALKEY_ID;
    if (RAND_bytes(iv, IV_LEN) != 1) {
        return ct_err_set(err, CT_IO, "no random numbers");
    }
    pthread_mutex_lock(&s->lock);
    if (refresh(s, err)) {
        pthread_mutex_unlock(&s->lock);
        return -1;
    }
    memcpy(to + 1, s->ids[0], KS_SEALKEY_ID);
    bool good = gcm(true, ct_secret_peek(s->keys), iv, &aad, ct_secret_peek(secret), n, to + HEAD,
                    to + HEAD + n);
    pthread_mutex_unlock(&s->lock);
    if (!good) {
        return ct_err_set(err, CT_IO, "a secret could not be sealed");
    }
    out->len += HEAD + n + TAG_LEN;
    return 0;
}

static ssize_t find(struct ks_seal *s, const uint8_t *id)
{
    for (size_t i = 0; i < s->count; i++) {
        if (memcmp(s->ids[i], id, KS_SEALKEY_ID) == 0) {
            return (ssize_t)i;
        }
    }
    return -1;
}

/* Another process may have rotated the key: a key that is not known is looked for in the file. */
static int find_or_read(struct ks_seal *s, const uint8_t *id, size_t *at, struct ct_err *err)
{
    ssize_t i = find(s, id);
    if (i < 0) {
        if (read_file(s, err)) {
            return -1;
        }
        i = find(s, id);
    }
    *at = (size_t)i;
    return i >= 0 ? 0
                  : ct_err_set(err, CT_NOKEY, "a secret is sealed with a key that is not there");
}

int ks_unseal(struct ks_seal *s, const struct ks_place *at, const uint8_t *sealed, size_t n,
              struct ct_secret **out, struct ct_err *err)
{
    ct_autobuf aad = {0};
    size_t i = 0;
    put_place(&aad, at);
    *out = NULL;
    if (n < HEAD + TAG_LEN || n > (1 << 20) || sealed[0] != FORM || ct_buf_ok(&aad, err)) {
        return ct_err_set(err, CT_REJECTED, "%s.%s: not a sealed secret", at->table, at->column);
    }
    const size_t len = n - HEAD - TAG_LEN;
    struct ct_secret *secret = ct_secret_new(len, err);
    if (!secret) {
        return -1;
    }
    uint8_t tag[TAG_LEN];
    memcpy(tag, sealed + HEAD + len, TAG_LEN);
    pthread_mutex_lock(&s->lock);
    int r = find_or_read(s, sealed + 1, &i, err);
    if (r == 0 && !gcm(false, ct_secret_peek(s->keys) + i * KEY_LEN, sealed + 1 + KS_SEALKEY_ID,
                       &aad, sealed + HEAD, len, ct_secret_bytes(secret), tag)) {
        r = ct_err_set(err, CT_REJECTED, "%s.%s: the secret does not open here", at->table,
                       at->column);
    }
    pthread_mutex_unlock(&s->lock);
    if (r) {
        ct_secret_free(secret);
        return -1;
    }
    *out = secret;
    return 0;
}
