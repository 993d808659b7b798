/*
 * Runtimes that ask a key server for keys, as many and as often as told:
 *
 *     exchange_load WORLD RUNTIMES SECONDS RATE keep|anew
 *
 * WORLD is a JSON file {"port", "ca", "model", "measurements", "keys": [deploy keys]}. An exchange
 * is a TLS connection (`keep`: the same for all of a runtime's), challenge, evidence, ticket, proof
 * and release, the headers in step already. Each runtime is a thread with keys of its own; its
 * first exchange, with a synchronisation, is counted apart. RATE exchanges a second are begun
 * whatever the server does, and timed from when they were due; with RATE 0 each follows the one
 * before.
 *
 * To measure the server and not itself it verifies no signature and decrypts no keys: a client of
 * the real kind is keyclient/. Prints {"exchanges", "seconds", "p50", "p99", "first", "cpu"} as
 * JSON.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "format/protocol/digest.h"
#include "format/protocol/jose.h"

enum { RUNTIMES_MAX = 1000, ANSWER_MAX = 1 << 26 };

struct world {
    json_t *json;
    SSL_CTX *tls;
    const char *model;
    char measurement[KX_HEX + 1];
    double seconds, rate, start;
    int runtimes;
    bool keep;
    pthread_barrier_t ready;
};

struct runtime {
    struct world *w;
    pthread_t thread;
    const char *api_key;
    json_t *keys, *publics; /* {"sign", "decrypt", "audit"} */
    json_t *headers;        /* the set, as in the proof */
    SSL *ssl;
    double first, *times;
    size_t count, room;
    int number, fd;
    char thumbs[3][KX_THUMBPRINT + 1];
};

static const char *const names[] = {"sign", "decrypt", "audit"};

static _Noreturn void die(const char *what, const char *why)
{
    (void)fprintf(stderr, "exchange_load: %s: %s\n", what, why);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void sleep_until(double when)
{
    const double left = when - now();
    if (left > 0) {
        const struct timespec t = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
        nanosleep(&t, NULL);
    }
}

/* ---- HTTP, as much as the server's answers need ---- */

static void hang_up(struct runtime *r)
{
    if (r->ssl) {
        (void)SSL_shutdown(r->ssl);
        SSL_free(r->ssl);
        close(r->fd);
        r->ssl = NULL;
    }
}

static void dial(struct runtime *r)
{
    const int port = (int)json_integer_value(json_object_get(r->w->json, "port"));
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int one = 1;
    r->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (r->fd < 0 || connect(r->fd, (const struct sockaddr *)&to, sizeof(to)) ||
        setsockopt(r->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))) {
        die("connect", "refused");
    }
    r->ssl = SSL_new(r->w->tls);
    if (!r->ssl || SSL_set_fd(r->ssl, r->fd) != 1 || SSL_connect(r->ssl) != 1) {
        die("TLS", "no handshake");
    }
}

/* Reads until the answer is whole; returns where its body begins. */
static size_t receive(struct runtime *r, struct ct_buf *in)
{
    size_t whole = 0;
    size_t body = 0;
    while (!whole || in->len < whole) {
        uint8_t *to = ct_buf_reserve(in, 65536);
        const int n = to && in->len < ANSWER_MAX ? SSL_read(r->ssl, to, 65535) : 0;
        if (n <= 0) {
            die("answer", "cut off");
        }
        in->len += (size_t)n;
        in->data[in->len] = '\0';
        const char *end = whole ? NULL : strstr((char *)in->data, "\r\n\r\n");
        const char *length = end ? strcasestr((char *)in->data, "content-length:") : NULL;
        if (end && !length) {
            die("answer", "without a length");
        }
        if (length) {
            body = (size_t)(end + 4 - (char *)in->data);
            whole = body + strtoull(length + 15, NULL, 10);
        }
    }
    return body;
}

/* The envelope's data. The body is stolen. */
static json_t *call(struct runtime *r, const char *path, json_t *body)
{
    struct ct_err err = CT_ERR_INIT;
    ct_autobuf out = {0};
    ct_autobuf in = {0};
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    if (!text) {
        die(path, "no request");
    }
    ct_buf_printf(&out,
                  "POST /api/deploy/v1%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\n"
                  "\r\n%s",
                  path, strlen(text), text);
    free(text);
    if (out.failed || SSL_write(r->ssl, out.data, (int)out.len) != (int)out.len) {
        die(path, "cannot be sent");
    }
    const size_t at = receive(r, &in);
    kx_autojson envelope = kx_json_parse(in.data + at, in.len - at, &err);
    json_t *data = json_incref(json_object_get(envelope, "data"));
    if (!json_is_object(data)) {
        die(path, (char *)in.data + at);
    }
    return data;
}

