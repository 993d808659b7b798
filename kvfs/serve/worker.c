#include "kvfs/serve/worker.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "keyclient/measure.h"
#include "kvfs/serve/audit.h"
#include "kvfs/serve/guarded.h"
#include "kvfs/serve/leases.h"
#include "kvfs/serve/resident.h"

enum { KEY_FILE_MAX = 1 << 20, MAX_READ = 1 << 20, TICK_MS = 1000, LEASE_TICK_MS = 200 };

/* ---- start ---- */

static int take_hello(struct kvfs_serve *s, struct kvfs_hello *hello, struct ct_err *err)
{
    if (kvfs_control_recv(KVFS_FD_CONTROL, hello, sizeof(*hello), NULL, err) != 1) {
        return ct_err_set(err, CT_IO, "the supervisor said nothing");
    }
    if (hello->size != sizeof(*hello) || hello->key_count > KVFS_KEY_FILES_MAX ||
        hello->measured_count > KVFS_MEASURED_MAX) {
        return ct_err_set(err, CT_USAGE, "supervisor and worker are not the same program");
    }
    s->config = hello->config;
    s->control = KVFS_FD_CONTROL;
    s->started = time(NULL);
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, KVFS_FD_SHARED, 0);
    if (page == MAP_FAILED) {
        return ct_err_sys(err, errno, "shared page");
    }
    s->shared = page;
    close(KVFS_FD_SHARED);
    if (!s->config.guarded) {
        close(KVFS_FD_GUARD);
        return 0;
    }
    s->guarded = kvfs_guarded_new(KVFS_FD_GUARD, s->config.guard_gap_ms, err);
    return s->guarded ? 0 : -1;
}

/* The one descriptor has the API key. */
static int read_deploy_key(struct kvfs_serve *s, json_t *measurements, struct ct_err *err)
{
    ct_autobuf text = {0};
    int r = ct_read_fd(KVFS_FD_KEYS, KEY_FILE_MAX, &text, err);
    close(KVFS_FD_KEYS);
    if (r) {
        json_decref(measurements);
        return ct_err_wrap(err, "the deploy key");
    }
    s->leases = kvfs_leases_new(text.data, text.len, s->config.server_key, measurements, err);
    return s->leases ? 0 : -1;
}

static int read_keys(struct kvfs_serve *s, struct kvfs_hello *hello, json_t *measurements,
                     struct ct_err *err)
{
    if (s->config.server[0]) {
        return read_deploy_key(s, measurements, err);
    }
    s->keyring = ct_keyring_new(err);
    if (!s->keyring) {
        return -1;
    }
    for (uint32_t i = 0; i < hello->key_count; i++) {
        ct_autobuf text = {0};
        int fd = KVFS_FD_KEYS + (int)i;
        hello->key_names[i][sizeof(hello->key_names[i]) - 1] = '\0';
        int r = ct_read_fd(fd, KEY_FILE_MAX, &text, err) ||
                ct_keyring_add(s->keyring, text.data, text.len, hello->key_names[i], err);
        close(fd);
        if (r) {
            return ct_err_wrap(err, "key file %s", hello->key_names[i]);
        }
    }
    if (s->config.have_key_dir) {
        ct_keyring_set_jku(s->keyring, kvfs_source_open_key, s);
    }
    s->keys = ct_keyring_source(s->keyring);
    return 0;
}

void kvfs_op_init(void *userdata, struct fuse_conn_info *conn);

void kvfs_op_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    /* Parked requests do not hold up a FUSE thread, so many may be under way. */
    conn->max_background = 64;
    conn->congestion_threshold = 48;
    conn->max_readahead = MAX_READ;
    conn->want &= ~(unsigned)(FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_SPLICE_WRITE |
                              FUSE_CAP_SPLICE_MOVE | FUSE_CAP_SPLICE_READ);
    /* Always readdirplus: what a name is must be judged in any case, and what a plain readdir finds
     * would be forgotten again at once, while ids are never reused. */
    conn->want &= ~(unsigned)FUSE_CAP_READDIRPLUS_AUTO;
    conn->want |= conn->capable & (FUSE_CAP_ASYNC_READ | FUSE_CAP_PARALLEL_DIROPS |
                                   FUSE_CAP_READDIRPLUS | FUSE_CAP_CACHE_SYMLINKS);
}

struct kvfs_passthrough *kvfs_passthrough_of(void *userdata)
{
    return &((struct kvfs_serve *)userdata)->passthrough;
}

