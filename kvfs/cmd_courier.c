#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "format/base/secret.h"
#include "kvfs/args.h"
#include "kvfs/http/http.h"
#include "kvfs/kvfs.h"
#include "kvfs/mount/carry.h"
#include "kvfs/mount/courier.h"
#include "kvfs/mount/sandbox.h"

enum { CONNECT_SECONDS = 15 };

/* The worker is gone, or waits no longer. */
static bool is_alone(void)
{
    struct pollfd p = {.fd = KVFS_COURIER_FD, .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0 && p.revents & (POLLRDHUP | POLLHUP | POLLERR);
}

static void carry(struct kvfs_http *http)
{
    struct kvfs_carry_request q;
    struct ct_err err = CT_ERR_INIT;
    for (;;) {
        ct_autobuf body = {0};
        ct_autobuf answer = {0};
        struct ct_err why = CT_ERR_INIT;
        unsigned status = 0;
        if (kvfs_carry_next(KVFS_COURIER_FD, &q, &body, &err) != 1) {
            return;
        }
        if (kvfs_http_call(http, q.method, q.path, NULL, q.size ? body.data : NULL, body.len,
                           q.seconds, KVFS_CARRY_MAX, &status, &answer, &why)) {
            ct_buf_free(&answer);
            status = 0;
            ct_buf_puts(&answer, why.msg);
        }
        if (kvfs_carry_answer(KVFS_COURIER_FD, status, answer.data, answer.len, &err)) {
            return;
        }
    }
}

/* Says it to the first who asks: there is no other way to the user. */
static int give_up(const struct ct_err *why)
{
    struct kvfs_carry_request q;
    ct_autobuf body = {0};
    struct ct_err err = CT_ERR_INIT;
    if (kvfs_carry_next(KVFS_COURIER_FD, &q, &body, &err) == 1) {
        (void)kvfs_carry_answer(KVFS_COURIER_FD, 0, (const uint8_t *)why->msg, strlen(why->msg),
                                &err);
    }
    return KVFS_FAILED;
}

int cmd_courier(int argc, char **argv)
{
    struct ct_err err = CT_ERR_INIT;
    struct kvfs_config config = {0};
    uint64_t uid = 0;
    uint64_t gid = 0;
    const pid_t parent = getppid();
    if (argc < 4 || argc > 5 || kvfs_parse_u64(argv[1], UINT32_MAX, &uid) ||
        kvfs_parse_u64(argv[2], UINT32_MAX, &gid)) {
        return KVFS_USAGE;
    }
    (void)prctl(PR_SET_NAME, "kvfs-courier", 0, 0, 0);
    (void)signal(SIGPIPE, SIG_IGN);
    config.worker_uid = (uint32_t)uid;
    config.worker_gid = (uint32_t)gid;
    if (ct_secret_init(&err)) {
        return give_up(&err);
    }
    struct kvfs_http_config how = {
        .url = argv[3], .ca = argv[4], .connect_seconds = CONNECT_SECONDS};
    struct kvfs_http *http = kvfs_http_open(&how, &err);
    if (!http || kvfs_sandbox_drop(&config, &err)) {
        kvfs_http_close(http);
        return give_up(&err);
    }
    /* A change of user clears it. */
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (getppid() == parent) {
        kvfs_http_stop_when(http, is_alone);
        carry(http);
    }
    kvfs_http_close(http);
    return KVFS_DONE;
}
