#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "format/base/file.h"
#include "guard/state.h"

enum { CMDLINE_MAX = 1 << 20 };

/* ---- What the profile admits ---- */

static bool uid_admitted(const struct guard_profile *p, uid_t uid)
{
    bool found = p->count_of[GUARD_ADMIT_UID] == 0;
    for (size_t i = 0; i < p->count && !found; i++) {
        found = p->declared[i].kind == GUARD_ADMIT_UID && p->declared[i].uid == uid;
    }
    return found;
}

/* Each of its ids: it can change to any of them. */
static void check_uid(struct guard_run *r, const struct guard_status *st)
{
    guard_looked(r, GUARD_READER_UID);
    for (int i = 0; i < 4; i++) {
        uid_t uid = st->uid[i];
        if (!uid_admitted(r->profile, uid)) {
            guard_fail(r, GUARD_READER_UID, 0, "", "user %u is not admitted", uid);
            return;
        }
    }
}

static bool exe_has_digest(struct guard_run *r, const struct guard_declared *d)
{
    uint8_t digest[CT_SHA256_LEN];
    if (!d->has_digest) {
        return true;
    }
    ct_autofd fd = openat(r->s->proc_fd, "exe", O_RDONLY | O_CLOEXEC);
    return fd >= 0 && guard_known_file_digest(r->g, fd, digest, NULL) == 0 &&
           memcmp(digest, d->digest, sizeof(digest)) == 0;
}

/* Whether the program is admitted; *needs_tree: together with a tree only. */
static void check_exe(struct guard_run *r, bool *needs_tree)
{
    bool found = r->profile->count_of[GUARD_ADMIT_EXE] == 0;
    bool path = false;
    *needs_tree = found && r->profile->count_of[GUARD_ADMIT_TREE] > 0;
    for (size_t i = 0; i < r->profile->count && !found; i++) {
        const struct guard_declared *d = &r->profile->declared[i];
        if (d->kind == GUARD_ADMIT_EXE && strcmp(d->path, r->now->exe_path) == 0) {
            path = true;
            found = exe_has_digest(r, d);
            *needs_tree = found && d->needs_tree;
        }
    }
    guard_looked(r, GUARD_READER_EXE);
    if (!found) {
        guard_fail(r, GUARD_READER_EXE, 0, "",
                   path ? "the program at %.150s has another digest"
                        : "the program %.150s is not admitted",
                   r->now->exe_path);
    }
}

/* ---- An interpreter's code ---- */

/* The first argument that is no option: what is run. "" for what is not in a file (-c, standard
 * input, nothing) or not understood; "-m" for a module. Letters may stand together: -Bc. */
static const char *script_of(const char *text, size_t n)
{
    size_t at = strnlen(text, n) + 1;
    while (at < n) {
        const char *word = text + at;
        size_t len = strnlen(word, n - at);
        at += len + 1;
        if (strcmp(word, "--") == 0) {
            return at < n && text[at] != '-' ? text + at : "";
        }
        if (word[0] != '-') {
            return word;
        }
        if (len == 1 || word[1] == '-' || word[strcspn(word, "ceipr")]) {
            return "";
        }
        if (strchr(word, 'm')) {
            return "-m";
        }
        if (strcmp(word, "-W") == 0 || strcmp(word, "-X") == 0) {
            at += at < n ? strnlen(text + at, n - at) + 1 : 0;
        }
    }
    return "";
}

/* Whether that which it runs lies in the tree. A link in the tree that leads out of it does not. */
static bool runs_from(struct guard_run *r, const char *tree, int tree_fd)
{
    ct_autobuf text = {0};
    char path[8192];
    ct_autofree char *cwd = guard_readlink_at(r->s->proc_fd, "cwd", NULL);
    if (!cwd || guard_read_at(r->s->proc_fd, "cmdline", CMDLINE_MAX, &text, NULL) ||
        (r->now->environ & GUARD_ENV_INTERPRETER)) {
        return false;
    }
    const char *script = script_of((char *)text.data, text.len);
    if (strcmp(script, "-m") == 0) {
        return guard_path_beneath(cwd, tree);
    }
    int len = snprintf(path, sizeof(path), "%s%s%s", *script == '/' ? "" : cwd,
                       *script == '/' ? "" : "/", script);
    if (!*script || len < 0 || (size_t)len >= sizeof(path) || !guard_path_beneath(path, tree)) {
        return false;
    }
    const char *rest = path + strlen(tree);
    while (*rest == '/') {
        rest++;
    }
    ct_autofd fd = *rest ? guard_open_in(tree_fd, rest, RESOLVE_BENEATH, O_PATH) : -1;
    return fd >= 0;
}

