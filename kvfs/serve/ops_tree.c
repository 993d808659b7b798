#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "kvfs/serve/ioctl.h"
#include "kvfs/serve/paths.h"
#include "kvfs/serve/resident.h"

/* How long the kernel may believe what it was told of a name. Under follow not at all: the next
 * lookup is to see a new version. A node's own attributes never change. */
static double entry_seconds(const struct kvfs_serve *s)
{
    return s->config.update == KVFS_UPDATE_PIN ? 1.0 : 0.0;
}

static double attr_seconds(const struct kvfs_node *n)
{
    return n->kind == KVFS_NODE_FILE ? 3600.0 : 1.0;
}

/* The source's, so that it stays when the kernel forgets a node and looks it up anew; a link to a
 * directory is something else than the directory. */
static ino_t inode_number(const struct kvfs_node *n, const struct stat *source)
{
    ino_t link = n->kind == KVFS_NODE_LINK ? (ino_t)1 << 61 : 0;
    return source->st_ino ? source->st_ino ^ link : n->id;
}

void kvfs_attributes(const struct kvfs_serve *s, const struct kvfs_node *n, struct stat *st)
{
    bool dir = n->kind == KVFS_NODE_DIR;
    struct stat source = kvfs_table_stat(s->table, n);
    mode_t mode =
        s->config.umask_set ? (dir ? 0555 : 0444) & ~(mode_t)s->config.umask : (dir ? 0550 : 0440);
    memset(st, 0, sizeof(*st));
    st->st_ino = inode_number(n, &source);
    st->st_nlink = dir ? 2 : 1;
    st->st_uid = s->config.uid;
    st->st_gid = s->config.gid;
    st->st_mode = dir                         ? S_IFDIR | mode
                  : n->kind == KVFS_NODE_LINK ? S_IFLNK | 0777
                                              : S_IFREG | mode;
    st->st_size = dir                         ? 4096
                  : n->kind == KVFS_NODE_LINK ? (off_t)strlen(n->target)
                                              : (off_t)n->measure.view_size;
    st->st_blksize = 1 << 20;
    st->st_blocks = (st->st_size + 511) / 512;
    st->st_atim = source.st_atim;
    st->st_mtim = source.st_mtim;
    st->st_ctim = source.st_ctim;
}

static bool may(const struct kvfs_serve *s, fuse_req_t req)
{
    uid_t uid = fuse_req_ctx(req)->uid;
    return uid == 0 || uid == s->config.uid;
}

/* ---- lookup ---- */

static int find(struct kvfs_serve *s, const char *path, struct kvfs_node **out, struct ct_err *err)
{
    struct kvfs_found found;
    struct kvfs_opened opened;
    *out = s->config.update == KVFS_UPDATE_PIN ? kvfs_table_pinned(s->table, path) : NULL;
    if (*out) {
        return 0;
    }
    if (kvfs_judge_path(s, path, &found, &opened, err)) {
        return -1;
    }
    kvfs_opened_release(&opened);
    *out = kvfs_table_put(s->table, path, &found, err);
    return *out ? 0 : -1;
}

static int child_path(struct kvfs_serve *s, uint64_t parent, const char *name, char out[PATH_MAX])
{
    const struct kvfs_node *dir = kvfs_table_get(s->table, parent);
    if (!dir || dir->kind != KVFS_NODE_DIR) {
        return ENOTDIR;
    }
    return kvfs_path_join(out, dir->paths[0], name) ? ENAMETOOLONG : 0;
}

static void fill_entry(struct kvfs_serve *s, const struct kvfs_node *n, struct fuse_entry_param *e)
{
    memset(e, 0, sizeof(*e));
    e->ino = n->id;
    e->attr_timeout = attr_seconds(n);
    e->entry_timeout = entry_seconds(s);
    kvfs_attributes(s, n, &e->attr);
}

