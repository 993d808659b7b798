#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvfs/serve/paths.h"
#include "kvfs/serve/serve.h"

enum { DEPTH = 32 };

struct scan {
    struct kvfs_serve *s;
    struct ct_err *err;
    unsigned models, locked_out, refused, leaving;
    char first[512];  /* the first model without a key, and which key */
    char why[512];    /* the first weight file that is refused, and why */
    char leaves[512]; /* the first link that leaves the source */
};

/* Whether a key of this kid is there; a header without kids is for open to judge. */
static void check_keys(struct scan *c, const char *path, const struct ct_measure *m)
{
    uint8_t pub[CT_ED25519_PUB];
    struct ct_err why = CT_ERR_INIT;
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
    if (missing && c->locked_out++ == 0) {
        (void)snprintf(c->first, sizeof(c->first), "%s: %s", path, why.msg);
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
        if (encrypted) {
            check_keys(c, path, &f.measure);
        }
        if (f.verdict.kind == KVFS_VERDICT_REFUSED && f.verdict.why.code != CT_LEAVES &&
            (encrypted || kvfs_path_ends(path, ".safetensors")) && c->refused++ == 0) {
            (void)snprintf(c->why, sizeof(c->why), "%s: %s", path, f.verdict.why.msg);
        }
        if (f.verdict.kind == KVFS_VERDICT_REFUSED && f.verdict.why.code == CT_LEAVES &&
            c->leaving++ == 0) {
            (void)snprintf(c->leaves, sizeof(c->leaves), "%s: %s", path, f.verdict.why.msg);
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

static void add_note(char *text, size_t cap, unsigned count, const char *what, const char *first)
{
    size_t n = strlen(text);
    if (count) {
        (void)snprintf(text + n, cap - n, "%s%u %s (%s)", n ? "; " : "", count, what, first);
    }
}

int kvfs_scan(struct kvfs_serve *s, char *text, size_t cap, struct ct_err *err)
{
    struct scan c = {.s = s, .err = err};
    text[0] = '\0';
    if (look_at(&c, "")) {
        return -1;
    }
    if (c.models == 0 && c.refused == 0 && c.leaving) {
        return ct_err_set(err, CT_LEAVES, "%s", c.leaves);
    }
    if (c.models == 0 && c.refused == 0) {
        return ct_err_set(err, CT_NOTFOUND,
                          "nothing in %s is encrypted: kvfs encrypt makes an encrypted copy",
                          s->config.source);
    }
    add_note(text, cap, c.locked_out, "models will be refused for want of a key", c.first);
    add_note(text, cap, c.refused, "weight files are refused", c.why);
    add_note(text, cap, c.leaving, "links leave the source", c.leaves);
    return 0;
}
