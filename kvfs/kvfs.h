/*
 * The kvfs command: one file cmd_*.c a subcommand, one row in main.c's table.
 * Exit codes: 0 done, 1 failed, 2 usage.
 */
#ifndef KVFS_H
#define KVFS_H

enum { KVFS_DONE = 0, KVFS_FAILED = 1, KVFS_USAGE = 2 };

/* The name under which mount(8) calls its helper for `-t fuse.kvfs`; then argv is as it has it. */
#define KVFS_MOUNT_HELPER "mount.fuse.kvfs"
/* What a process of `kvfs warm` is called, so that unmounting can end it. */
#define KVFS_WARM_NAME "kvfs-warm"

int cmd_mount(int argc, char **argv);
int cmd_umount(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_reload(int argc, char **argv);
int cmd_seal(int argc, char **argv);
int cmd_warm(int argc, char **argv);
int cmd_keygen(int argc, char **argv);
int cmd_encrypt(int argc, char **argv);
int cmd_rewrap(int argc, char **argv);
int cmd_rekey(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_verify(int argc, char **argv);
int cmd_audit(int argc, char **argv);
int cmd_guard(int argc, char **argv);
int cmd_measure(int argc, char **argv);
int cmd_login(int argc, char **argv);
int cmd_logout(int argc, char **argv);
int cmd_publish(int argc, char **argv);

/* Not for users: what the supervisor executes (kvfs/serve/worker.h, kvfs/mount/courier.h). */
int cmd_worker(int argc, char **argv);
int cmd_courier(int argc, char **argv);

#endif