static bool tree_is_right(struct guard_run *r, size_t i, int fd)
{
    const struct guard_declared *d = &r->profile->declared[i];
    uint8_t digest[CT_SHA256_LEN];
    if (guard_known_tree_digest(r->g, fd, r->now->ns[GUARD_NS_MNT], digest, NULL)) {
        return false;
    }
    if (d->has_digest) {
        return memcmp(digest, d->digest, sizeof(digest)) == 0;
    }
    if (!r->g->tree_pinned[i]) { /* it is once this reader is admitted */
        memcpy(r->s->tree, digest, sizeof(digest));
        r->s->tree_at = i + 1;
        return true;
    }
    return memcmp(digest, r->g->tree_pins[i], sizeof(digest)) == 0;
}

static void check_tree(struct guard_run *r)
{
    const char *why = "what it runs is not of an admitted tree";
    bool found = false;
    for (size_t i = 0; i < r->profile->count && !found; i++) {
        const struct guard_declared *d = &r->profile->declared[i];
        if (d->kind != GUARD_ADMIT_TREE || r->proc_root_fd < 0) {
            continue;
        }
        ct_autofd fd =
            guard_open_in(r->proc_root_fd, d->path, RESOLVE_IN_ROOT, O_RDONLY | O_DIRECTORY);
        if (fd >= 0 && runs_from(r, d->path, fd)) {
            found = tree_is_right(r, i, fd);
            why = "the tree of what it runs has another digest";
        }
    }
    guard_looked(r, GUARD_READER_TREE);
    if (!found) {
        guard_fail(r, GUARD_READER_TREE, 0, "", "%s (%.100s)", why, r->now->exe_path);
    }
}

/* ---- The first reader's container ---- */

static bool same_text(const struct ct_buf *a, const struct ct_buf *b)
{
    return a->len == b->len && (a->len == 0 || memcmp(a->data, b->data, a->len) == 0);
}

static void check_pin(struct guard_run *r)
{
    static const struct {
        unsigned pin;
        enum guard_ns ns;
    } pins[] = {{GUARD_PIN_MNT, GUARD_NS_MNT}, {GUARD_PIN_PID, GUARD_NS_PID}};
    const struct guard *g = r->g;
    if (!g->profile->pins) {
        return;
    }
    guard_looked(r, GUARD_READER_PIN);
    for (size_t i = 0; g->pinned && i < 2; i++) {
        if ((g->profile->pins & pins[i].pin) && r->now->ns[pins[i].ns] != g->pin_ns[pins[i].ns]) {
            guard_fail(r, GUARD_READER_PIN, 0, guard_ns_names[pins[i].ns],
                       "it is in another %s namespace than the first reader",
                       guard_ns_names[pins[i].ns]);
        }
    }
    if (g->pinned && (g->profile->pins & GUARD_PIN_CGROUP) &&
        !same_text(&r->now->cgroup, &g->pin_cgroup)) {
        guard_fail(r, GUARD_READER_PIN, 0, "cgroup",
                   "it is in another cgroup than the first reader");
    }
}

void guard_check_reader_thread(struct guard_run *r, int tasks_fd, const char *tid,
                               const struct guard_status *st)
{
    char name[300];
    ct_autobuf cgroup = {0};
    check_uid(r, st);
    (void)snprintf(name, sizeof(name), "%s/cgroup", tid);
    if ((r->profile->pins & GUARD_PIN_CGROUP) && guard_has(r, GUARD_HAS_CGROUP) &&
        guard_read_at(tasks_fd, name, 1 << 16, &cgroup, NULL) == 0 &&
        !same_text(&cgroup, &r->now->cgroup)) {
        guard_fail(r, GUARD_READER_PIN, 0, "thread",
                   "its thread %.20s is in another cgroup than the first", tid);
    }
}

