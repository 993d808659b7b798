#include "kvfs/mount/limits.h"

#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define CGROUPS "/sys/fs/cgroup"

/* Beside the slots: keys, headers, stacks. A page a secret; kvfs/serve/slots.c leaves them all of
 * a limit as low as that. */
static const uint64_t lock_margin = 64 << 20;
static const uint64_t lock_keys = 1 << 20;

/* Where the files of a controller may lie, and whether that is cgroup 2. */
static const struct {
    const char *base;
    bool v2;
} bases[] = {{CGROUPS, true},
             {CGROUPS "/unified", true},
             {CGROUPS "/memory", false},
             {CGROUPS "/cpu", false},
             {CGROUPS "/cpu,cpuacct", false}};

/* The first two numbers of a file; `max` reads as UINT64_MAX. How many there were. */
static int read_numbers(const char *path, uint64_t out[static 2])
{
    char text[128];
    FILE *f = fopen(path, "re");
    if (!f) {
        return 0;
    }
    char *line = fgets(text, sizeof(text), f);
    (void)fclose(f);
    int n = 0;
    char *save = NULL;
    for (char *word = line ? strtok_r(line, " \n", &save) : NULL; word && n < 2;
         word = strtok_r(NULL, " \n", &save), n++) {
        out[n] = strcmp(word, "max") == 0 ? UINT64_MAX
                 : *word == '-'           ? UINT64_MAX
                                          : strtoull(word, NULL, 10);
    }
    return n;
}

/* Whether a list of controllers ("cpu,cpuacct") has this one. */
static bool has_word(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = list; p; p = strchr(p, ',')) {
        p += *p == ',';
        if (strncmp(p, word, n) == 0 && (p[n] == ',' || p[n] == '\0')) {
            return true;
        }
    }
    return false;
}

/* This process's cgroup for a controller of version 1, or of version 2 (controller NULL). */
static bool own_group(const char *root, const char *controller, char path[static PATH_MAX])
{
    char line[PATH_MAX];
    (void)snprintf(line, sizeof(line), "%s/proc/self/cgroup", root);
    FILE *f = fopen(line, "re");
    bool found = false;
    while (f && !found && fgets(line, sizeof(line), f)) {
        line[strcspn(line, "\n")] = '\0';
        char *list = strchr(line, ':');
        char *group = list ? strchr(list + 1, ':') : NULL;
        if (!group) {
            continue;
        }
        list++;
        *group++ = '\0';
        found = controller ? has_word(list, controller) : *list == '\0';
        if (found) {
            (void)snprintf(path, PATH_MAX, "%s", group);
        }
    }
    if (f) {
        (void)fclose(f);
    }
    return found;
}

typedef void (*visit_fn)(const char *dir, bool v2, uint64_t *least);

/* Visits this process's group and all above it. In a container the path of /proc/self/cgroup may
 * not exist: then the top, which is the container's own group there. */
static uint64_t least_of(const char *root, const char *controller, visit_fn visit)
{
    uint64_t least = UINT64_MAX;
    for (size_t i = 0; i < sizeof(bases) / sizeof(bases[0]); i++) {
        char group[PATH_MAX];
        if (!own_group(root, bases[i].v2 ? NULL : controller, group)) {
            continue;
        }
        for (;;) {
            char dir[2 * PATH_MAX];
            char *slash = strrchr(group, '/');
            (void)snprintf(dir, sizeof(dir), "%s%s%s", root, bases[i].base,
                           strcmp(group, "/") == 0 ? "" : group);
            visit(dir, bases[i].v2, &least);
            if (!slash || group[0] == '\0') {
                break;
            }
            *slash = '\0';
        }
    }
    return least;
}

static void visit_memory(const char *dir, bool v2, uint64_t *least)
{
    char path[2 * PATH_MAX + 64];
    uint64_t v[2];
    (void)snprintf(path, sizeof(path), "%s/%s", dir, v2 ? "memory.max" : "memory.limit_in_bytes");
    if (read_numbers(path, v) > 0 && v[0] < *least) {
        *least = v[0];
    }
}

