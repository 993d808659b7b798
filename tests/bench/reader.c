/*
 * Reads a file in one of the ways that loaders do, and prints what it took as JSON.
 *
 *   reader pread|direct|mmap|blocks|slices|fault|first FILE [THREADS]
 *
 * pread: 1 MiB reads, each thread its own contiguous share; direct: the same with O_DIRECT. mmap:
 * one mapping, every byte touched, each thread its share; then once more through a new mapping
 * ("warm"). blocks: each thread takes every n-th block of 16 MiB by 1 MiB reads, as vLLM
 * prefetches. slices: each thread touches its part of every 8 MiB through a mapping, as parallel
 * ranks do. fault: 10,000 random 4 KiB faults (THREADS is ignored), latencies in microseconds.
 * first: open, the header, and one byte of the first tensor.
 *
 * "seconds" begin before open(); "cpu" is what this process used.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    STEP = 1 << 20,
    BLOCK = 16 << 20,
    STRETCH = 8 << 20,
    PAGE = 4096,
    FAULTS = 10000,
    THREADS_MAX = 64
};

struct share {
    int fd;
    bool direct;
    const uint8_t *map;
    uint64_t begin, end;
    uint64_t run, stride; /* so many bytes at the beginning of every so many */
    uint64_t sum;         /* so that no read can be left out */
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Where a share goes on. */
static uint64_t next(const struct share *s, uint64_t at)
{
    return (at - s->begin) % s->stride < s->run ? at : at - s->run + s->stride;
}

static void *by_pread(void *arg)
{
    struct share *s = arg;
    uint8_t *buf = aligned_alloc(PAGE, STEP);
    for (uint64_t at = s->begin; buf && at < s->end;) {
        uint64_t left = s->end - at;
        size_t want = left < STEP && !s->direct ? left : STEP; /* whole blocks, also at the end */
        ssize_t got = pread(s->fd, buf, want, (off_t)at);
        if (got <= 0) {
            die("pread");
        }
        s->sum += buf[0];
        at = next(s, at + (uint64_t)got);
    }
    free(buf);
    return NULL;
}

static void *by_mmap(void *arg)
{
    struct share *s = arg;
    uint64_t sum = 0;
    for (uint64_t from = s->begin; from < s->end; from = next(s, from + s->run)) {
        uint64_t to = s->end - from < s->run ? s->end : from + s->run;
        for (uint64_t at = from; at + 8 <= to; at += 8) {
            uint64_t word;
            memcpy(&word, s->map + at, sizeof(word));
            sum += word;
        }
        if (to == s->end) {
            break;
        }
    }
    s->sum += sum;
    return NULL;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static void faults(const uint8_t *map, uint64_t size)
{
    double *us = calloc(FAULTS, sizeof(*us));
    if (!us) {
        die("calloc");
    }
    uint64_t state = 88172645463325252U;
    uint64_t sum = 0;
    double total = 0;
    for (int i = 0; i < FAULTS; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        double t = now();
        sum += map[state % size / PAGE * PAGE];
        us[i] = (now() - t) * 1e6;
        total += us[i];
    }
    qsort(us, FAULTS, sizeof(*us), compare);
    printf("{\"mean\": %.2f, \"median\": %.2f, \"p99\": %.2f, \"sum\": %llu}\n", total / FAULTS,
           us[FAULTS / 2], us[(size_t)FAULTS / 100 * 99], (unsigned long long)sum);
    free(us);
}

static void first(const char *path)
{
    double t = now();
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        die(path);
    }
    uint64_t len = 0;
    uint8_t byte = 0;
    if (pread(fd, &len, sizeof(len), 0) != sizeof(len)) {
        die("pread");
    }
    uint8_t *header = malloc(len);
    if (!header || pread(fd, header, len, 8) != (ssize_t)len ||
        pread(fd, &byte, 1, (off_t)(8 + len)) != 1) {
        die("pread");
    }
    printf("{\"seconds\": %.6f, \"sum\": %d}\n", now() - t, byte);
    free(header);
    close(fd);
}

static double cpu(void)
{
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
}

static const uint8_t *map_file(int fd, uint64_t size)
{
    void *map = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) {
        die("mmap");
    }
    return map;
}

/* All of the file, by that many threads; a sum. */
static uint64_t read_all(const struct share *how, uint64_t size, unsigned threads)
{
    pthread_t ids[THREADS_MAX];
    struct share shares[THREADS_MAX];
    uint64_t sum = 0;
    for (unsigned i = 0; i < threads; i++) {
        shares[i] = *how;
        shares[i].begin = size / threads * i / STEP * STEP;
        shares[i].end = i + 1 == threads ? size : size / threads * (i + 1) / STEP * STEP;
        if (how->stride) {
            shares[i].begin = how->run * i;
            shares[i].end = size;
        } else {
            shares[i].run = shares[i].stride = UINT64_MAX;
        }
        if (pthread_create(&ids[i], NULL, how->map ? by_mmap : by_pread, &shares[i])) {
            die("pthread_create");
        }
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        sum += shares[i].sum;
    }
    return sum;
}

static void measure(const char *mode, const char *path, unsigned threads)
{
    double t = now();
    bool direct = strcmp(mode, "direct") == 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        die(path);
    }
    uint64_t size = (uint64_t)st.st_size;
    bool blocks = strcmp(mode, "blocks") == 0;
    bool mapped = !direct && !blocks && strcmp(mode, "pread") != 0;
    struct share how = {.fd = fd, .direct = direct, .map = mapped ? map_file(fd, size) : NULL};
    if (mapped && strcmp(mode, "fault") == 0) {
        faults(how.map, size);
        return;
    }
    if (blocks || strcmp(mode, "slices") == 0) {
        how.run = blocks ? BLOCK : STRETCH / threads / 8 * 8;
        how.stride = how.run * threads;
    }
    uint64_t sum = read_all(&how, size, threads);
    double seconds = now() - t;
    double used = cpu();
    double warm = 0;
    if (mapped) {
        munmap((void *)how.map, size);
        t = now();
        how.map = map_file(fd, size);
        sum += read_all(&how, size, threads);
        warm = now() - t;
    }
    printf("{\"seconds\": %.6f, \"warm\": %.6f, \"cpu\": %.6f, \"bytes\": %llu, "
           "\"sum\": %llu}\n",
           seconds, warm, used, (unsigned long long)size, (unsigned long long)sum);
}

int main(int argc, char **argv)
{
    static const char *const modes[] = {"pread",  "direct", "mmap", "blocks",
                                        "slices", "fault",  "first"};
    unsigned threads = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 1;
    bool known = false;
    for (size_t i = 0; argc > 2 && i < sizeof(modes) / sizeof(modes[0]); i++) {
        known |= strcmp(argv[1], modes[i]) == 0;
    }
    if (!known || threads < 1 || threads > THREADS_MAX) {
        (void)fprintf(stderr, "usage: reader pread|direct|mmap|blocks|slices|fault|first FILE "
                              "[THREADS]\n");
        return 2;
    }
    if (strcmp(argv[1], "first") == 0) {
        first(argv[2]);
    } else {
        measure(argv[1], argv[2], threads);
    }
    return 0;
}
