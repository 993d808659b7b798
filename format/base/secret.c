#include "format/base/secret.h"

#include <jansson.h>
#include <malloc.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

struct ct_secret {
    size_t len;
    uint8_t *bytes; /* sodium_malloc */
    int kept;       /* under list_lock */
    struct ct_secret *prev, *next;
};

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct ct_secret *list;
static size_t total;

void *ct_wiping_malloc(size_t n)
{
    return malloc(n);
}

void ct_wiping_free(void *p)
{
    if (p) {
        sodium_memzero(p, malloc_usable_size(p));
        free(p);
    }
}

void *ct_wiping_realloc(void *p, size_t n)
{
    if (!p) {
        return malloc(n);
    }
    if (n == 0) {
        ct_wiping_free(p);
        return NULL;
    }
    size_t have = malloc_usable_size(p);
    if (n <= have && n > have / 2) {
        return p;
    }
    void *q = malloc(n);
    if (q) {
        memcpy(q, p, have < n ? have : n);
        ct_wiping_free(p);
    }
    return q;
}

static void *ossl_malloc(size_t n, const char *file, int line)
{
    (void)file;
    (void)line;
    return ct_wiping_malloc(n);
}

static void *ossl_realloc(void *p, size_t n, const char *file, int line)
{
    (void)file;
    (void)line;
    return ct_wiping_realloc(p, n);
}

static void ossl_free(void *p, const char *file, int line)
{
    (void)file;
    (void)line;
    ct_wiping_free(p);
}

/* OpenSSL takes an allocator only before its first allocation, which another library's start-up
 * code may make (libjose's does): hence before those of all libraries, which only an executable
 * can. */
static int openssl_wipes;
static void make_openssl_wipe(void)
{
    openssl_wipes = CRYPTO_set_mem_functions(ossl_malloc, ossl_realloc, ossl_free);
}
__attribute__((section(".preinit_array"),
               used)) static void (*const before_all)(void) = make_openssl_wipe;

int ct_secret_init(struct ct_err *err)
{
    static int done;
    if (done) {
        return 0;
    }
    if (!openssl_wipes) {
        return ct_err_set(err, CT_USAGE, "OpenSSL was used before it could be made to wipe");
    }
    json_set_alloc_funcs(ct_wiping_malloc, ct_wiping_free);
    json_object_seed(0);
    if (sodium_init() < 0) {
        return ct_err_set(err, CT_IO, "libsodium could not be initialised");
    }
    done = 1;
    return 0;
}

struct ct_secret *ct_secret_new(size_t len, struct ct_err *err)
{
    struct ct_secret *s = calloc(1, sizeof(*s));
    if (s) {
        s->bytes = sodium_malloc(len ? len : 1);
    }
    if (!s || !s->bytes) {
        free(s);
        ct_err_set(err, CT_NOMEM, "no memory for %zu bytes of keys", len);
        return NULL;
    }
    s->len = len;
    memset(s->bytes, 0, len ? len : 1);
    pthread_mutex_lock(&list_lock);
    s->next = list;
    if (list) {
        list->prev = s;
    }
    list = s;
    total += len;
    pthread_mutex_unlock(&list_lock);
    return s;
}

struct ct_secret *ct_secret_from(const void *bytes, size_t len, struct ct_err *err)
{
    struct ct_secret *s = ct_secret_new(len, err);
    if (s && len) {
        memcpy(s->bytes, bytes, len);
    }
    return s;
}

uint8_t *ct_secret_bytes(struct ct_secret *s)
{
    return s->bytes;
}

const uint8_t *ct_secret_peek(const struct ct_secret *s)
{
    return s->bytes;
}

size_t ct_secret_len(const struct ct_secret *s)
{
    return s->len;
}

void ct_secret_free(struct ct_secret *s)
{
    if (!s) {
        return;
    }
    pthread_mutex_lock(&list_lock);
    if (s->prev) {
        s->prev->next = s->next;
    } else {
        list = s->next;
    }
    if (s->next) {
        s->next->prev = s->prev;
    }
    total -= s->len;
    pthread_mutex_unlock(&list_lock);
    sodium_free(s->bytes); /* wipes */
    free(s);
}

void ct_secret_wipe_all(void)
{
    pthread_mutex_lock(&list_lock);
    for (struct ct_secret *s = list; s; s = s->next) {
        if (!s->kept) {
            sodium_memzero(s->bytes, s->len);
        }
    }
    pthread_mutex_unlock(&list_lock);
}

void ct_secret_keep(struct ct_secret *s)
{
    pthread_mutex_lock(&list_lock);
    s->kept = 1;
    pthread_mutex_unlock(&list_lock);
}

size_t ct_secret_total(void)
{
    pthread_mutex_lock(&list_lock);
    size_t n = total;
    pthread_mutex_unlock(&list_lock);
    return n;
}

void ct_wipe(void *p, size_t len)
{
    sodium_memzero(p, len);
}
