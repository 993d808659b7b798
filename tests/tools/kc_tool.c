/*
 * The client's half of the exchange with its bytes on stdin and stdout, for tests that carry them:
 *     kc_tool measure
 *     kc_tool exchange PIN MODEL DIR SEEN SHARD...     the deploy key is in $KEY
 * Each request is a line `METHOD PATH BODY`, each answer a line `STATUS BODY`. After the release
 * every shard is opened with what was released; then the lease is renewed, once.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/model.h"
#include "keyclient/exchange.h"
#include "keyclient/measure.h"

static int fail(const struct ct_err *err)
{
    (void)printf("failed %s %s\n", ct_errno_name(ct_err_errno(err)), err->msg);
    return 1;
}

static int measure(struct ct_err *err)
{
    char digest[KX_HEX + 1];
    kx_autojson m = kc_measure("none", NULL, 0, err);
    if (!m || kx_measurement_digest(m, digest, err)) {
        return fail(err);
    }
    (void)puts(digest);
    return 0;
}

static struct ct_source *open_shard(const char *dir, const char *name, struct ct_version *v,
                                    struct ct_err *err)
{
    char path[4096];
    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    struct ct_source *s = ct_source_fd(open(path, O_RDONLY | O_CLOEXEC), err);
    if (s && s->ops->version(s, v, err)) {
        ct_source_close(s);
        s = NULL;
    }
    return s;
}

static int add_shard(struct kc_shards *shards, const char *dir, const char *name,
                     struct ct_err *err)
{
    struct ct_version v;
    struct ct_header *h = NULL;
    ct_autobuf raw = {0};
    struct ct_source *s = open_shard(dir, name, &v, err);
    int r = !s || ct_header_read(s, &v, &raw, &h, err) ||
                    kc_shards_add(shards, name, raw.data, raw.len, h->body_len, err)
                ? -1
                : 0;
    ct_header_free(h);
    ct_source_close(s);
    return r;
}

static int run(struct kc_exchange *x, struct ct_err *err)
{
    static char line[1 << 24];
    enum kc_step step = KC_GO_ON;
    kc_begin(x);
    while (step == KC_GO_ON) {
        struct kc_request q = {0};
        enum kc_again again = KC_STAYS;
        if (kc_next(x, &q, err)) {
            return -1;
        }
        (void)printf("%s %s %.*s\n", q.method, q.path, (int)q.body.len, (char *)q.body.data);
        (void)fflush(stdout);
        ct_buf_free(&q.body);
        if (!fgets(line, sizeof(line), stdin)) {
            return ct_err_set(err, CT_IO, "nobody answers");
        }
        char *body = NULL;
        unsigned status = (unsigned)strtoul(line, &body, 10);
        step = kc_take(x, status, (const uint8_t *)body, strlen(body), 1000, &again, err);
    }
    return step == KC_HELD ? 0 : -1;
}

static int open_models(struct kc_exchange *x, const char *dir, struct ct_err *err)
{
    const struct kc_shards *shards = kc_exchange_shards(x);
    for (size_t i = 0; i < shards->count; i++) {
        const struct kc_shard *shard = &shards->items[i];
        struct ct_model *m = NULL;
        struct ct_model_info info;
        struct ct_open how = {.keys = kc_exchange_keys(x),
                              .path = "",
                              .header = shard->header.data,
                              .header_len = shard->header.len};
        how.source = open_shard(dir, shard->path, &how.version, err);
        if (!how.source || ct_model_open(&how, &m, err)) {
            return ct_err_wrap(err, "%s", shard->path);
        }
        ct_model_info(m, &info);
        (void)printf("opened %s %zu/%zu %s\n", shard->path, info.unwrapped, info.encrypted,
                     info.header_sha256);
        ct_model_unref(m);
    }
    return 0;
}

static int exchange(char **a, int shard_count, struct ct_err *err)
{
    struct kc_runtime r = {0};
    struct kc_shards shards = {0};
    const char *key = getenv("KEY");
    int rc = kc_runtime_init(&r, a[0], "test", key ? key : "", key ? strlen(key) : 0,
                             kc_measure("none", NULL, 0, err), err);
    for (int i = 0; rc == 0 && i < shard_count; i++) {
        rc = add_shard(&shards, a[2], a[4 + i], err);
    }
    struct kc_exchange *x =
        rc ? NULL : kc_exchange_new(&r, a[1], &shards, strtoll(a[3], NULL, 10), err);
    rc = !x || run(x, err) || open_models(x, a[2], err) || run(x, err) ? fail(err) : 0;
    if (rc == 0) {
        (void)printf("held %s %lld %s\n", kc_lease(x)->id, (long long)kc_lease(x)->generation,
                     kc_manifest_sha256(x) ? kc_manifest_sha256(x) : "-");
    }
    kc_exchange_free(x);
    kc_shards_free(&shards);
    kc_runtime_free(&r);
    return rc;
}

int main(int argc, char **argv)
{
    struct ct_err err = CT_ERR_INIT;
    if (ct_secret_init(&err)) {
        return fail(&err);
    }
    if (argc == 2 && strcmp(argv[1], "measure") == 0) {
        return measure(&err);
    }
    return argc > 6 && strcmp(argv[1], "exchange") == 0 ? exchange(argv + 2, argc - 6, &err) : 2;
}