/* Whether a check can be made. What the profile asks for and can't be seen does not hold: whether
 * `inspect` is ignored or not. */
static bool can_check(struct guard_run *r, enum guard_id id, unsigned needs, bool asked)
{
    if (asked && !guard_has(r, needs)) {
        guard_fail(r, id, 0, "unseen", "the reader can't be seen");
    }
    return guard_has(r, needs) && guard_wants(r, id);
}

void guard_check_reader(struct guard_run *r)
{
    const unsigned *count_of = r->profile->count_of;
    bool needs_tree = false;
    if (can_check(r, GUARD_READER_UID, GUARD_HAS_STATUS, count_of[GUARD_ADMIT_UID])) {
        check_uid(r, &r->now->status);
    }
    if (guard_has(r, GUARD_HAS_EXE)) {
        check_exe(r, &needs_tree);
    }
    (void)can_check(r, GUARD_READER_EXE, GUARD_HAS_EXE, count_of[GUARD_ADMIT_EXE]);
    if (can_check(r, GUARD_READER_TREE, GUARD_HAS_EXE | GUARD_HAS_ENVIRON,
                  count_of[GUARD_ADMIT_TREE]) &&
        needs_tree) {
        check_tree(r);
    }
    if (can_check(r, GUARD_READER_PIN, GUARD_HAS_NS | GUARD_HAS_CGROUP, r->profile->pins)) {
        check_pin(r);
    }
}

/* ---- Admission ---- */

/* The process of a thread id; 0 if there is none. */
static pid_t process_of(const struct guard *g, pid_t tid)
{
    char name[32];
    ct_autobuf text = {0};
    struct guard_status st;
    (void)snprintf(name, sizeof(name), "%d/status", tid);
    return tid > 0 && guard_read_at(g->proc_fd, name, 1 << 16, &text, NULL) == 0 &&
                   guard_parse_status((char *)text.data, text.len, &st, NULL) == 0
               ? st.tgid
               : 0;
}

static bool is_own(const struct guard *g, pid_t pid)
{
    bool own =
        pid == g->self->pid || (g->tool && g->tool->pid == pid && guard_subject_alive(g->tool));
    for (size_t i = 0; i < g->mate_count; i++) {
        own = own || (g->mates[i]->pid == pid && guard_subject_alive(g->mates[i]));
    }
    return own;
}

static struct guard_subject *known_reader(const struct guard *g, pid_t pid)
{
    for (size_t i = 0; i < g->reader_count; i++) {
        if (g->readers[i]->pid == pid && guard_subject_alive(g->readers[i])) {
            return g->readers[i];
        }
    }
    return NULL;
}

static void forget_dead(struct guard *g)
{
    size_t kept = 0;
    for (size_t i = 0; i < g->reader_count; i++) {
        if (guard_subject_alive(g->readers[i])) {
            g->readers[kept++] = g->readers[i];
        } else {
            guard_subject_free(g->readers[i]);
        }
    }
    g->reader_count = kept;
}

static void pin_tree(struct guard *g, struct guard_subject *s)
{
    if (s->tree_at && !g->tree_pinned[s->tree_at - 1]) {
        memcpy(g->tree_pins[s->tree_at - 1], s->tree, sizeof(s->tree));
        g->tree_pinned[s->tree_at - 1] = true;
    }
    s->tree_at = 0;
}