static int open_session(struct kvfs_serve *s, struct ct_err *err)
{
    char *argv[] = {(char[]){"kvfs"}, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(1, argv);
    struct fuse_lowlevel_ops ops = kvfs_ops;
    kvfs_refuse_changes(&ops);
    s->passthrough.wanted = s->config.resident > 0;
    s->session = fuse_session_new(&args, &ops, sizeof(ops), s);
    fuse_opt_free_args(&args);
    if (!s->session || kvfs_passthrough_attach(s->session, KVFS_FD_FUSE)) {
        return ct_err_set(err, CT_IO, "the FUSE session cannot be made");
    }
    return 0;
}

/* The root is node 1 before anybody asks for it. */
static int make_root(struct kvfs_serve *s, struct ct_err *err)
{
    struct kvfs_opened opened;
    struct kvfs_found root = {.kind = KVFS_NODE_DIR};
    if (kvfs_source_open(s, "", &opened, err)) {
        return -1;
    }
    root.st = opened.st;
    kvfs_opened_release(&opened);
    return kvfs_table_put(s->table, "", &root, err) ? 0 : -1;
}

/* ---- the supervisor's end ---- */

static void tick(void *arg)
{
    kvfs_resident_tick(arg);
}

static void *watch(void *arg)
{
    struct kvfs_serve *s = arg;
    struct pollfd p[] = {{.fd = s->control, .events = POLLRDHUP},
                         {.fd = s->ended, .events = POLLIN},
                         {.fd = kvfs_guarded_fd(s->guarded), .events = POLLIN},
                         {.fd = s->asked, .events = POLLIN}};
    /* Replies are read by who asked; here only the end of the other side matters. */
    int64_t ticked = 0;
    struct ct_err why = CT_ERR_INIT;
    while (!(p[0].revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL))) {
        (void)poll(p, 4, s->leases ? LEASE_TICK_MS : TICK_MS);
        if (s->guarded && p[2].fd >= 0 &&
            (p[2].revents ? kvfs_guarded_take(s->guarded, &why)
                          : kvfs_guarded_listen(s->guarded, &why))) {
            p[2].fd = -1;
            kvfs_seal(s, &why);
        }
        if (p[3].revents) {
            p[3].fd = -1;
            ct_err_set(&why, CT_SEALED, "somebody asked for it (kvfs seal)");
            kvfs_seal(s, &why);
        }
        if (s->leases) { /* none, before they are there */
            kvfs_leases_tick(s->leases, s->shared);
        }
        if (s->config.resident && kvfs_lease_now() - ticked >= TICK_MS) {
            ticked = kvfs_lease_now();
            kvfs_chunks_run(s->chunks, tick, s);
        }
        if (p[1].revents) {
            return NULL;
        }
    }
    ct_err_set(&why, CT_SEALED, "the supervisor is gone");
    kvfs_seal(s, &why);
    while (!atomic_load(&s->taken)) { /* another thread is at it; the keeper won't wait for ever */
        (void)poll(NULL, 0, LEASE_TICK_MS);
    }
    _exit(1);
}

/* ---- serving ---- */

static int prepare(struct kvfs_serve *s, const struct kvfs_sandbox *sandbox, struct ct_err *err)
{
    static struct kvfs_hello hello; /* 90 KiB */
    if (take_hello(s, &hello, err)) {
        return -1;
    }
    ct_log_set_level((enum ct_level)s->config.log_level);
    ct_log_set_sink(kvfs_log_sink, NULL);
    kvfs_status_start();
    tzset();
    json_t *measurements = NULL; /* while there is a /proc */
    s->ended = eventfd(0, EFD_CLOEXEC);
    s->asked = eventfd(0, EFD_CLOEXEC);
    if (s->ended < 0 || s->asked < 0 ||
        (s->config.server[0] && !(measurements = kc_measure(s->config.profile, hello.measured,
                                                            hello.measured_count, err)))) {
        return -1;
    }
    if (sandbox->drop(&s->config, err)) {
        json_decref(measurements);
        return -1;
    }
    if (read_keys(s, &hello, measurements, err) || open_session(s, err) ||
        !(s->table = kvfs_table_new(s->shared, err)) || !(s->judge = kvfs_judge_new(err)) ||
        !(s->residents = kvfs_resident_start(s, err)) || make_root(s, err) ||
        kvfs_audit_begin(s, err)) {
        return -1;
    }
    /* Loads what OpenSSL loads late, while there are paths. */
    ct_aead_use(s->config.crypto);
    return ct_aead_prepare(err) || sandbox->close(err) ? -1 : 0;
}

static int serve(struct kvfs_serve *s, const char *warning)
{
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    if (!config) {
        return 1;
    }
    fuse_loop_cfg_set_max_threads(config, 10);
    fuse_loop_cfg_set_idle_threads(config, 10);
    fuse_loop_cfg_set_clone_fd(config, 0);
    if (warning[0]) {
        ct_log(CT_LOG_WARN, "%s", warning);
    }
    if (s->leases) {
        kvfs_leases_announce(s->leases, s->shared);
    }
    if (kvfs_source_ready(s, warning)) {
        return 1;
    }
    int r = fuse_session_loop_mt(s->session, config);
    fuse_loop_cfg_destroy(config);
    return r ? 1 : 0;
}

int kvfs_worker_run(const struct kvfs_sandbox *sandbox)
{
    static struct kvfs_serve s;
    static char warning[KVFS_TEXT_MAX];
    pthread_t watcher;
    struct ct_err err = CT_ERR_INIT;
    s.control = KVFS_FD_CONTROL;
    if (prepare(&s, sandbox, &err) ||
        !(s.chunks = kvfs_chunks_start(&s, s.config.memory, s.config.threads, &err)) ||
        kvfs_audit_run(&s, &err) || pthread_create(&watcher, NULL, watch, &s)) {
        kvfs_source_failed(&s, err.msg);
        return 1;
    }
    int r = 1;
    if ((s.leases && kvfs_leases_start(&s, &err)) ||
        kvfs_scan(&s, warning, sizeof(warning), &err)) {
        kvfs_audit_event(&s, NULL, "failed", kvfs_audit_why(&err));
        (void)eventfd_write(s.ended, 1);
        kvfs_audit_stop(&s);
        kvfs_source_failed(&s, err.msg);
    } else {
        r = serve(&s, warning);
    }
    (void)eventfd_write(s.ended, 1);
    (void)pthread_join(watcher, NULL);
    kvfs_audit_stop(&s); /* while the leases are there: the server takes the last of it */
    kvfs_leases_stop(s.leases);
    kvfs_chunks_stop(s.chunks);
    kvfs_leases_free(s.leases);
    kvfs_audit_free(&s);
    ct_secret_wipe_all();
    kvfs_guarded_leave(s.guarded);
    return r;
}
