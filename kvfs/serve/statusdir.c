#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kvfs/serve/leases.h"
#include "kvfs/serve/resident.h"

static const char *const names[KVFS_STATUS_FILES] = {"status.json", "metrics", "log", "manifest"};
enum { STATUS, METRICS, LOG, MANIFEST };

static int self_status = -1; /* /proc/self/status, opened before there is no path any more */

void kvfs_status_start(void)
{
    self_status = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
}

bool kvfs_status_is(uint64_t id)
{
    return id >= KVFS_STATUS_DIR && id <= KVFS_STATUS_DIR + KVFS_STATUS_FILES;
}

uint64_t kvfs_status_lookup(const char *name)
{
    for (unsigned i = 0; i < KVFS_STATUS_FILES; i++) {
        if (strcmp(name, names[i]) == 0) {
            return KVFS_STATUS_DIR + 1 + i;
        }
    }
    return 0;
}

const char *kvfs_status_name(unsigned i)
{
    return names[i];
}

void kvfs_status_attributes(const struct kvfs_serve *s, uint64_t id, struct stat *st)
{
    bool dir = id == KVFS_STATUS_DIR;
    memset(st, 0, sizeof(*st));
    st->st_ino = id;
    st->st_nlink = dir ? 2 : 1;
    st->st_mode = dir ? S_IFDIR | 0550 : S_IFREG | 0440;
    st->st_uid = s->config.uid;
    st->st_gid = s->config.gid;
    st->st_mtim.tv_sec = st->st_ctim.tv_sec = st->st_atim.tv_sec = time(NULL);
}

/* A line such as "VmLck:      12 kB", in bytes; -1 if it cannot be read. */
static long long self_bytes(const char *field)
{
    char text[4096];
    ssize_t n = self_status < 0 ? -1 : pread(self_status, text, sizeof(text) - 1, 0);
    if (n <= 0) {
        return -1;
    }
    text[n] = '\0';
    const char *at = strstr(text, field);
    long long kib = -1;
    if (at) {
        kib = strtoll(at + strlen(field), NULL, 10);
    }
    return kib < 0 ? -1 : kib * 1024;
}

/* ---- status.json ---- */

static json_t *text_or(const char *p)
{
    json_t *t = json_string(p);
    return t ? t : json_string("(not UTF-8)");
}

static const char *verdict_name(const struct kvfs_node *n)
{
    switch (n->verdict.kind) {
    case KVFS_VERDICT_MODEL:
        return "encrypted";
    case KVFS_VERDICT_VOUCHED:
        return "vouched for";
    case KVFS_VERDICT_PASSED:
        return "passed on";
    case KVFS_VERDICT_REFUSED:
        break;
    }
    return "refused";
}

static void add_model(json_t *file, const struct ct_model *m)
{
    struct ct_model_info i;
    ct_model_info(m, &i);
    json_object_set_new(file, "format_version", json_integer(i.version));
    json_object_set_new(file, "alg", json_string(ct_alg_name(i.alg)));
    json_object_set_new(file, "tensors", json_integer((json_int_t)i.tensors));
    json_object_set_new(file, "encrypted", json_integer((json_int_t)i.encrypted));
    json_object_set_new(file, "unwrapped", json_integer((json_int_t)i.unwrapped));
    json_object_set_new(file, "unauthenticated_bytes",
                        json_integer((json_int_t)i.unauthenticated_bytes));
    json_object_set_new(file, "memory", json_integer((json_int_t)i.memory));
    json_object_set_new(file, "header_sha256", json_string(i.header_sha256));
}

struct walk {
    struct kvfs_serve *s;
    json_t *files;
};

