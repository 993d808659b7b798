/*
 * What kvfs is compared with: the same decryption inside one process, no mount.
 *
 *   own extents FILE KEYS [THREADS]   every extent through the format library into scratch buffers
 *   own evp FILE KEYS [THREADS]       OpenSSL alone on the same number of bytes: AES-256-GCM, 2 MiB
 *
 * Prints {"seconds", "bytes", "cpu"} as JSON; opening the file counts, reading the keys does not.
 */
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "format/model.h"

struct job {
    struct ct_model *model; /* NULL: OpenSSL alone */
    atomic_uint *next;
    uint32_t count;
    atomic_int *failed;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int evp_chunk(EVP_CIPHER_CTX *ctx, uint8_t *buf)
{
    static const uint8_t key[32] = {1};
    static const uint8_t iv[12] = {2};
    uint8_t tag[16] = {0};
    int n = 0;
    /* The tag is wrong, which costs the same as a right one. */
    return EVP_DecryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, key, iv) == 1 &&
           EVP_DecryptUpdate(ctx, buf, &n, buf, CT_EXTENT_MAX) == 1 &&
           EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, 16, tag) == 1 &&
           EVP_DecryptFinal_ex(ctx, buf + n, &n) <= 0;
}

static void *work(void *arg)
{
    struct job *j = arg;
    uint8_t *buf = malloc(CT_EXTENT_MAX);
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    for (;;) {
        uint32_t i = atomic_fetch_add(j->next, 1);
        if (!buf || !ctx || i >= j->count) {
            break;
        }
        if (j->model) {
            struct ct_damages damages = {0};
            struct ct_err err = CT_ERR_INIT;
            if (ct_model_read(j->model, i, buf, &damages, &err) || damages.count) {
                (void)fprintf(stderr, "own: %s\n", err.msg);
                atomic_store(j->failed, 1);
            }
            ct_damages_free(&damages);
        } else if (!evp_chunk(ctx, buf)) {
            atomic_store(j->failed, 1);
        }
    }
    EVP_CIPHER_CTX_free(ctx);
    free(buf);
    return NULL;
}

static struct ct_model *open_model(const char *path, struct ct_keyring *ring, struct ct_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct ct_open how = {.keys = ct_keyring_source(ring), .path = path};
    struct ct_model *model = NULL;
    if (fd < 0) {
        ct_err_set(err, CT_IO, "%s cannot be opened", path);
        return NULL;
    }
    how.source = ct_source_fd(fd, err);
    if (!how.source || how.source->ops->version(how.source, &how.version, err) ||
        ct_model_open(&how, &model, err)) {
        return NULL;
    }
    return model;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        (void)fprintf(stderr, "usage: own extents|evp FILE KEYS [THREADS]\n");
        return 2;
    }
    unsigned threads = argc > 4 ? (unsigned)strtoul(argv[4], NULL, 10) : 1;
    struct ct_err err = CT_ERR_INIT;
    ct_autobuf keys = {0};
    if (threads < 1 || threads > 64 || ct_secret_init(&err) ||
        ct_read_file(AT_FDCWD, argv[3], 1 << 20, &keys, &err)) {
        (void)fprintf(stderr, "own: %s\n", err.msg);
        return 1;
    }
    struct ct_keyring *ring = ct_keyring_new(&err);
    if (!ring || ct_keyring_add(ring, keys.data, keys.len, argv[3], &err)) {
        (void)fprintf(stderr, "own: %s\n", err.msg);
        return 1;
    }
    double t = now();
    struct ct_model *model = open_model(argv[2], ring, &err);
    if (!model) {
        (void)fprintf(stderr, "own: %s\n", err.msg);
        return 1;
    }
    uint64_t bytes = ct_model_body_len(model);
    bool evp = strcmp(argv[1], "evp") == 0;
    atomic_uint next = 0;
    atomic_int failed = 0;
    struct job job = {evp ? NULL : model, &next,
                      evp ? (uint32_t)(bytes / CT_EXTENT_MAX) : ct_model_extent_count(model),
                      &failed};
    pthread_t ids[64];
    for (unsigned i = 0; i < threads; i++) {
        if (pthread_create(&ids[i], NULL, work, &job)) {
            return 1;
        }
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
    }
    double seconds = now() - t;
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    printf("{\"seconds\": %.6f, \"bytes\": %llu, \"cpu\": %.6f}\n", seconds,
           (unsigned long long)bytes,
           (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
               (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6);
    ct_model_unref(model);
    ct_keyring_free(ring);
    return atomic_load(&failed);
}
