#include "kvfs/mount/sandbox.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "format/base/log.h"
#include "kvfs/mount/filter.h"

static bool started_by_root;

/* Whether uid 0 here is also the kernel's root: not in a user namespace that an ordinary user
 * made, where no other uid need exist. */
static bool is_real_root(void)
{
    unsigned inside = 0;
    unsigned outside = 0;
    FILE *f = fopen("/proc/self/uid_map", "re");
    bool known = f && fscanf(f, "%u %u", &inside, &outside) == 2; // NOLINT(cert-err34-c)
    if (f) {
        (void)fclose(f);
    }
    return !known || inside != 0 || outside == 0;
}

static void drop_bounding_set(void)
{
    for (unsigned long cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++) {
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0)) {
            ct_log(CT_LOG_INFO, "sandbox: the capability bounding set stays: %s", strerror(errno));
            return;
        }
    }
}

static int change_user(uid_t uid, gid_t gid, struct ct_err *err)
{
    if (setgroups(0, NULL)) {
        ct_log(CT_LOG_WARN, "sandbox: supplementary groups stay: %s", strerror(errno));
    }
    if (setresgid(gid, gid, gid) || setresuid(uid, uid, uid)) {
        if (errno == EINVAL && !is_real_root()) {
            ct_log(CT_LOG_INFO, "sandbox: uid %u does not exist in this user namespace", uid);
            return 0;
        }
        return ct_err_sys(err, errno,
                          "the worker can't become uid %u, gid %u (-o worker-user= names another)",
                          uid, gid);
    }
    if (uid != 0 && setresuid(0, 0, 0) == 0) {
        return ct_err_set(err, CT_IO, "the worker could become root again");
    }
    return 0;
}

static int drop_capabilities(struct ct_err *err)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];
    memset(none, 0, sizeof(none));
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (syscall(SYS_capset, &head, none)) {
        return ct_err_sys(err, errno, "sandbox: capabilities");
    }
    return 0;
}

int kvfs_sandbox_drop(const struct kvfs_config *config, struct ct_err *err)
{
    const struct rlimit zero = {0, 0};
    started_by_root = geteuid() == 0;
    if (started_by_root) {
        drop_bounding_set();
        if (change_user(config->worker_uid, config->worker_gid, err)) {
            return -1;
        }
    }
    if (drop_capabilities(err)) {
        return -1;
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || setrlimit(RLIMIT_CORE, &zero)) {
        return ct_err_sys(err, errno, "sandbox");
    }
    /* After the change of user, which sets it too. LeakSanitizer traces its own process. */
    (void)prctl(PR_SET_DUMPABLE, KVFS_SANITIZED, 0, 0, 0);
    return 0;
}

/* The kernel's structure as far as we know it; each ABI takes a prefix. */
struct ruleset {
    uint64_t fs, net, scoped;
};

static size_t ruleset_of(long abi, struct ruleset *r)
{
    unsigned fs_bits = abi >= 5 ? 16 : abi >= 3 ? 15 : abi == 2 ? 14 : 13;
    r->fs = (UINT64_C(1) << fs_bits) - 1;
    r->net = 3;    /* bind, connect */
    r->scoped = 3; /* abstract sockets, signals */
    return abi >= 6   ? sizeof(*r)
           : abi >= 4 ? offsetof(struct ruleset, scoped)
                      : offsetof(struct ruleset, net);
}

static void forbid_paths(void)
{
    if (KVFS_SANITIZED) {
        ct_log(CT_LOG_INFO, "sandbox: a sanitizer's build goes without Landlock");
        return;
    }
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (abi < 1) {
        ct_log(CT_LOG_WARN, "sandbox: this kernel has no Landlock: %s", strerror(errno));
        return;
    }
    struct ruleset rules;
    size_t size = ruleset_of(abi, &rules);
    long fd = syscall(SYS_landlock_create_ruleset, &rules, size, 0);
    if (fd < 0 || syscall(SYS_landlock_restrict_self, fd, 0)) {
        ct_log(CT_LOG_WARN, "sandbox: Landlock: %s", strerror(errno));
    }
    if (fd >= 0) {
        close((int)fd);
    }
}

int kvfs_sandbox_close(struct ct_err *err)
{
    forbid_paths();
    if (kvfs_filter_load(err)) {
        if (started_by_root) {
            return -1;
        }
        ct_log(CT_LOG_WARN, "sandbox: no system call filter on this kernel");
    }
    return 0;
}
