#include <errno.h>

#include "format/write/write.h"

struct ct_entry_arena *ct_entry_arena_new(struct ct_err *err)
{
    struct ct_entry_arena *a = calloc(1, sizeof(*a));
    if (!a) {
        ct_err_set(err, CT_NOMEM, "no memory for a manifest's entry");
    }
    return a;
}

void ct_entry_arena_free(struct ct_entry_arena *a)
{
    if (a) {
        ct_arena_free(&a->arena);
        free(a);
    }
}

static int new_digests(struct ct_arena *arena, uint64_t begin, uint64_t end, struct ct_digests *d,
                       struct ct_err *err)
{
    uint64_t len = end - begin;
    *d = (struct ct_digests){.begin = begin, .end = end, .piece = CT_DIGEST_PIECE};
    d->count = len / CT_DIGEST_PIECE + (len % CT_DIGEST_PIECE != 0);
    d->sha256 = ct_arena_alloc(arena, d->count, CT_DIGEST, err);
    return d->sha256 ? 0 : -1;
}

int ct_plain_ranges(const struct ct_header *h, const struct ct_encryption_field *enc,
                    struct ct_arena *arena, struct ct_digests **plain, size_t *count,
                    struct ct_err *err)
{
    size_t n = 0;
    for (size_t i = 0; i < h->tensor_count; i++) {
        n += !enc->entries[i].encrypted && h->tensors[i].end > h->tensors[i].begin;
    }
    *plain = ct_arena_alloc(arena, n, sizeof(**plain), err);
    *count = 0;
    for (size_t i = 0; *plain && *count < n; i++) {
        const struct ct_tensor *t = &h->tensors[i];
        if (!enc->entries[i].encrypted && t->end > t->begin &&
            new_digests(arena, t->begin, t->end, &(*plain)[(*count)++], err)) {
            return -1;
        }
    }
    return *plain ? 0 : -1;
}

/* ---- a shard that is there already ---- */

static int digest_range(struct ct_source *in, const struct ct_version *v, uint64_t base,
                        const struct ct_digests *d, uint8_t *buf, struct ct_err *err)
{
    uint8_t(*to)[CT_DIGEST] = (uint8_t(*)[CT_DIGEST])d->sha256;
    uint64_t at = d->begin;
    for (size_t i = 0; i < d->count; i++) {
        uint64_t left = d->end - at;
        size_t n = left < CT_DIGEST_PIECE ? (size_t)left : CT_DIGEST_PIECE;
        if (ct_source_read(in, buf, n, base + at, v, err) || ct_sha256(buf, n, to[i], err)) {
            return -1;
        }
        at += n;
    }
    return 0;
}

static int fill_shard(struct ct_source *in, const struct ct_version *v, const struct ct_old *o,
                      struct ct_entry *entry, struct ct_arena *arena, struct ct_err *err)
{
    struct ct_digests *plain = NULL;
    ct_autobuf scratch = {0};
    uint8_t *buf = ct_buf_reserve(&scratch, CT_DIGEST_PIECE);
    if (!buf) {
        return ct_buf_ok(&scratch, err);
    }
    *entry = (struct ct_entry){.kind = CT_ENTRY_SHARD, .size = o->header->body_len};
    if (ct_immutable_digest(o->header, &o->keys, &o->enc, entry->sha256, err) ||
        ct_plain_ranges(o->header, &o->enc, arena, &plain, &entry->plain_count, err)) {
        return -1;
    }
    entry->plain = plain;
    for (size_t i = 0; i < entry->plain_count; i++) {
        if (digest_range(in, v, CT_PREFIX + o->header->json_len, &plain[i], buf, err)) {
            return -1;
        }
    }
    return ct_source_check(in, v, err);
}

int ct_shard_entry(struct ct_source *in, const struct ct_version *v, struct ct_keysource *keys,
                   struct ct_entry *entry, struct ct_entry_arena **arena, struct ct_err *err)
{
    struct ct_old o = {0};
    struct ct_entry_arena *a = ct_entry_arena_new(err);
    int r = !a || ct_old_read(&o, in, v, keys, err) || fill_shard(in, v, &o, entry, &a->arena, err)
                ? -1
                : 0;
    if (r == 0) {
        *arena = a;
    } else {
        ct_entry_arena_free(a);
    }
    ct_old_free(&o);
    return r;
}

/* ---- side files ---- */

static int copy_piece(struct ct_source *in, const struct ct_version *v, uint64_t at, uint8_t *buf,
                      size_t n, int out, struct ct_err *err)
{
    if (ct_source_read(in, buf, n, at, v, err)) {
        return -1;
    }
    return out >= 0 ? ct_pwrite_full(out, buf, n, at, err) : 0;
}

static int copy_and_digest(struct ct_source *in, const struct ct_version *v,
                           const struct ct_write_options *opt, int out, struct ct_entry *entry,
                           struct ct_err *err)
{
    ct_autosha256 *whole = ct_sha256_new(err);
    ct_autobuf scratch = {0};
    uint8_t *buf = ct_buf_reserve(&scratch, CT_DIGEST_PIECE);
    uint8_t(*pieces)[CT_DIGEST] = (uint8_t(*)[CT_DIGEST])entry->pieces.sha256;
    if (!whole || !buf) {
        return buf ? -1 : ct_buf_ok(&scratch, err);
    }
    for (uint64_t at = 0; at < v->size;) {
        uint64_t left = v->size - at;
        size_t n = left < CT_DIGEST_PIECE ? (size_t)left : CT_DIGEST_PIECE;
        if (copy_piece(in, v, at, buf, n, out, err) || ct_sha256_update(whole, buf, n, err) ||
            (pieces && ct_sha256(buf, n, pieces[at / CT_DIGEST_PIECE], err))) {
            return -1;
        }
        if (opt && opt->progress && opt->progress(opt->progress_ctx, n)) {
            return ct_err_sys(err, ECANCELED, "not finished");
        }
        at += n;
    }
    return ct_sha256_take(whole, entry->sha256, err) || ct_source_check(in, v, err) ? -1 : 0;
}

int ct_copy_file(struct ct_source *in, const struct ct_version *v,
                 const struct ct_write_options *opt, int dirfd, const char *name, mode_t mode,
                 struct ct_entry *entry, struct ct_entry_arena **arena, struct ct_err *err)
{
    struct ct_output output = {.file.fd = -1};
    struct ct_entry_arena *a = ct_entry_arena_new(err);
    int r = a ? 0 : -1;
    *entry = (struct ct_entry){.kind = CT_ENTRY_FILE, .size = v->size};
    if (r == 0 && v->size > CT_DIGEST_PIECE) {
        r = new_digests(&a->arena, 0, v->size, &entry->pieces, err);
    }
    if (r == 0 && name) {
        r = ct_output_create(&output, v->size, dirfd, name, mode, err);
    }
    if (r == 0) {
        r = copy_and_digest(in, v, opt, output.file.fd, entry, err);
    }
    if (r == 0 && name) {
        r = ct_newfile_commit(&output.file, false, err);
    }
    ct_output_abort(&output);
    if (r == 0) {
        *arena = a;
    } else {
        ct_entry_arena_free(a);
    }
    return r;
}
