#include <string.h>

#include "format/write/view_source.h"
#include "format/write/write.h"

/* Chooses what was encrypted before. */
static bool was_encrypted(void *ctx, struct ct_span tensor)
{
    const struct ct_old *o = ctx;
    ptrdiff_t i = ct_header_find(o->header, tensor);
    return i >= 0 && o->enc.entries[i].encrypted;
}

/* What was there, unless `opt` says otherwise. A policy with a NUL in it is no text of Rego. */
static int policy_text(const struct ct_old *o, const struct ct_write_options *opt,
                       struct ct_buf *out, struct ct_err *err)
{
    struct ct_policy_field f = {0};
    if (ct_meta_policy(o->header, &f, err)) {
        return -1;
    }
    int r = strlen(f.local) == f.local_len && strlen(f.remote) == f.remote_len
                ? ct_policy_text(opt->policy_local ? opt->policy_local : f.local,
                                 opt->policy_remote ? opt->policy_remote : f.remote, out, err)
                : ct_err_set(err, CT_MALFORMED, "the policy has a NUL in it");
    ct_policy_field_free(&f);
    return r;
}

/* Writes the view of the old file as `ct_encrypt_file()` writes any plain one. */
static int rekey(struct ct_source *view, const struct ct_version *v, struct ct_old *o,
                 const struct ct_write_keys *keys, const struct ct_write_options *opt, int dirfd,
                 const char *name, struct ct_entry *entry, struct ct_entry_arena **arena,
                 struct ct_err *err)
{
    struct ct_header *h = NULL;
    struct ct_write_options how = *opt;
    ct_autobuf policy = {0};
    if (!opt->choose) {
        how.choose = was_encrypted;
        how.choose_ctx = o;
    }
    if (policy_text(o, opt, &policy, err) || ct_header_read(view, v, NULL, &h, err)) {
        return -1;
    }
    const struct ct_span text = {(const char *)policy.data, policy.len};
    int r = ct_encrypt_parsed(view, v, h, keys, &how, text, dirfd, name, entry, arena, err);
    ct_header_free(h);
    return r;
}

int ct_rekey_file(struct ct_source *in, const struct ct_version *v, struct ct_keysource *old,
                  const struct ct_write_keys *keys, const struct ct_write_options *opt, int dirfd,
                  const char *name, struct ct_entry *entry, struct ct_entry_arena **arena,
                  struct ct_err *err)
{
    struct ct_old o = {0};
    struct ct_version plain;
    struct ct_source *view = NULL;
    int r = ct_old_read(&o, in, v, old, err);
    if (r == 0) {
        view = ct_view_source(in, v, old, 2 * (size_t)ct_workers_count(opt), &plain, err);
        r = view ? rekey(view, &plain, &o, keys, opt, dirfd, name, entry, arena, err) : -1;
    }
    ct_source_close(view);
    ct_old_free(&o);
    return r;
}
