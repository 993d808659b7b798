/* What a mount may take, from the files of cgroup 2, cgroup 1 and both at once, laid out as the
 * kernel does (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst; sched-bwc.rst). */
#include <criterion/criterion.h>
#include <ftw.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kvfs/mount/limits.h"

#define MIB (UINT64_C(1) << 20)
#define GROUP "/sys/fs/cgroup"

static char root[] = "/tmp/kvfs-limits.XXXXXX";

/* A file beneath the root, and the directories that it lies in. */
static void put(const char *path, const char *text)
{
    char full[PATH_MAX];
    (void)snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); *p++ = '/') {
        *p = '\0';
        (void)mkdir(full, 0700);
    }
    FILE *f = fopen(full, "we");
    cr_assert(f && fputs(text, f) >= 0 && fclose(f) == 0, "%s", full);
}

static void make(void)
{
    cr_assert(mkdtemp(root));
    put("/proc/meminfo", "MemTotal:       1048576000 kB\nMemAvailable:   104857600 kB\n");
}

static int drop(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st;
    (void)type;
    (void)at;
    return remove(path);
}

static void clear(void)
{
    (void)nftw(root, drop, 16, FTW_DEPTH | FTW_PHYS);
}

TestSuite(limits, .init = make, .fini = clear);

static uint32_t processors(void)
{
    cpu_set_t set;
    cr_assert_eq(sched_getaffinity(0, sizeof(set), &set), 0);
    return (uint32_t)CPU_COUNT(&set);
}

Test(limits, none_is_known)
{
    cr_expect_eq(kvfs_available_memory(root), 102400 * MIB);
    cr_expect_eq(kvfs_auto_threads(root), processors());
    cr_expect_leq(kvfs_auto_memory(root), KVFS_MEMORY_MOST);
}

Test(limits, version_2)
{
    put("/proc/self/cgroup", "0::/pod/kvfs\n");
    put(GROUP "/pod/kvfs/memory.max", "2147483648\n");
    put(GROUP "/pod/kvfs/memory.current", "1073741824\n");
    put(GROUP "/pod/kvfs/memory.stat",
        "anon 9\nfile 8\ninactive_anon 7\ninactive_file 536870912\n");
    put(GROUP "/pod/kvfs/cpu.max", "100000 100000\n");
    cr_expect_eq(kvfs_auto_memory(root), 256 * MIB);
    cr_expect_eq(kvfs_available_memory(root), 1536 * MIB, "what can be dropped is available");
    cr_expect_eq(kvfs_auto_threads(root), 1);
}

/* Any group above may have the lower limit. */
Test(limits, version_2_above)
{
    put("/proc/self/cgroup", "0::/pod/kvfs\n");
    put(GROUP "/pod/kvfs/memory.max", "max\n");
    put(GROUP "/pod/kvfs/memory.current", "4096\n");
    put(GROUP "/pod/kvfs/cpu.max", "max 100000\n");
    put(GROUP "/pod/memory.max", "1073741824\n");
    put(GROUP "/pod/memory.current", "1073741824\n");
    put(GROUP "/pod/memory.stat", "inactive_file 0\n");
    put(GROUP "/pod/cpu.max", "50000 100000\n");
    cr_expect_eq(kvfs_auto_memory(root), 128 * MIB);
    cr_expect_eq(kvfs_available_memory(root), 0);
    cr_expect_eq(kvfs_auto_threads(root), 1, "half a processor is one thread");
}

/* In a container's own cgroup namespace, its group is the top; and in one without a namespace, the
 * path that the process reads of itself does not exist. */
Test(limits, version_2_in_a_container)
{
    const char *const seen[] = {"0::/\n", "0::/../outside\n", "0::/docker/123abc\n"};
    put(GROUP "/memory.max", "536870912\n");
    put(GROUP "/memory.current", "0\n");
    put(GROUP "/cpu.max", "150000 100000\n");
    for (size_t i = 0; i < sizeof(seen) / sizeof(seen[0]); i++) {
        put("/proc/self/cgroup", seen[i]);
        cr_expect_eq(kvfs_auto_memory(root), 64 * MIB, "%s", seen[i]);
        cr_expect_eq(kvfs_available_memory(root), 512 * MIB, "%s", seen[i]);
        cr_expect_eq(kvfs_auto_threads(root), processors() < 2 ? 1 : 2, "%s", seen[i]);
    }
}

Test(limits, version_1)
{
    put("/proc/self/cgroup", "9:name=systemd:/\n4:memory:/kvfs\n2:cpu,cpuacct:/\n");
    put(GROUP "/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put(GROUP "/memory/kvfs/memory.limit_in_bytes", "3221225472\n");
    put(GROUP "/memory/kvfs/memory.usage_in_bytes", "3221225472\n");
    put(GROUP "/memory/kvfs/memory.stat", "inactive_file 5\ntotal_inactive_file 1048576\n");
    put(GROUP "/cpu,cpuacct/cpu.cfs_quota_us", "100000\n");
    put(GROUP "/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    cr_expect_eq(kvfs_auto_memory(root), 384 * MIB);
    cr_expect_eq(kvfs_available_memory(root), MIB);
    cr_expect_eq(kvfs_auto_threads(root), 1);
    put(GROUP "/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    cr_expect_eq(kvfs_auto_threads(root), processors());
}

/* systemd's hybrid: the controllers are version 1, and a version 2 without any lies beside them. */
Test(limits, both)
{
    put("/proc/self/cgroup", "4:memory:/kvfs\n1:cpu:/kvfs\n0::/kvfs\n");
    put(GROUP "/unified/kvfs/cgroup.procs", "1\n");
    put(GROUP "/memory/kvfs/memory.limit_in_bytes", "1073741824\n");
    put(GROUP "/memory/kvfs/memory.usage_in_bytes", "0\n");
    put(GROUP "/cpu/kvfs/cpu.cfs_quota_us", "10000\n");
    put(GROUP "/cpu/kvfs/cpu.cfs_period_us", "100000\n");
    cr_expect_eq(kvfs_auto_memory(root), 128 * MIB);
    cr_expect_eq(kvfs_available_memory(root), 1024 * MIB);
    cr_expect_eq(kvfs_auto_threads(root), 1);
    put(GROUP "/unified/kvfs/memory.max", "536870912\n");
    cr_expect_eq(kvfs_auto_memory(root), 64 * MIB, "the lower of both");
}

Test(limits, nonsense_is_no_limit)
{
    put("/proc/self/cgroup", "rubbish\n0::/kvfs\n");
    put(GROUP "/kvfs/memory.max", "\n");
    put(GROUP "/kvfs/memory.current", "1\n");
    put(GROUP "/kvfs/cpu.max", "100000 0\n");
    cr_expect_eq(kvfs_available_memory(root), 102400 * MIB);
    cr_expect_eq(kvfs_auto_threads(root), processors());
}