static void fill_status_entry(struct kvfs_serve *s, uint64_t id, struct fuse_entry_param *e)
{
    memset(e, 0, sizeof(*e));
    e->ino = id;
    e->entry_timeout = 1.0;
    kvfs_status_attributes(s, id, &e->attr);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct kvfs_serve *s = fuse_req_userdata(req);
    struct fuse_entry_param e;
    struct kvfs_node *n = NULL;
    struct ct_err err = CT_ERR_INIT;
    char path[PATH_MAX];
    uint64_t status = parent == FUSE_ROOT_ID && strcmp(name, KVFS_STATUS_NAME) == 0
                          ? KVFS_STATUS_DIR
                      : parent == KVFS_STATUS_DIR ? kvfs_status_lookup(name)
                                                  : 0;
    if (status) {
        fill_status_entry(s, status, &e);
        fuse_reply_entry(req, &e);
        return;
    }
    int why = kvfs_status_is(parent) ? ENOENT : child_path(s, parent, name, path);
    if (why) {
        fuse_reply_err(req, why);
        return;
    }
    if (find(s, path, &n, &err)) {
        /* Not cached: the file may come, and loaders ask for many that are not there. */
        fuse_reply_err(req, err.code == CT_NOTFOUND ? ENOENT : ct_err_errno(&err));
        return;
    }
    fill_entry(s, n, &e);
    kvfs_hand_over(s);
    if (fuse_reply_entry(req, &e)) {
        kvfs_table_forget(s->table, n->id, 1);
    }
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t n)
{
    struct kvfs_serve *s = fuse_req_userdata(req);
    kvfs_take_over(s);
    kvfs_table_forget(s->table, ino, n);
    fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *all)
{
    struct kvfs_serve *s = fuse_req_userdata(req);
    kvfs_take_over(s);
    for (size_t i = 0; i < count; i++) {
        kvfs_table_forget(s->table, all[i].ino, all[i].nlookup);
    }
    fuse_reply_none(req);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)fi;
    struct kvfs_serve *s = fuse_req_userdata(req);
    struct stat st;
    if (kvfs_status_is(ino)) {
        kvfs_status_attributes(s, ino, &st);
        fuse_reply_attr(req, &st, 1.0);
        return;
    }
    const struct kvfs_node *n = kvfs_table_get(s->table, ino);
    if (!n) {
        fuse_reply_err(req, ESTALE);
        return;
    }
    kvfs_attributes(s, n, &st);
    double seconds = attr_seconds(n);
    kvfs_hand_over(s);
    fuse_reply_attr(req, &st, seconds);
}

static void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
    struct kvfs_serve *s = fuse_req_userdata(req);
    const struct kvfs_node *n = kvfs_table_get(s->table, ino);
    if (!n || n->kind != KVFS_NODE_LINK) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    char target[PATH_MAX];
    (void)snprintf(target, sizeof(target), "%s", n->target);
    kvfs_hand_over(s);
    fuse_reply_readlink(req, target);
}

/* ---- directories: a snapshot of the names at opendir ---- */

struct kvfs_listing {
    char **names; /* as the view shows them, sorted */
    size_t count, cap;
    bool status; /* of `.kvfs` */
    char dir[PATH_MAX];
};

