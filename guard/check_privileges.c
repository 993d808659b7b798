#include <stdio.h>
#include <string.h>

#include "guard/state.h"

/* capabilities(7), linux/capability.h. */
const char *const guard_capability_names[64] = {"chown",
                                                "dac_override",
                                                "dac_read_search",
                                                "fowner",
                                                "fsetid",
                                                "kill",
                                                "setgid",
                                                "setuid",
                                                "setpcap",
                                                "linux_immutable",
                                                "net_bind_service",
                                                "net_broadcast",
                                                "net_admin",
                                                "net_raw",
                                                "ipc_lock",
                                                "ipc_owner",
                                                "sys_module",
                                                "sys_rawio",
                                                "sys_chroot",
                                                "sys_ptrace",
                                                "sys_pacct",
                                                "sys_admin",
                                                "sys_boot",
                                                "sys_nice",
                                                "sys_resource",
                                                "sys_time",
                                                "sys_tty_config",
                                                "mknod",
                                                "lease",
                                                "audit_write",
                                                "audit_control",
                                                "setfcap",
                                                "mac_override",
                                                "mac_admin",
                                                "syslog",
                                                "wake_alarm",
                                                "block_suspend",
                                                "audit_read",
                                                "perfmon",
                                                "bpf",
                                                "checkpoint_restore"};

/* "sys_admin, bpf and 3 more" */
static void name_them(uint64_t caps, char *out, size_t cap)
{
    size_t len = 0;
    unsigned named = 0;
    unsigned more = 0;
    out[0] = '\0';
    for (int i = 63; i >= 0; i--) {
        if (!(caps & UINT64_C(1) << i)) {
            continue;
        }
        if (named < 4 && guard_capability_names[i]) {
            int n = snprintf(out + len, cap - len, "%s%s", named ? ", " : "",
                             guard_capability_names[i]);
            len += n > 0 && (size_t)n < cap - len ? (size_t)n : 0;
            named++;
        } else {
            more++;
        }
    }
    if (more) {
        (void)snprintf(out + len, cap - len, "%s%u more", named ? " and " : "", more);
    }
}

static void check_capabilities(struct guard_run *r)
{
    static const char *const sets[GUARD_CAPSETS] = {"inheritable", "permitted", "effective",
                                                    "bounding", "ambient"};
    guard_looked(r, GUARD_CAPABILITIES);
    for (int i = 0; i < GUARD_CAPSETS; i++) {
        char names[120];
        if (r->now->status.caps[i]) {
            name_them(r->now->status.caps[i], names, sizeof(names));
            guard_fail(r, GUARD_CAPABILITIES, r->now->status.caps[i], sets[i],
                       "capabilities in the %s set: %s", sets[i], names);
        }
    }
}

static void check_bpf_capable(struct guard_run *r)
{
    const uint64_t able =
        UINT64_C(1) << 39 | UINT64_C(1) << 38 | UINT64_C(1) << 21 | UINT64_C(1) << 19;
    const struct guard_status *st = &r->now->status;
    uint64_t has = (st->caps[GUARD_CAP_EFF] | st->caps[GUARD_CAP_PRM]) & able;
    char names[120];
    guard_looked(r, GUARD_BPF_CAPABLE);
    if (has) {
        name_them(has, names, sizeof(names));
        guard_fail(r, GUARD_BPF_CAPABLE, has, "caps",
                   "it may load eBPF programs or trace others (%s)", names);
    }
}

static void check_ids(struct guard_run *r)
{
    const struct guard_status *st = &r->now->status;
    static const char *const kinds[4] = {"real", "effective", "saved", "file system"};
    guard_looked(r, GUARD_UID);
    for (int i = 0; i < 4; i++) {
        if (st->uid[i] == 0) {
            guard_fail(r, GUARD_UID, 0, kinds[i], "the %s user id is 0 (root)", kinds[i]);
        }
        if (st->gid[i] == 0) {
            guard_fail(r, GUARD_UID, 1, kinds[i], "the %s group id is 0", kinds[i]);
        }
    }
    if (st->group0) {
        guard_fail(r, GUARD_UID, 0, "groups", "group 0 is among the supplementary groups");
    }
    if (r->start && memcmp(r->start->status.uid, st->uid, sizeof(st->uid)) != 0) {
        guard_fail(r, GUARD_UID, 0, "changed", "the user ids changed: %u, %u at the start",
                   st->uid[1], r->start->status.uid[1]);
    }
}

void guard_check_privileges(struct guard_run *r)
{
    const struct guard_status *st = &r->now->status;
    if (!guard_has(r, GUARD_HAS_STATUS)) {
        return;
    }
    check_capabilities(r);
    check_bpf_capable(r);
    check_ids(r);
    if (st->no_new_privs < 0) {
        guard_unseen(r, GUARD_NO_NEW_PRIVS);
    } else {
        guard_looked(r, GUARD_NO_NEW_PRIVS);
        if (!st->no_new_privs) {
            guard_fail(r, GUARD_NO_NEW_PRIVS, 0, "", "no_new_privs is not set");
        }
    }
    guard_looked(r, GUARD_SECCOMP);
    if (st->seccomp <= 0) {
        guard_fail(r, GUARD_SECCOMP, 0, "", "there is no seccomp filter");
    }
}