static int keep_reader(struct guard *g, struct guard_subject *s, struct ct_err *err)
{
    if (g->reader_count == GUARD_READERS_MAX) {
        forget_dead(g);
    }
    if (g->reader_count == g->reader_cap) {
        size_t want = g->reader_cap ? g->reader_cap * 2 : 16;
        struct guard_subject **more =
            want <= GUARD_READERS_MAX
                ? reallocarray(g->readers, want, sizeof(struct guard_subject *))
                : NULL;
        if (!more) {
            return ct_err_set(err, CT_NOMEM, "guard: more readers than can be watched");
        }
        g->readers = more;
        g->reader_cap = want;
    }
    if (!g->pinned &&
        (s->start.has & (GUARD_HAS_NS | GUARD_HAS_CGROUP)) == (GUARD_HAS_NS | GUARD_HAS_CGROUP)) {
        memcpy(g->pin_ns, s->start.ns, sizeof(g->pin_ns));
        ct_buf_put(&g->pin_cgroup, s->start.cgroup.data, s->start.cgroup.len);
        if (ct_buf_ok(&g->pin_cgroup, err)) {
            return -1;
        }
        g->pinned = true;
    }
    pin_tree(g, s);
    g->readers[g->reader_count++] = s;
    return 0;
}

static int admit_new(struct guard *g, pid_t pid, struct guard_report *report, struct ct_err *err)
{
    struct guard_subject *s = guard_subject_open(g, pid, GUARD_STRANGER, err);
    if (!s || guard_subject_start(g, s, err)) {
        guard_subject_free(s);
        return -1;
    }
    guard_judge(g, s, &s->at_start, report);
    s->full_ns = guard_now_ns();
    /* What was read is of this process, and not of one that had its number before. */
    if (report->count || !guard_subject_alive(s)) {
        guard_subject_free(s);
        return report->count ? 0 : ct_err_set(err, CT_NOTFOUND, "process %d has ended", pid);
    }
    if (keep_reader(g, s, err)) {
        guard_subject_free(s);
        return -1;
    }
    return 1;
}

static int admit_again(struct guard *g, struct guard_subject *s, pid_t tid,
                       struct guard_report *report, struct ct_err *err)
{
    int64_t now = guard_now_ns();
    bool full = now - s->full_ns > (int64_t)g->profile->period_ms * 1000000 / 5;
    unsigned wanted =
        full ? GUARD_HAS_ALL : GUARD_HAS_STATUS | GUARD_HAS_NS | GUARD_HAS_EXE | GUARD_HAS_CGROUP;
    wanted |= g->profile->count_of[GUARD_ADMIT_TREE] ? GUARD_HAS_ENVIRON : 0;
    s->full_ns = full ? now : s->full_ns;
    s->asks = tid;
    s->tree_at = 0;
    int rc = guard_subject_run(g, s, wanted, 0, report, err);
    s->asks = 0;
    if (rc == 0 && report->count == 0) {
        pin_tree(g, s);
    }
    return rc ? -1 : report->count == 0;
}

/* Of whom nothing can be seen at all. */
static int admit_unseen(struct guard *g, struct guard_report *report)
{
    struct guard_subject nobody = {.role = GUARD_STRANGER};
    struct guard_failures none = {0};
    struct guard_facts nothing = {0};
    struct guard_run r = {.g = g,
                          .profile = g->profile,
                          .config = &g->config,
                          .s = &nobody,
                          .now = &nothing,
                          .proc_root_fd = -1,
                          .out = &none};
    guard_fail(&r, GUARD_INSPECT, 0, "",
               "the reader can't be seen: it is outside our PID namespace, or has ended");
    guard_check_reader(&r);
    guard_judge(g, &nobody, &none, report);
    guard_failures_free(&none);
    return report->count == 0;
}

int guard_admit(struct guard *g, pid_t tid, struct guard_report *report, struct ct_err *err)
{
    int64_t began = guard_now_ns();
    struct ct_err why = CT_ERR_INIT;
    memset(report, 0, sizeof(*report));
    if (!guard_profile_judges_readers(g->profile)) {
        return 1;
    }
    pid_t pid = process_of(g, tid);
    if (pid && is_own(g, pid)) {
        return 1;
    }
    struct guard_subject *s = pid ? known_reader(g, pid) : NULL;
    int rc = !pid ? admit_unseen(g, report)
             : s  ? admit_again(g, s, tid, report, &why)
                  : admit_new(g, pid, report, &why);
    if (rc < 0 && why.code == CT_NOTFOUND) {
        memset(report, 0, sizeof(*report));
        rc = admit_unseen(g, report);
    }
    report->took_ns = guard_now_ns() - began;
    return rc < 0 ? ct_err_set(err, why.code, "guard: %s", why.msg) : rc;
}