static void add_file(void *ctx, struct kvfs_node *n)
{
    const struct walk *walk = ctx;
    if (n->kind != KVFS_NODE_FILE) {
        return;
    }
    json_t *paths = json_array();
    for (size_t i = 0; i < n->path_count; i++) {
        json_array_append_new(paths, text_or(n->paths[i]));
    }
    struct kvfs_resident_info cache;
    kvfs_resident_info(walk->s, n, &cache);
    pthread_mutex_lock(&n->lock);
    json_t *f = json_pack(
        "{s:o,s:I,s:s,s:b,s:I,s:i,s:b,s:b,s:I,s:I,s:I,s:I}", "paths", paths, "node",
        (json_int_t)n->id, "verdict", verdict_name(n), "manifest", n->verdict.entry != NULL, "size",
        (json_int_t)n->measure.view_size, "open", (int)n->open_count, "pinned", n->pinned, "stale",
        n->stale, "opens", (json_int_t)__atomic_load_n(&n->stats.opens, __ATOMIC_RELAXED), "reads",
        (json_int_t)__atomic_load_n(&n->stats.reads, __ATOMIC_RELAXED), "bytes_read",
        (json_int_t)__atomic_load_n(&n->stats.bytes_read, __ATOMIC_RELAXED), "errors",
        (json_int_t)__atomic_load_n(&n->stats.errors, __ATOMIC_RELAXED));
    const struct ct_err *why =
        n->verdict.kind == KVFS_VERDICT_REFUSED ? &n->verdict.why : &n->last_error;
    if (f && why->code != CT_OK) {
        json_object_set_new(f, "error", json_string(ct_errno_name(ct_err_errno(why))));
        json_object_set_new(f, "why", text_or(why->msg));
    }
    if (f && n->measure.enc_kid[0]) {
        json_object_set_new(f, "kid", text_or(n->measure.enc_kid));
    }
    if (f && n->content && kvfs_content_as_model(n->content)) {
        add_model(f, kvfs_content_as_model(n->content));
    }
    pthread_mutex_unlock(&n->lock);
    if (f) {
        json_object_set_new(f, "cache", json_string(cache.mode));
        if (cache.bytes) {
            json_object_set_new(f, "resident_bytes", json_integer((json_int_t)cache.done));
        }
        json_array_append_new(walk->files, f);
    }
}

static json_t *memory_of(struct kvfs_serve *s, const struct kvfs_chunks_stats *c)
{
    uint64_t limit = 0;
    uint64_t resident = kvfs_resident_used(s, &limit);
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "resident", (json_int_t)resident,
                     "resident_bound", (json_int_t)limit, "bound", (json_int_t)s->config.memory,
                     "slots", (json_int_t)c->slots, "slots_used", (json_int_t)c->slots_used,
                     "locked", (json_int_t)self_bytes("VmLck:"), "secrets",
                     (json_int_t)ct_secret_total());
}

static json_t *counters_of(const struct kvfs_chunks_stats *c)
{
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "hits", (json_int_t)c->hits, "misses",
                     (json_int_t)c->misses, "waits", (json_int_t)c->waits, "prefetched",
                     (json_int_t)c->prefetched, "evicted_unread", (json_int_t)c->evicted_unread,
                     "bytes_decrypted", (json_int_t)c->bytes_decrypted, "bytes_stored",
                     (json_int_t)c->bytes_stored, "parked", (json_int_t)c->parked);
}

/* What decrypts, and what its trial at the start gave. */
static json_t *crypto_of(const struct kvfs_config *c)
{
    json_t *all = json_object();
    json_object_set_new(all, "option", json_string(ct_crypto_names[c->crypto]));
    for (enum ct_alg alg = CT_ALG_AES128GCM; alg <= CT_ALG_CHACHA20POLY1305; alg++) {
        struct ct_aead_choice choices[CT_AEAD_CHOICES];
        size_t n = ct_aead_choices(alg, choices);
        json_t *of = json_object();
        for (size_t i = 0; i < n; i++) {
            json_t *rates =
                json_pack("{s:f,s:f}", "openssl", choices[i].openssl, "ipsec", choices[i].ipsec);
            json_object_set_new(
                of, choices[i].operation,
                json_pack("{s:s,s:o}", "backend", choices[i].backend, "gb_per_second", rates));
        }
        json_object_set_new(all, ct_alg_name(alg), of);
    }
    return all;
}

