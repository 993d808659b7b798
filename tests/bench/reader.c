/*
 * Reads a file in one of the ways that loaders do, and prints what it took as JSON.
 *
 *   reader pread|mmap|fault|first FILE [THREADS]
 *
 * pread: 1 MiB reads, each thread its own contiguous share. mmap: one mapping, every page touched,
 * each thread its share. fault: 10,000 random 4 KiB faults (THREADS is ignored), latencies in
 * microseconds. first: open, the header, and one byte of the first tensor.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { STEP = 1 << 20, PAGE = 4096, FAULTS = 10000 };

struct share {
    int fd;
    const uint8_t *map;
    uint64_t begin, end;
    uint64_t sum; /* so that no read can be left out */
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

static void *by_pread(void *arg)
{
    struct share *s = arg;
    uint8_t *buf = malloc(STEP);
    for (uint64_t at = s->begin; buf && at < s->end;) {
        uint64_t left = s->end - at;
        ssize_t got = pread(s->fd, buf, left < STEP ? left : STEP, (off_t)at);
        if (got <= 0) {
            die("pread");
        }
        s->sum += buf[0];
        at += (uint64_t)got;
    }
    free(buf);
    return NULL;
}

static void *by_mmap(void *arg)
{
    struct share *s = arg;
    for (uint64_t at = s->begin; at < s->end; at += PAGE) {
        s->sum += s->map[at];
    }
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

int main(int argc, char **argv)
{
    if (argc < 3) {
        (void)fprintf(stderr, "usage: reader pread|mmap|fault|first FILE [THREADS]\n");
        return 2;
    }
    const char *mode = argv[1];
    if (strcmp(mode, "first") == 0) {
        first(argv[2]);
        return 0;
    }
    unsigned threads = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 1;
    if (threads < 1 || threads > 64) {
        return 2;
    }
    double t = now();
    int fd = open(argv[2], O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        die(argv[2]);
    }
    uint64_t size = (uint64_t)st.st_size;
    const uint8_t *map = NULL;
    if (strcmp(mode, "pread") != 0) {
        map = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            die("mmap");
        }
    }
    if (map && strcmp(mode, "fault") == 0) {
        faults(map, size);
        return 0;
    }
    pthread_t ids[64];
    struct share shares[64];
    for (unsigned i = 0; i < threads; i++) {
        shares[i] = (struct share){.fd = fd, .map = map};
        shares[i].begin = size / threads * i / STEP * STEP;
        shares[i].end = i + 1 == threads ? size : size / threads * (i + 1) / STEP * STEP;
        if (pthread_create(&ids[i], NULL, map ? by_mmap : by_pread, &shares[i])) {
            die("pthread_create");
        }
    }
    uint64_t sum = 0;
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        sum += shares[i].sum;
    }
    printf("{\"seconds\": %.6f, \"bytes\": %llu, \"sum\": %llu}\n", now() - t,
           (unsigned long long)size, (unsigned long long)sum);
    return 0;
}