void kvfs_listing_free(struct kvfs_listing *l)
{
    if (l) {
        kvfs_paths_free(l->names, l->count);
        free(l);
    }
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int add_name(struct kvfs_listing *l, const char *name)
{
    if (l->count == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 64;
        char **names = realloc(l->names, cap * sizeof(char *));
        if (!names) {
            return -1;
        }
        l->names = names;
        l->cap = cap;
    }
    l->names[l->count] = strdup(name);
    return l->names[l->count] ? (l->count++, 0) : -1;
}

/* Takes the descriptor over. Names are only listed here: what they are, and whether they are shown
 * at all, is judged as each one is looked up. */
static int read_names(struct kvfs_listing *l, int fd)
{
    DIR *dir = fdopendir(fd);
    if (!dir) {
        close(fd);
        return EIO;
    }
    int r = 0;
    for (const struct dirent *d; r == 0 && (d = readdir(dir));) {
        char shown[NAME_MAX + 1];
        bool usual = d->d_type == DT_REG || d->d_type == DT_DIR || d->d_type == DT_LNK ||
                     d->d_type == DT_UNKNOWN;
        /* The source's own `.kvfs` would stand for ours in the kernel's cache of names. */
        if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0 || !usual ||
            (!l->dir[0] && strcmp(d->d_name, KVFS_STATUS_NAME) == 0)) {
            continue;
        }
        if (d->d_type == DT_DIR) {
            r = add_name(l, d->d_name) ? ENOMEM : 0;
        } else if (kvfs_judge_view_name(d->d_name, shown, sizeof(shown))) {
            r = add_name(l, shown) ? ENOMEM : 0;
        }
    }
    closedir(dir);
    if (l->count) {
        qsort(l->names, l->count, sizeof(char *), by_name);
        size_t kept = 1;
        for (size_t i = 1; i < l->count; i++) {
            if (strcmp(l->names[i], l->names[kept - 1]) == 0) {
                free(l->names[i]);
            } else {
                l->names[kept++] = l->names[i];
            }
        }
        l->count = kept;
    }
    return r;
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct kvfs_serve *s = fuse_req_userdata(req);
    struct kvfs_opened opened = {.fd = -1};
    struct ct_err err = CT_ERR_INIT;
    struct kvfs_handle *h = kvfs_handle_new();
    struct kvfs_listing *l = h ? calloc(1, sizeof(*l)) : NULL;
    int why = l ? 0 : ENOMEM;
    if (h) {
        h->listing = l;
    }
    if (l && ino == KVFS_STATUS_DIR) {
        l->status = true;
        for (unsigned i = 0; i < KVFS_STATUS_FILES && !why; i++) {
            why = add_name(l, kvfs_status_name(i)) ? ENOMEM : 0;
        }
    } else if (l) {
        const struct kvfs_node *n = kvfs_table_get(s->table, ino);
        if (!n || n->kind != KVFS_NODE_DIR) {
            why = ENOTDIR;
        } else {
            (void)snprintf(l->dir, sizeof(l->dir), "%s", n->paths[0]);
            why = kvfs_source_open(s, l->dir, &opened, &err) ? ct_err_errno(&err)
                  : opened.fd < 0                            ? ENOTDIR
                                                             : read_names(l, opened.fd);
            opened.fd = -1; /* read_names() took it */
        }
    }
    kvfs_opened_release(&opened);
    if (why) {
        if (h) {
            kvfs_handle_unref(s, h);
        }
        fuse_reply_err(req, why);
        return;
    }
    fi->fh = (uintptr_t)h;
    kvfs_hand_over(s);
    if (fuse_reply_open(req, fi)) {
        kvfs_handle_unref(s, h);
    }
}

/* One entry at `out`; its size, 0 if the name is not shown, more than `room` if it does not fit. */
static size_t put_entry(fuse_req_t req, const struct kvfs_listing *l, const char *name, char *out,
                        size_t room, off_t next, bool plus, struct kvfs_node **counted)
{
    struct kvfs_serve *s = fuse_req_userdata(req);
    struct fuse_entry_param e;
    char path[PATH_MAX];
    struct kvfs_node *n = NULL;
    *counted = NULL;
    if (l->status) {
        fill_status_entry(s, kvfs_status_lookup(name), &e);
    } else {
        if (kvfs_path_join(path, l->dir, name) || find(s, path, &n, NULL)) {
            return 0;
        }
        fill_entry(s, n, &e);
    }
    size_t size = plus ? fuse_add_direntry_plus(req, out, room, name, &e, next)
                       : fuse_add_direntry(req, out, room, name, &e.attr, next);
    if (n && (!plus || size > room)) {
        kvfs_table_forget(s->table, n->id, 1); /* only a readdirplus entry counts as a lookup */
    } else {
        *counted = n;
    }
    return size;
}

static void read_dir(fuse_req_t req, size_t size, off_t off, const struct fuse_file_info *fi,
                     bool plus)
{
    struct kvfs_serve *s = fuse_req_userdata(req);
    struct kvfs_handle *h = kvfs_handle_ref(s, fi);
    const struct kvfs_listing *l = h->listing;
    char *out = malloc(size);
    size_t used = 0;
    if (!out) {
        kvfs_handle_unref(s, h);
        fuse_reply_err(req, ENOMEM);
        return;
    }
    for (size_t i = (size_t)off; i < l->count; i++) {
        struct kvfs_node *counted = NULL;
        size_t n =
            put_entry(req, l, l->names[i], out + used, size - used, (off_t)i + 1, plus, &counted);
        if (n > size - used) {
            break;
        }
        used += n;
    }
    kvfs_hand_over(s);
    fuse_reply_buf(req, out, used);
    free(out);
    kvfs_handle_unref(s, h);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                       struct fuse_file_info *fi)
{
    (void)ino;
    read_dir(req, size, off, fi, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                           struct fuse_file_info *fi)
{
    (void)ino;
    read_dir(req, size, off, fi, true);
}

/* ---- the rest ---- */

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
    (void)ino;
    struct kvfs_serve *s = fuse_req_userdata(req);
    struct kvfs_opened opened;
    struct ct_err err = CT_ERR_INIT;
    struct statvfs v;
    memset(&v, 0, sizeof(v));
    if (kvfs_source_open(s, "", &opened, &err) == 0 && opened.fd >= 0) {
        (void)fstatvfs(opened.fd, &v);
    }
    kvfs_opened_release(&opened);
    v.f_bfree = v.f_bavail = v.f_ffree = v.f_favail = 0;
    v.f_namemax = NAME_MAX;
    v.f_flag |= ST_RDONLY;
    fuse_reply_statfs(req, &v);
}