/* What a signed object says, whoever signed it. */
static json_t *payload_of(const json_t *data)
{
    struct ct_err err = CT_ERR_INIT;
    const json_t *value = json_object_get(json_object_get(data, "signed"), "payload");
    const size_t n = json_string_length(value);
    ct_autobuf text = {0};
    uint8_t *to = ct_buf_reserve(&text, n + 1);
    const ssize_t len = to ? ct_base64_decode(json_string_value(value), n, to, n) : -1;
    json_t *payload = len < 0 ? NULL : kx_json_parse(to, (size_t)len, &err);
    if (!payload) {
        die("answer", "not signed");
    }
    return payload;
}

/* ---- the exchange ---- */

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

static json_t *evidence(struct runtime *r, const json_t *given)
{
    char digest[KX_HEX + 1];
    struct ct_err err = CT_ERR_INIT;
    const char *challenge = text_of(given, "challenge");
    if (kx_evidence_digest(challenge, r->thumbs[0], r->thumbs[1], r->thumbs[2], r->w->measurement,
                           digest, &err)) {
        die("evidence", err.msg);
    }
    kx_autojson bound = json_pack("{s:i,s:s,s:n,s:s}", "version", 1, "challenge", challenge,
                                  "lease", "evidence", digest);
    kx_autojson plain = json_pack(
        "{s:i,s:[i],s:s,s:s,s:[s],s:O,s:O,s:{s:s,s:[]},s:s,s:n,s:o}", "version", 1, "versions", 1,
        "challenge", challenge, "api_key", r->api_key, "models", r->w->model, "keys", r->publics,
        "measurements", json_object_get(r->w->json, "measurements"), "guard", "state", "off",
        "findings", "host", "bench", "hardware", "binding",
        kx_jws_sign(json_object_get(r->keys, "sign"), "kvfs-binding+jws", bound, &err));
    json_t *jwe = plain ? kx_jwe_encrypt(json_object_get(given, "server_key"), "kvfs-evidence+jwe",
                                         plain, &err)
                        : NULL;
    if (!jwe) {
        die("evidence", err.msg);
    }
    return jwe;
}

/* One call of /keys; true when it was a release. */
static bool ask(struct runtime *r, const char *ticket, int number)
{
    char hash[KX_HEX + 1];
    char set[KX_HEX + 1];
    struct ct_err err = CT_ERR_INIT;
    if (kx_hex_sha256(ticket, strlen(ticket), hash, &err) ||
        kx_headers_digest(r->headers, set, &err)) {
        die("proof", err.msg);
    }
    kx_autojson proof = json_pack("{s:i,s:s,s:i,s:O,s:s}", "version", 1, "ticket_sha256", hash,
                                  "call", number, "headers", r->headers, "headers_sha256", set);
    json_t *jws = kx_jws_sign(json_object_get(r->keys, "sign"), "kvfs-proof+jws", proof, &err);
    kx_autojson data = call(r, "/keys", json_pack("{s:s,s:o}", "ticket", ticket, "proof", jws));
    kx_autojson answer = payload_of(data);
    if (strcmp(text_of(answer, "decision"), "release") == 0) {
        return true;
    }
    size_t i = 0;
    const json_t *one = NULL;
    json_array_clear(r->headers);
    json_array_foreach(json_object_get(answer, "headers"), i, one)
    {
        (void)json_array_append_new(r->headers,
                                    json_pack("{s:O,s:O}", "path", json_object_get(one, "path"),
                                              "sha256", json_object_get(one, "sha256")));
    }
    return false;
}

static void exchange(struct runtime *r)
{
    if (!r->ssl) {
        dial(r);
    }
    kx_autojson first = call(r, "/challenge", json_pack("{s:[i]}", "versions", 1));
    kx_autojson given = payload_of(first);
    kx_autojson second = call(r, "/attest", evidence(r, given));
    kx_autojson tickets = payload_of(second);
    const json_t *result = json_array_get(json_object_get(tickets, "results"), 0);
    const char *ticket = text_of(result, "ticket");
    if (!*ticket) {
        die("attest", text_of(result, "error"));
    }
    for (int number = 1; !ask(r, ticket, number); number++) {
    }
    if (!r->w->keep) {
        hang_up(r);
    }
}

static void note(struct runtime *r, double seconds)
{
    if (r->count == r->room) {
        r->room = r->room ? 2 * r->room : 1024;
        r->times = realloc(r->times, r->room * sizeof(*r->times));
        if (!r->times) {
            die("times", "no memory");
        }
    }
    r->times[r->count++] = seconds;
}