/* The value of a line "NAME value" or "NAME: value kB", 0 if there is none. */
static uint64_t read_field(const char *path, const char *name)
{
    char line[256];
    uint64_t value = 0;
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f)) {
        size_t n = strlen(name);
        if (strncmp(line, name, n) == 0 && (line[n] == ' ' || line[n] == ':')) {
            value = strtoull(line + n + 1, NULL, 10) * (strstr(line, " kB") ? 1024 : 1);
            break;
        }
    }
    if (f) {
        (void)fclose(f);
    }
    return value;
}

/* Cached file pages count as in use, though they could be dropped. */
static void visit_available(const char *dir, bool v2, uint64_t *least)
{
    char path[2 * PATH_MAX + 64];
    uint64_t limit[2];
    uint64_t used[2];
    (void)snprintf(path, sizeof(path), "%s/%s", dir, v2 ? "memory.max" : "memory.limit_in_bytes");
    if (read_numbers(path, limit) == 0 || limit[0] == UINT64_MAX) {
        return;
    }
    (void)snprintf(path, sizeof(path), "%s/%s", dir,
                   v2 ? "memory.current" : "memory.usage_in_bytes");
    if (read_numbers(path, used) == 0) {
        return;
    }
    (void)snprintf(path, sizeof(path), "%s/memory.stat", dir);
    uint64_t cached = read_field(path, v2 ? "inactive_file" : "total_inactive_file");
    uint64_t kept = used[0] > cached ? used[0] - cached : 0;
    uint64_t left = limit[0] > kept ? limit[0] - kept : 0;
    *least = left < *least ? left : *least;
}

/* Whole processors, rounded up. */
static void visit_cpu(const char *dir, bool v2, uint64_t *least)
{
    char path[2 * PATH_MAX + 64];
    uint64_t v[2] = {UINT64_MAX, 0};
    uint64_t second[2];
    (void)snprintf(path, sizeof(path), "%s/%s", dir, v2 ? "cpu.max" : "cpu.cfs_quota_us");
    int n = read_numbers(path, v);
    if (!v2 && n == 1) {
        (void)snprintf(path, sizeof(path), "%s/cpu.cfs_period_us", dir);
        n += read_numbers(path, second) > 0;
        v[1] = second[0];
    }
    if (n == 2 && v[0] != UINT64_MAX && v[1] > 0 && (v[0] + v[1] - 1) / v[1] < *least) {
        *least = (v[0] + v[1] - 1) / v[1];
    }
}

uint64_t kvfs_auto_memory(const char *root)
{
    uint64_t limit = least_of(root, "memory", visit_memory);
    uint64_t all = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t share = (limit < all ? limit : all) / 8;
    return share < KVFS_MEMORY_LEAST  ? KVFS_MEMORY_LEAST
           : share > KVFS_MEMORY_MOST ? KVFS_MEMORY_MOST
                                      : share;
}

uint64_t kvfs_available_memory(const char *root)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    uint64_t machine = read_field(path, "MemAvailable");
    uint64_t group = least_of(root, "memory", visit_available);
    return group < machine ? group : machine;
}

uint32_t kvfs_auto_threads(const char *root)
{
    cpu_set_t set;
    uint64_t count = sched_getaffinity(0, sizeof(set), &set) == 0
                         ? (uint64_t)CPU_COUNT(&set)
                         : (uint64_t)sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t quota = least_of(root, "cpu", visit_cpu);
    if (quota < count) {
        count = quota;
    }
    return count > 0 ? (uint32_t)count : 1;
}

struct kvfs_locks kvfs_raise_limits(uint64_t memory)
{
    struct rlimit r;
    rlim_t want = memory + lock_margin;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0) {
        r.rlim_cur = r.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &r);
    }
    const struct rlimit more = {want, want};
    if (getrlimit(RLIMIT_MEMLOCK, &r) == 0 &&
        (geteuid() != 0 || r.rlim_max >= want || setrlimit(RLIMIT_MEMLOCK, &more))) {
        r.rlim_cur = r.rlim_max;
        (void)setrlimit(RLIMIT_MEMLOCK, &r);
    }
    return (struct kvfs_locks){.keys = lock_keys, .all = want};
}