static json_t *options_of(const struct kvfs_config *c)
{
    static const char *const plain[] = {"safe", "all", "none"};
    static const char *const cache[] = {[KVFS_CACHE_AUTO] = "auto",
                                        [KVFS_CACHE_PAGE] = "page",
                                        [KVFS_CACHE_RESIDENT] = "resident",
                                        [KVFS_CACHE_DIRECT] = "direct"};
    static const char *const levels[] = {"error", "warning", "info", "debug"};
    return json_pack(
        "{s:s,s:s,s:s,s:b,s:i,s:i,s:b,s:I,s:i,s:s,s:I,s:i,s:s}", "plain", plain[c->plain],
        "manifest", c->manifest == KVFS_MANIFEST_REQUIRE ? "require" : "auto", "update",
        c->update == KVFS_UPDATE_PIN ? "pin" : "follow", "require_all", c->require_all, "uid",
        (int)c->uid, "gid", (int)c->gid, "allow_other", c->allow_other, "memory",
        (json_int_t)c->memory, "threads", (int)c->threads, "cache", cache[c->cache], "resident",
        (json_int_t)c->resident, "linger", (int)c->linger, "log_level", levels[c->log_level]);
}

static const char *state_of(struct kvfs_serve *s)
{
    return atomic_load(&s->taken) ? "sealed" : atomic_load(&s->sealed) ? "sealing" : "serving";
}

/* Where keys come from: this mount's own files, or a server. */
static json_t *keys_of(const struct kvfs_serve *s)
{
    return s->leases ? json_pack("{s:s,s:o,s:s}", "source", "server", "server",
                                 text_or(s->config.server), "server_key", s->config.server_key)
                     : json_pack("{s:s,s:I}", "source", "local", "count",
                                 (json_int_t)ct_keyring_count(s->keyring));
}

static int put_status(struct kvfs_serve *s, struct ct_buf *out)
{
    struct kvfs_chunks_stats c;
    json_t *files = json_array();
    kvfs_chunks_stats(s->chunks, &c);
    struct walk walk = {s, files};
    kvfs_table_each(s->table, add_file, &walk);
    json_t *all = json_pack(
        "{s:s,s:o,s:o,s:i,s:I,s:s,s:o,s:o,s:{s:s,s:b},s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "version",
        KVFS_VERSION, "source", text_or(s->config.source), "mountpoint",
        text_or(s->config.mountpoint), "worker", (int)getpid(), "uptime",
        (json_int_t)(time(NULL) - s->started), "state", state_of(s), "keys", keys_of(s), "leases",
        kvfs_leases_status(s->leases), "guard", "profile", s->config.profile, "admits",
        s->config.admits, "options", options_of(&s->config), "memory", memory_of(s, &c), "crypto",
        crypto_of(&s->config), "counters", counters_of(&c), "manifests", kvfs_judge_manifests(s),
        "files", files, "failures", kvfs_reply_recent());
    if (all && atomic_load(&s->sealed)) {
        json_object_set_new(all, "sealed", text_or(s->seal_why.msg));
    }
    char *text =
        all ? json_dumps(all, JSON_INDENT(1) | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(4)) : NULL;
    if (text) {
        ct_buf_puts(out, text);
        ct_buf_putc(out, '\n');
    }
    ct_wiping_free(text);
    json_decref(all);
    return text ? 0 : -1;
}

/* ---- metrics: OpenMetrics text ---- */

static void put_counter(struct ct_buf *out, const char *name, const char *help, uint64_t v)
{
    ct_buf_printf(out, "# TYPE kvfs_%s counter\n# HELP kvfs_%s %s\nkvfs_%s_total %llu\n", name,
                  name, help, name, (unsigned long long)v);
}