static void *run(void *arg)
{
    struct runtime *r = arg;
    struct world *w = r->w;
    double begin = now();
    exchange(r);
    r->first = now() - begin;
    (void)pthread_barrier_wait(&w->ready); /* all have had their first */
    (void)pthread_barrier_wait(&w->ready); /* the clock is set */
    for (int i = 0;; i++) {
        begin = w->rate > 0 ? w->start + ((double)i * w->runtimes + r->number) / w->rate : now();
        if (begin >= w->start + w->seconds) {
            break;
        }
        sleep_until(begin);
        exchange(r);
        note(r, now() - begin);
    }
    hang_up(r);
    return NULL;
}

/* ---- all of them ---- */

static void make_keys(struct runtime *r)
{
    struct ct_err err = CT_ERR_INIT;
    r->keys = json_object();
    r->publics = json_object();
    r->headers = json_array();
    for (int i = 0; i < 3; i++) {
        json_t *jwk = kx_jwk_new(&err);
        if (!jwk || kx_jwk_thumbprint(jwk, r->thumbs[i], &err)) {
            die("keys", err.msg);
        }
        json_object_set_new(r->publics, names[i], kx_jwk_public(jwk));
        json_object_set_new(r->keys, names[i], jwk);
    }
}

static void start(struct world *w, struct runtime *all)
{
    const json_t *keys = json_object_get(w->json, "keys");
    for (int i = 0; i < w->runtimes; i++) {
        struct runtime *r = &all[i];
        *r = (struct runtime){.w = w, .number = i};
        r->api_key = json_string_value(json_array_get(keys, (size_t)i % json_array_size(keys)));
        make_keys(r);
        if (pthread_create(&r->thread, NULL, run, r)) {
            die("threads", "too many");
        }
    }
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const double *sorted, size_t n, size_t percent)
{
    return n ? sorted[(n - 1) * percent / 100] : 0;
}

static double cpu(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static void report(const struct world *w, struct runtime *all, double used, double seconds)
{
    struct runtime sum = {0};
    double *first = calloc((size_t)w->runtimes, sizeof(*first));
    if (!first) {
        die("report", "no memory");
    }
    for (int i = 0; i < w->runtimes; i++) {
        first[i] = all[i].first;
        for (size_t k = 0; k < all[i].count; k++) {
            note(&sum, all[i].times[k]);
        }
    }
    qsort(first, (size_t)w->runtimes, sizeof(*first), compare);
    if (sum.count) {
        qsort(sum.times, sum.count, sizeof(*sum.times), compare);
    }
    (void)printf("{\"exchanges\": %zu, \"seconds\": %.3f, \"p50\": %.5f, \"p99\": %.5f, "
                 "\"first\": %.5f, \"cpu\": %.3f}\n",
                 sum.count, seconds, percentile(sum.times, sum.count, 50),
                 percentile(sum.times, sum.count, 99), percentile(first, (size_t)w->runtimes, 50),
                 used);
}

static void prepare(struct world *w, char **argv)
{
    json_error_t why;
    struct ct_err err = CT_ERR_INIT;
    w->json = json_load_file(argv[1], 0, &why);
    w->runtimes = (int)strtol(argv[2], NULL, 10);
    w->seconds = strtod(argv[3], NULL);
    w->rate = strtod(argv[4], NULL);
    w->keep = strcmp(argv[5], "keep") == 0;
    w->model = text_of(w->json, "model");
    w->tls = SSL_CTX_new(TLS_client_method());
    if (!w->json || w->runtimes < 1 || w->runtimes > RUNTIMES_MAX ||
        !json_array_size(json_object_get(w->json, "keys")) || !w->tls ||
        SSL_CTX_load_verify_file(w->tls, text_of(w->json, "ca")) != 1 ||
        kx_measurement_digest(json_object_get(w->json, "measurements"), w->measurement, &err)) {
        die(argv[1], "not what it should be");
    }
    SSL_CTX_set_verify(w->tls, SSL_VERIFY_PEER, NULL);
}

int main(int argc, char **argv)
{
    static struct runtime all[RUNTIMES_MAX];
    struct world w = {0};
    if (argc != 6) {
        die("usage", "exchange_load WORLD RUNTIMES SECONDS RATE keep|anew");
    }
    (void)signal(SIGPIPE, SIG_IGN);
    prepare(&w, argv);
    (void)pthread_barrier_init(&w.ready, NULL, (unsigned)w.runtimes + 1);
    start(&w, all);
    (void)pthread_barrier_wait(&w.ready);
    (void)puts("ready");
    (void)fflush(stdout);
    (void)getchar(); /* until the one who measures the server says so */
    const double before = cpu();
    w.start = now();
    (void)pthread_barrier_wait(&w.ready);
    for (int i = 0; i < w.runtimes; i++) {
        (void)pthread_join(all[i].thread, NULL);
    }
    report(&w, all, cpu() - before, now() - w.start);
    return 0;
}
