#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "format/base/log.h"
#include "keyserver/admin/admin.h"
#include "keyserver/http/request.h"
#include "keyserver/http/tls.h"

enum { PORT = 8443, SHUTDOWN_SECONDS = 10 };

/* ADDRESS:PORT, [ADDRESS]:PORT, :PORT or ADDRESS; names are not looked up. */
static int read_listen(const char *text, struct ks_options *opt, struct ct_err *err)
{
    char host[128] = "";
    char port[16];
    struct addrinfo *found = NULL;
    const struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV,
                                   .ai_socktype = SOCK_STREAM};
    const char *colon = strrchr(text, ':');
    (void)snprintf(port, sizeof(port), "%d", PORT);
    if (colon && (*text == '[' || strchr(text, ':') == colon)) {
        (void)snprintf(port, sizeof(port), "%s", colon + 1);
        (void)snprintf(host, sizeof(host), "%.*s", (int)(colon - text), text);
    } else {
        (void)snprintf(host, sizeof(host), "%s", text);
    }
    if (*host == '[') {
        memmove(host, host + 1, strlen(host));
        host[strcspn(host, "]")] = '\0';
    }
    if (getaddrinfo(*host ? host : "::", port, &hints, &found) || !found) {
        return ct_err_set(err, CT_USAGE, "--listen is ADDRESS:PORT");
    }
    memcpy(&opt->listen, found->ai_addr, found->ai_addrlen);
    opt->listen_len = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}

static int read_rate(const struct ks_admin *a, const char *name, double otherwise, double *out,
                     struct ct_err *err)
{
    char *end = NULL;
    const char *text = ks_option(a, name, NULL);
    *out = text ? strtod(text, &end) : otherwise;
    return text && (!*text || *end || *out < 0 || *out > 1e9)
               ? ct_err_set(err, CT_USAGE, "--%s is a number a second, 0 without limit", name)
               : 0;
}

static int read_options(const struct ks_admin *a, struct ks_options *opt, struct ct_err *err)
{
    int64_t workers = 0;
    int64_t upload = 0;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (ks_option_number(a, "workers", cores > 1 ? 2 * cores : 2, 32, &workers, err) ||
        ks_option_number(a, "challenge-seconds", 60, 3600, &opt->challenge_seconds, err) ||
        ks_option_number(a, "ticket-seconds", 60, 3600, &opt->ticket_seconds, err) ||
        ks_option_number(a, "server-key-seconds", 7200, 604800, &opt->server_key_seconds, err) ||
        ks_option_number(a, "settle", 5, 3600, &opt->settle_seconds, err) ||
        ks_admin_keep(a, &opt->keep_days, err) ||
        ks_option_number(a, "max-upload", 256, 2048, &upload, err) ||
        read_rate(a, "rate-login", 1, &opt->rate_login, err) ||
        read_rate(a, "rate-attest", 20, &opt->rate_attest, err)) {
        return -1;
    }
    opt->workers = workers ? (unsigned)workers : 1;
    opt->bulk_workers = opt->workers > 4 ? opt->workers / 2 : 2;
    opt->max_upload = (size_t)upload * KS_MIB;
    return read_listen(ks_option(a, "listen", ""), opt, err);
}

static int load(struct ks_admin *a, struct ks_server *s, struct ct_err *err)
{
    if (ks_begin(a->ctx.db, KS_READ, err)) {
        return -1;
    }
    int r = ks_secrets_load(&a->ctx, s, err);
    ks_rollback(a->ctx.db);
    s->seal = a->ctx.seal;
    s->database = a->database;
    s->metrics = ks_metrics_new(err);
    s->rates = ks_rates_new(err);
    return r || !s->metrics || !s->rates || ks_server_key_refresh(&a->ctx, s, err) ? -1 : 0;
}

/* A long poll is a connection each. */
static void raise_descriptors(void)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l) == 0) {
        l.rlim_cur = l.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &l);
    }
}

static void reload(const char *cert, const char *key)
{
    struct ct_err err = CT_ERR_INIT;
    if (ks_tls_load(cert, key, &err)) {
        ct_log(CT_LOG_ERROR, "%s; the former certificate stays", err.msg);
    } else {
        ct_log(CT_LOG_INFO, "certificate read anew");
    }
}

static int run(struct ks_admin *a, struct ks_server *s, struct ct_err *err)
{
    char cert[KS_PATH];
    char key[KS_PATH];
    int got = 0;
    sigset_t signals;
    struct ks_listener *l = NULL;
    if (ks_path(a, "tls.crt", cert, err) || ks_path(a, "tls.key", key, err)) {
        return -1;
    }
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGHUP);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    if (ks_listen(s, ks_option(a, "cert", cert), ks_option(a, "key", key), &l, err)) {
        return -1;
    }
    (void)printf("kvfs-keyserver " KVFS_VERSION " on port %u, thumbprint %s\n", ks_listen_port(l),
                 s->thumbprint);
    (void)fflush(stdout);
    while (sigwait(&signals, &got) == 0 && got == SIGHUP) {
        reload(ks_option(a, "cert", cert), ks_option(a, "key", key));
    }
    ct_log(CT_LOG_INFO, "ending");
    ks_listen_stop(l, SHUTDOWN_SECONDS);
    return 0;
}

static void to_stderr(void *ctx, enum ct_level level, const char *line)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    (void)ctx;
    (void)fprintf(stderr, "kvfs-keyserver: %s: %s\n", names[level], line);
}

int ks_cmd_serve(struct ks_admin *a, struct ct_err *err)
{
    struct ks_server s = {0};
    pthread_mutex_init(&s.keys_lock, NULL);
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    raise_descriptors();
    ct_log_set_sink(to_stderr, NULL);
    if (ks_option(a, "verbose", NULL)) {
        ct_log_set_level(CT_LOG_DEBUG);
    }
    int r = read_options(a, &s.opt, err) || ks_admin_open(a, true, err) || load(a, &s, err) ||
                    run(a, &s, err)
                ? -1
                : 0;
    ks_secrets_free(&s);
    ks_metrics_free(s.metrics);
    ks_rates_free(s.rates);
    return r;
}
