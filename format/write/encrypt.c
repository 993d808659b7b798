#include <string.h>

#include "format/write/write.h"

/* All but the path. */
static void fill_entry(const struct ct_plan *p, const uint8_t digest[static CT_DIGEST],
                       struct ct_entry *entry)
{
    *entry = (struct ct_entry){
        .kind = CT_ENTRY_SHARD,
        .size = p->header->body_len,
        .plain_count = p->plain_count,
        .plain = p->plain,
    };
    memcpy(entry->sha256, digest, CT_DIGEST);
}

static int write_planned(struct ct_output *o, struct ct_source *in, const struct ct_version *v,
                         struct ct_plan *p, const struct ct_header_out *header,
                         const struct ct_write_options *opt, int dirfd, const char *name,
                         uint8_t digest[static CT_DIGEST], struct ct_err *err)
{
    uint64_t len = 0;
    ct_autobuf text = {0};
    if (ct_header_out_len(header, &len, err) ||
        ct_output_open(o, in, v, p->header, len, dirfd, name, err) ||
        ct_body_encrypt(&o->body, p, opt, err) || ct_header_out(header, &text, digest, err)) {
        return -1;
    }
    return ct_output_commit(o, &text, err);
}

int ct_encrypt_parsed(struct ct_source *in, const struct ct_version *v, const struct ct_header *h,
                      const struct ct_write_keys *keys, const struct ct_write_options *opt,
                      struct ct_span policy, int dirfd, const char *name, struct ct_entry *entry,
                      struct ct_entry_arena **arena, struct ct_err *err)
{
    uint8_t digest[CT_DIGEST];
    struct ct_plan plan = {0};
    struct ct_output output = {.file.fd = -1};
    struct ct_entry_arena *a = entry ? ct_entry_arena_new(err) : NULL;
    const struct ct_header_out header = {h, &plan.keys, &plan.enc, policy, keys->seed};
    int r = -1;
    if ((a || !entry) && ct_plan_make(&plan, h, keys, opt, a ? &a->arena : NULL, err) == 0) {
        r = write_planned(&output, in, v, &plan, &header, opt, dirfd, name, digest, err);
    }
    if (r == 0 && entry) {
        fill_entry(&plan, digest, entry);
        *arena = a;
        a = NULL;
    }
    ct_entry_arena_free(a);
    ct_output_abort(&output);
    ct_plan_free(&plan);
    return r;
}

static int refuse_reserved(const struct ct_header *h, struct ct_err *err)
{
    if (ct_meta_is_encrypted(h)) {
        return ct_err_set(err, CT_USAGE, "it is encrypted already: use rewrap or rekey");
    }
    for (size_t i = 0; i < h->meta_count; i++) {
        struct ct_span key = h->meta[i].key;
        if (ct_meta_is_reserved(key)) {
            return ct_err_set(err, CT_USAGE, "its metadata has the reserved field %.*s", (int)key.n,
                              key.p);
        }
    }
    return 0;
}

/* Reads what is to be encrypted, and makes the policy's text. */
static int read_plain(struct ct_source *in, const struct ct_version *v,
                      const struct ct_write_options *opt, struct ct_header **h,
                      struct ct_buf *policy, struct ct_err *err)
{
    if (ct_header_read(in, v, NULL, h, err)) {
        return -1;
    }
    return refuse_reserved(*h, err) ||
                   ct_policy_text(opt->policy_local, opt->policy_remote, policy, err)
               ? -1
               : 0;
}

int ct_encrypt_file(struct ct_source *in, const struct ct_version *v,
                    const struct ct_write_keys *keys, const struct ct_write_options *opt, int dirfd,
                    const char *name, struct ct_entry *entry, struct ct_entry_arena **arena,
                    struct ct_err *err)
{
    struct ct_header *h = NULL;
    ct_autobuf policy = {0};
    int r = read_plain(in, v, opt, &h, &policy, err);
    if (r == 0) {
        const struct ct_span text = {(const char *)policy.data, policy.len};
        r = ct_encrypt_parsed(in, v, h, keys, opt, text, dirfd, name, entry, arena, err);
    }
    ct_header_free(h);
    return r;
}

/* Keys, IVs and tags have the same lengths whatever they are, so those of a plan that nothing is
 * encrypted with will do. */
int ct_encrypt_header_len(struct ct_source *in, const struct ct_version *v,
                          const struct ct_write_keys *keys, const struct ct_write_options *opt,
                          uint64_t *len, struct ct_err *err)
{
    struct ct_header *h = NULL;
    struct ct_plan plan = {0};
    ct_autobuf policy = {0};
    int r = read_plain(in, v, opt, &h, &policy, err);
    r = r ? r : ct_plan_make(&plan, h, keys, opt, NULL, err);
    if (r == 0) {
        const struct ct_span text = {(const char *)policy.data, policy.len};
        const struct ct_header_out header = {h, &plan.keys, &plan.enc, text, keys->seed};
        r = ct_header_out_len(&header, len, err);
    }
    ct_plan_free(&plan);
    ct_header_free(h);
    return r;
}
