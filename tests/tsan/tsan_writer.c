/* The writer's threads: encrypt, rekey, rewrap, and a run that is cancelled. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#include "format/writer.h"
#include "tests/unit/soak.h"

#define MUST(x)                                                                                    \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            (void)fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #x, err.msg);             \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static struct ct_err err;
static struct ct_write_keys keys;
static struct ct_keysource source; /* gives `keys` */
static int dir;
static uint64_t done, cancel_at;

static int master(struct ct_keysource *ks, const struct ct_keyref *ref, struct ct_secret **out,
                  struct ct_err *e)
{
    (void)ks;
    (void)ref;
    *out = ct_secret_from(ct_secret_peek(keys.master), 32, e);
    return *out ? 0 : -1;
}

static int verify(struct ct_keysource *ks, const struct ct_keyref *ref,
                  uint8_t pub[static CT_ED25519_PUB], struct ct_err *e)
{
    (void)ks;
    (void)ref;
    return ct_ed25519_public(keys.seed, pub, e);
}

static int progress(void *ctx, uint64_t bytes)
{
    (void)ctx;
    done += bytes; /* no lock: the writer promises one caller at a time */
    return cancel_at && done >= cancel_at;
}

static void put_plain(void)
{
    static const char json[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[9000000],\"data_offsets\":[0,"
                               "9000000]},\"b\":{\"dtype\":\"U8\",\"shape\":[7000000],"
                               "\"data_offsets\":[9000000,16000000]}} ";
    uint8_t prefix[8];
    ct_put_le64(prefix, sizeof(json) - 1);
    ct_autofd fd = openat(dir, "plain", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    MUST(fd >= 0 && ct_write_full(fd, prefix, 8, &err) == 0 &&
         ct_write_full(fd, json, sizeof(json) - 1, &err) == 0 &&
         ftruncate(fd, (off_t)(8 + sizeof(json) - 1 + 16000000)) == 0);
}

static bool choose(void *ctx, struct ct_span name)
{
    (void)ctx;
    return ct_span_eq(name, "a");
}

enum verb { ENCRYPT, REKEY, REWRAP };

static int run(enum verb verb, const char *in, const char *out, struct ct_write_options opt)
{
    struct ct_version v;
    struct ct_entry e;
    struct ct_entry_arena *arena = NULL;
    struct ct_source *s = ct_source_fd(openat(dir, in, O_RDONLY | O_CLOEXEC), &err);
    MUST(s && s->ops->version(s, &v, &err) == 0);
    done = 0;
    opt.threads = 4;
    opt.progress = progress;
    int r = verb == ENCRYPT ? ct_encrypt_file(s, &v, &keys, &opt, dir, out, &e, &arena, &err)
            : verb == REKEY ? ct_rekey_file(s, &v, &source, &keys, &opt, dir, out, &e, &arena, &err)
                            : ct_rewrap_file(s, &v, &source, &keys, &opt, dir, out, &err);
    ct_entry_arena_free(arena);
    ct_source_close(s);
    return r;
}

static void write_all(int version)
{
    struct ct_write_options opt = {.version = version, .chunk_size = 300000};
    MUST(run(ENCRYPT, "plain", "out", opt) == 0 && done == 16000000);
    MUST(run(REWRAP, "out", "rewrapped", opt) == 0 && done == 16000000);
    MUST(run(REKEY, "rewrapped", "rekeyed", opt) == 0 && done == 16000000);
    opt.choose = choose;
    MUST(run(ENCRYPT, "plain", "partial", opt) == 0);
    cancel_at = 5000000;
    MUST(run(ENCRYPT, "plain", "none", opt) == -1 && err.sys == ECANCELED);
    cancel_at = 0;
    MUST(unlinkat(dir, "none", 0) == -1 && errno == ENOENT);
    MUST(!unlinkat(dir, "out", 0) && !unlinkat(dir, "rewrapped", 0) &&
         !unlinkat(dir, "rekeyed", 0) && !unlinkat(dir, "partial", 0));
}

int main(void)
{
    char path[] = "/tmp/kvfs-tsan-XXXXXX";
    static const uint8_t bytes[32] = {1};
    MUST(ct_secret_init(&err) == 0 && mkdtemp(path));
    dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct ct_secret *secret = ct_secret_from(bytes, sizeof(bytes), &err);
    keys = (struct ct_write_keys){.master = secret, .alg = CT_ALG_AES256GCM, .seed = secret};
    source = (struct ct_keysource){.master = master, .verify = verify};
    put_plain();
    do {
        write_all(1);
        write_all(2);
    } while (soaking());
    MUST(!unlinkat(dir, "plain", 0) && !rmdir(path)); /* nothing else is left */
    ct_secret_free(secret);
    close(dir);
    return 0;
}