static void put_gauge(struct ct_buf *out, const char *name, const char *help, long long v)
{
    ct_buf_printf(out, "# TYPE kvfs_%s gauge\n# HELP kvfs_%s %s\nkvfs_%s %lld\n", name, name, help,
                  name, v);
}

struct sums {
    uint64_t opens, reads, bytes, errors, refused, files;
};

static void add_sums(void *ctx, struct kvfs_node *n)
{
    struct sums *t = ctx;
    if (n->kind == KVFS_NODE_FILE) {
        t->files++;
        t->refused += n->verdict.kind == KVFS_VERDICT_REFUSED;
        t->opens += __atomic_load_n(&n->stats.opens, __ATOMIC_RELAXED);
        t->reads += __atomic_load_n(&n->stats.reads, __ATOMIC_RELAXED);
        t->bytes += __atomic_load_n(&n->stats.bytes_read, __ATOMIC_RELAXED);
        t->errors += __atomic_load_n(&n->stats.errors, __ATOMIC_RELAXED);
    }
}

static void put_metrics(struct kvfs_serve *s, struct ct_buf *out)
{
    struct kvfs_chunks_stats c;
    struct sums t = {0};
    kvfs_chunks_stats(s->chunks, &c);
    kvfs_table_each(s->table, add_sums, &t);
    put_gauge(out, "sealed", "Whether the mount is sealed.", atomic_load(&s->sealed));
    put_gauge(out, "files", "Files that the kernel knows.", (long long)t.files);
    put_gauge(out, "files_refused", "Files among them that are refused.", (long long)t.refused);
    put_gauge(out, "slots", "Slots for decrypted extents.", (long long)c.slots);
    put_gauge(out, "slots_used", "Slots in use.", (long long)c.slots_used);
    put_gauge(out, "locked_bytes", "Memory locked into RAM.", self_bytes("VmLck:"));
    put_gauge(out, "secret_bytes", "Key bytes held.", (long long)ct_secret_total());
    put_counter(out, "opens", "Opens that succeeded.", t.opens);
    put_counter(out, "reads", "Reads that reached the worker.", t.reads);
    put_counter(out, "read_bytes", "Bytes that these asked for.", t.bytes);
    put_counter(out, "errors", "Opens and reads that failed.", t.errors);
    put_counter(out, "decrypted_bytes", "Bytes decrypted and authenticated.", c.bytes_decrypted);
    put_counter(out, "stored_bytes", "Bytes put into the page cache before they were asked for.",
                c.bytes_stored);
    put_counter(out, "extent_hits", "Extents found decrypted.", c.hits);
    put_counter(out, "extent_misses", "Extents decrypted on demand.", c.misses);
    put_counter(out, "extent_waits", "Reads that waited for another's decryption.", c.waits);
    put_counter(out, "extents_prefetched", "Extents decrypted ahead.", c.prefetched);
    ct_buf_puts(out, "# EOF\n");
}

/* The manifest of the root directory as it lies in the source; empty where there is none. */
static void put_manifest(struct kvfs_serve *s, struct ct_buf *out)
{
    struct kvfs_opened opened;
    if (kvfs_source_open(s, CT_MANIFEST_NAME, &opened, NULL) == 0 && opened.fd >= 0) {
        (void)ct_read_fd(opened.fd, CT_MANIFEST_MAX, out, NULL);
    }
    kvfs_opened_release(&opened);
}

int kvfs_status_content(struct kvfs_serve *s, uint64_t id, struct ct_buf *out, struct ct_err *err)
{
    int r = 0;
    switch (id - KVFS_STATUS_DIR - 1) {
    case STATUS:
        r = put_status(s, out);
        break;
    case METRICS:
        put_metrics(s, out);
        break;
    case LOG:
        kvfs_log_recent(out);
        break;
    case MANIFEST:
        put_manifest(s, out);
        break;
    default:
        break;
    }
    if (r || ct_buf_ok(out, err)) {
        ct_buf_free(out);
        return ct_err_set(err, CT_NOMEM, "no memory for status");
    }
    return 0;
}
