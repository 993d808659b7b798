#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvfs/serve/leases.h"
#include "kvfs/serve/paths.h"

enum { DEPTH = 32 };

struct scan {
    struct kvfs_serve *s;
    struct ct_err *err;
    struct note {
        unsigned count;
        char first[512]; /* which, and why */
    } locked_out, refused, leaving;
    unsigned models, plain; /* plain ones among the refused */
};

static void take_note(struct note *n, const char *path, const struct ct_err *why)
{
    if (n->count++ == 0) {
        (void)snprintf(n->first, sizeof(n->first), "%s: %s", path, why->msg);
    }
}

/* Whether a key of this kid is there; a header without kids is for open to judge. */
static void check_keys(struct scan *c, const char *path, const struct ct_version *v,
                       const struct ct_measure *m)
{
    uint8_t pub[CT_ED25519_PUB];
    struct ct_err why = CT_ERR_INIT;
    if (c->s->leases) {
        if (kvfs_leases_check(c->s->leases, v, &why)) {
            take_note(&c->locked_out, path, &why);
        }
        return;
    }
    struct ct_keyref sign = {.kid = {m->sign_kid, strlen(m->sign_kid)}};
    struct ct_secret *master = NULL;
    bool missing = m->sign_kid[0] && c->s->keys->verify(c->s->keys, &sign, pub, &why);
    for (enum ct_alg alg = CT_ALG_AES128GCM;
         !missing && m->enc_kid[0] && alg <= CT_ALG_CHACHA20POLY1305; alg++) {
        struct ct_keyref enc = {.alg = alg, .kid = {m->enc_kid, strlen(m->enc_kid)}};
        why = (struct ct_err)CT_ERR_INIT;
        /* Another algorithm's key is CT_REJECTED: then the kid is known. jku is for open. */
        int r = c->s->keys->master(c->s->keys, &enc, &master, &why);
        ct_secret_free(master);
        master = NULL;
        if (r == 0 || why.code == CT_REJECTED) {
            return;
        }
        missing = alg == CT_ALG_CHACHA20POLY1305 && !c->s->config.have_key_dir;
    }
    if (missing) {
        take_note(&c->locked_out, path, &why);
    }
}

static int look_at(struct scan *c, const char *path);

static int look_into(struct scan *c, const char *path, int fd, unsigned depth)
{
    DIR *dir = fdopendir(fd);
    int r = 0;
    if (!dir) {
        return ct_err_set(c->err, CT_IO, "%s cannot be listed", path);
    }
    for (const struct dirent *d; r == 0 && (d = readdir(dir));) {
        char below[PATH_MAX];
        char shown[NAME_MAX + 1];
        if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0 || depth > DEPTH ||
            !kvfs_judge_view_name(d->d_name, shown, sizeof(shown)) ||
            kvfs_path_join(below, path, d->d_type == DT_DIR ? d->d_name : shown)) {
            continue;
        }
        r = look_at(c, below);
    }
    closedir(dir);
    return r;
}

static unsigned depth_of(const char *path)
{
    unsigned n = *path != '\0';
    for (; *path; path++) {
        n += *path == '/';
    }
    return n;
}

/* Side files that are refused are not worth a word. */
static void note_refusal(struct scan *c, const char *path, const struct kvfs_found *f)
{
    const struct ct_err *why = &f->verdict.why;
    bool weights = f->measure.kind != CT_KIND_OTHER || kvfs_path_ends(path, ".safetensors");
    if (why->code == CT_LEAVES) {
        take_note(&c->leaving, path, why);
    } else if (weights && why->code == CT_NOKEY) {
        take_note(&c->locked_out, path, why);
    } else if (weights) {
        take_note(&c->refused, path, why);
        c->plain += f->measure.kind == CT_KIND_PLAIN;
    }
}

static int look_at(struct scan *c, const char *path)
{
    struct kvfs_found f;
    struct kvfs_opened opened;
    int r = 0;
    if (kvfs_judge_path(c->s, path, &f, &opened, NULL)) {
        return 0; /* not shown */
    }
    if (f.kind == KVFS_NODE_DIR) {
        r = look_into(c, path, opened.fd, depth_of(path));
        opened.fd = -1;
    } else if (f.kind == KVFS_NODE_FILE) {
        bool encrypted = f.measure.kind == CT_KIND_ENCRYPTED;
        c->models += encrypted;
        if (f.verdict.kind == KVFS_VERDICT_REFUSED) {
            note_refusal(c, path, &f);
        } else if (encrypted) {
            check_keys(c, path, &f.version, &f.measure);
        }
        if (c->s->config.require_all && (encrypted || f.verdict.kind == KVFS_VERDICT_REFUSED) &&
            kvfs_try_open(c->s, path, c->err)) {
            r = ct_err_wrap(c->err, "%s", path);
        }
    }
    kvfs_found_release(&f);
    kvfs_opened_release(&opened);
    return r;
}

static void add_note(char *text, size_t cap, const struct note *note, const char *what)
{
    size_t n = strlen(text);
    if (note->count) {
        (void)snprintf(text + n, cap - n, "%s%u %s (%s)", n ? "; " : "", note->count, what,
                       note->first);
    }
}

static int explain_nothing(const struct scan *c)
{
    if (c->leaving.count) {
        return ct_err_set(c->err, CT_LEAVES, "%s", c->leaving.first);
    }
    return ct_err_set(c->err, CT_NOTFOUND,
                      "nothing in %s is encrypted%s%s%s: kvfs encrypt makes an encrypted copy",
                      c->s->config.source, c->plain ? " (" : "", c->refused.first,
                      c->plain ? ")" : "");
}

int kvfs_scan(struct kvfs_serve *s, char *text, size_t cap, struct ct_err *err)
{
    struct scan c = {.s = s, .err = err};
    text[0] = '\0';
    if (look_at(&c, "")) {
        return -1;
    }
    if (c.models == 0 && c.locked_out.count == 0 && c.refused.count == c.plain) {
        return explain_nothing(&c);
    }
    add_note(text, cap, &c.locked_out, "models will be refused for want of a key");
    add_note(text, cap, &c.refused, "weight files are refused");
    add_note(text, cap, &c.leaving, "links leave the source");
    return 0;
}