static void op_access(fuse_req_t req, fuse_ino_t ino, int mask)
{
    (void)ino;
    fuse_reply_err(req, mask & W_OK ? EROFS : 0);
}

static void forget_name(void *ctx, uint64_t parent, const char *name)
{
    struct kvfs_serve *s = ctx;
    (void)fuse_lowlevel_notify_inval_entry(s->session, parent, name, strlen(name));
}

struct reloading {
    struct kvfs_serve *s;
    fuse_req_t req;
};

/* On a pool thread: telling the kernel from a FUSE thread can wait for that thread itself. Answers
 * when all is forgotten. */
static void reload(void *arg)
{
    struct reloading *r = arg;
    struct kvfs_serve *s = r->s;
    struct ct_err err = CT_ERR_INIT;
    const struct kvfs_unpin unpin = {forget_name, kvfs_node_end, s};
    if (kvfs_judge_reload(s, &err) || kvfs_table_unpin_all(s->table, &unpin, &err)) {
        kvfs_reply_error(s, r->req, NULL, &err);
    } else {
        ct_log(CT_LOG_INFO, "reloaded");
        fuse_reply_ioctl(r->req, 0, NULL, 0);
    }
    free(r);
}

static void start_reload(struct kvfs_serve *s, fuse_req_t req)
{
    struct reloading *r = malloc(sizeof(*r));
    if (!r) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    *r = (struct reloading){s, req};
    kvfs_chunks_run(s->chunks, reload, r);
}

static void op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned cmd, void *arg,
                     struct fuse_file_info *fi, unsigned flags, const void *in, size_t in_size,
                     size_t out_size)
{
    (void)arg;
    (void)fi;
    (void)flags;
    (void)in;
    (void)in_size;
    (void)out_size;
    struct kvfs_serve *s = fuse_req_userdata(req);
    bool status = kvfs_status_is(ino);
    struct kvfs_node *node = status ? NULL : kvfs_table_get(s->table, ino);
    bool keep = node && node->kind == KVFS_NODE_FILE && cmd == KVFS_IOC_KEEP;
    if (!keep && !(status && (cmd == KVFS_IOC_RELOAD || cmd == KVFS_IOC_SEAL))) {
        fuse_reply_err(req, ENOTTY);
    } else if (!may(s, req)) {
        fuse_reply_err(req, EPERM);
    } else if (keep) {
        uint32_t resident = kvfs_resident_keep(s, node);
        kvfs_hand_over(s);
        fuse_reply_ioctl(req, 0, &resident, sizeof(resident));
    } else if (cmd == KVFS_IOC_SEAL) {
        (void)eventfd_write(s->asked, 1);
        fuse_reply_ioctl(req, atomic_load(&s->taken), NULL, 0);
    } else {
        start_reload(s, req);
    }
}

extern void kvfs_op_init(void *userdata, struct fuse_conn_info *conn);

const struct fuse_lowlevel_ops kvfs_ops = {
    .init = kvfs_op_init,
    .lookup = op_lookup,
    .forget = op_forget,
    .forget_multi = op_forget_multi,
    .getattr = op_getattr,
    .readlink = op_readlink,
    .open = kvfs_op_open,
    .read = kvfs_op_read,
    .release = kvfs_op_release,
    .opendir = op_opendir,
    .readdir = op_readdir,
    .readdirplus = op_readdirplus,
    .releasedir = kvfs_op_release,
    .statfs = op_statfs,
    .access = op_access,
    .getxattr = kvfs_op_getxattr,
    .listxattr = kvfs_op_listxattr,
    .ioctl = op_ioctl,
};
