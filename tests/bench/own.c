/*
 * What kvfs is compared with: the same decryption inside one process, no mount.
 *
 *   own extents FILE KEYS [THREADS]   every extent through the format library into scratch buffers
 *
 * or less than that: the same number of bytes, read only
 *
 *   own read FILE KEYS [THREADS]      by pread into a buffer that stays in a core's cache
 *
 * or not read at all: again and again the same 2 MiB, AES-256-GCM
 *
 *   own open FILE KEYS [THREADS]      decrypted by the backend that kvfs takes
 *   own encrypt FILE KEYS [THREADS]   encrypted by it
 *   own evp FILE KEYS [THREADS]       decrypted by OpenSSL
 *
 * Prints {"seconds", "bytes", "cpu"} as JSON; opening the file counts, reading the keys and trying
 * out the ciphers does not (a mount has done both before).
 */
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "format/aead/sum.h"
#include "format/model.h"

struct scratch {
    uint8_t *buf;
    struct ct_aead *aead;
    EVP_CIPHER_CTX *evp;
};

struct job {
    bool (*step)(const struct job *j, struct scratch *s, uint32_t i);
    struct ct_model *model;
    int fd;
    uint32_t count;
    atomic_uint next;
    atomic_int failed;
};

enum { THREADS_MAX = 64 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static const uint8_t key[32] = {1};
static const uint8_t iv[12] = {2};

static bool step_extents(const struct job *j, struct scratch *s, uint32_t i)
{
    struct ct_damages damages = {0};
    struct ct_err err = CT_ERR_INIT;
    bool good = ct_model_read(j->model, i, s->buf, &damages, &err) == 0 && damages.count == 0;
    if (!good) {
        (void)fprintf(stderr, "own: extent %u: %s\n", i, err.msg);
    }
    ct_damages_free(&damages);
    return good;
}

/* As much at a time as is read to check a tag. */
static bool step_read(const struct job *j, struct scratch *s, uint32_t i)
{
    off_t at = (off_t)i * CT_EXTENT_MAX;
    for (off_t end = at + CT_EXTENT_MAX; at < end; at += CT_SUM_PART) {
        if (pread(j->fd, s->buf, CT_SUM_PART, at) != CT_SUM_PART) {
            return false;
        }
    }
    return true;
}

/* Here and below the tag is wrong, which costs the same as a right one. */
static bool step_open(const struct job *j, struct scratch *s, uint32_t i)
{
    static const uint8_t tag[16] = {0};
    (void)j;
    (void)i;
    return ct_aead_open(s->aead, iv, s->buf, CT_EXTENT_MAX, tag, s->buf, NULL) != 0;
}

static bool step_encrypt(const struct job *j, struct scratch *s, uint32_t i)
{
    uint8_t tag[16];
    (void)j;
    (void)i;
    return ct_aead_encrypt(s->aead, iv, s->buf, CT_EXTENT_MAX, s->buf, tag, NULL) == 0;
}

static bool step_evp(const struct job *j, struct scratch *s, uint32_t i)
{
    uint8_t tag[16] = {0};
    int n = 0;
    (void)j;
    (void)i;
    return EVP_DecryptInit_ex(s->evp, EVP_aes_256_gcm(), NULL, key, iv) == 1 &&
           EVP_DecryptUpdate(s->evp, s->buf, &n, s->buf, CT_EXTENT_MAX) == 1 &&
           EVP_CIPHER_CTX_ctrl(s->evp, EVP_CTRL_AEAD_SET_TAG, 16, tag) == 1 &&
           EVP_DecryptFinal_ex(s->evp, s->buf + n, &n) <= 0;
}

static const struct mode {
    const char *name;
    bool (*step)(const struct job *j, struct scratch *s, uint32_t i);
} modes[] = {{"extents", step_extents}, {"read", step_read}, {"open", step_open},
             {"encrypt", step_encrypt}, {"evp", step_evp},   {NULL, NULL}};

static void *work(void *arg)
{
    struct job *j = arg;
    struct scratch s = {malloc(CT_EXTENT_MAX), ct_aead_new(CT_ALG_AES256GCM, key, NULL),
                        EVP_CIPHER_CTX_new()};
    bool good = s.buf && s.aead && s.evp;
    for (uint32_t i = 0; good && (i = atomic_fetch_add(&j->next, 1)) < j->count;) {
        good = j->step(j, &s, i);
    }
    if (!good) {
        atomic_store(&j->failed, 1);
    }
    EVP_CIPHER_CTX_free(s.evp);
    ct_aead_free(s.aead);
    free(s.buf);
    return NULL;
}

/* Takes the descriptor. */
static struct ct_model *open_model(int fd, const char *path, struct ct_keyring *ring,
                                   struct ct_err *err)
{
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

static void report(double seconds, uint64_t bytes)
{
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    printf("{\"seconds\": %.6f, \"bytes\": %llu, \"cpu\": %.6f}\n", seconds,
           (unsigned long long)bytes,
           (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
               (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6);
}

static int run(struct job *j, unsigned threads)
{
    pthread_t ids[THREADS_MAX];
    for (unsigned i = 0; i < threads; i++) {
        if (pthread_create(&ids[i], NULL, work, j)) {
            return -1;
        }
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
    }
    return atomic_load(&j->failed) ? -1 : 0;
}

static struct ct_keyring *read_keys(const char *path, struct ct_err *err)
{
    ct_autobuf keys = {0};
    if (ct_secret_init(err) || ct_aead_prepare(err) ||
        ct_read_file(AT_FDCWD, path, 1 << 20, &keys, err)) {
        return NULL;
    }
    struct ct_keyring *ring = ct_keyring_new(err);
    if (ring && ct_keyring_add(ring, keys.data, keys.len, path, err)) {
        ct_keyring_free(ring);
        return NULL;
    }
    return ring;
}

int main(int argc, char **argv)
{
    unsigned threads = argc > 4 ? (unsigned)strtoul(argv[4], NULL, 10) : 1;
    const struct mode *mode = modes;
    while (argc > 3 && mode->name && strcmp(mode->name, argv[1]) != 0) {
        mode++;
    }
    if (argc < 4 || !mode->name || threads < 1 || threads > THREADS_MAX) {
        (void)fprintf(stderr, "usage: own extents|read|open|encrypt|evp FILE KEYS [THREADS]\n");
        return 2;
    }
    struct ct_err err = CT_ERR_INIT;
    struct ct_keyring *ring = read_keys(argv[3], &err);
    double t = now();
    int fd = open(argv[2], O_RDONLY | O_CLOEXEC);
    struct ct_model *model = ring ? open_model(fd, argv[2], ring, &err) : NULL;
    if (!model) {
        (void)fprintf(stderr, "own: %s\n", err.msg);
        return 1;
    }
    uint64_t bytes = ct_model_body_len(model);
    struct job job = {
        .step = mode->step, .model = model, .fd = fd, .count = ct_model_extent_count(model)};
    if (mode->step != step_extents) {
        job.count = (uint32_t)(bytes / CT_EXTENT_MAX);
        bytes = (uint64_t)job.count * CT_EXTENT_MAX;
    }
    int failed = run(&job, threads);
    report(now() - t, bytes);
    ct_model_unref(model);
    ct_keyring_free(ring);
    return failed ? 1 : 0;
}
