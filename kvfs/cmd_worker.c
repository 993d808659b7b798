#include <sys/prctl.h>

#include "format/base/secret.h"
#include "kvfs/kvfs.h"
#include "kvfs/mount/sandbox.h"
#include "kvfs/mount/turns.h"
#include "kvfs/serve/worker.h"

int cmd_worker(int argc, char **argv)
{
    static const struct kvfs_sandbox sandbox = {kvfs_sandbox_drop, kvfs_sandbox_close};
    (void)argc;
    (void)argv;
    (void)prctl(PR_SET_NAME, "kvfs-worker"); /* it was started as /proc/self/exe */
    if (ct_secret_init(NULL)) {
        return KVFS_FAILED;
    }
    int rc = kvfs_worker_run(&sandbox);
    kvfs_turns_before_leak_search();
    return rc;
}
