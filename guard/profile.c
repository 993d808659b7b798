#include "guard/profile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/file.h"
#include "guard/builtin.h"

enum { WORDS_MAX = 16, HEX_DIGITS = 2 * CT_SHA256_LEN };

static const char *const level_names[] = {"ignore", "keep", "require"};
static const char *const kind_names[GUARD_KINDS] = {
    "device", "bind", "tmpfs", "protect", "tree", "admit uid", "admit exe", "admit tree"};
static const char *const pin_names[] = {"mnt", "pid", "cgroup"};

struct parse {
    struct guard_profile *p;
    const char *label;
    unsigned line;
    bool named, based, allow_builtin_name;
    bool said[GUARD_IDS]; /* the text itself has a level for this check, by name, of a reader */
};

static int wrong(const struct parse *ps, struct ct_err *err, const char *what, const char *word)
{
    return ct_err_set(err, CT_USAGE, "%s:%u: %s%s%.80s", ps->label, ps->line, what,
                      *word ? ": " : "", word);
}

static int index_of(const char *word, const char *const *names, int count)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(word, names[i]) == 0) {
            return i;
        }
    }
    return -1;
}

static bool is_name(const char *text)
{
    size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-");
    return n && n <= GUARD_NAME_MAX && text[n] == '\0';
}

static int number(const char *word, uint64_t min, uint64_t max, uint64_t *out)
{
    char *end = NULL;
    if (*word < '0' || *word > '9') {
        return -1;
    }
    errno = 0;
    *out = strtoull(word, &end, 10);
    return errno || *end || *out < min || *out > max ? -1 : 0;
}

/* ---- Statements ---- */

static void set_level(struct guard_profile *p, int id, int who, enum guard_level level)
{
    if (guard_checks[id].about[who]) {
        p->level[id][who] = level;
    }
}

static int level(struct parse *ps, char **w, int n, struct ct_err *err)
{
    static const char *const whos[GUARD_WHOS] = {"own", "reader"};
    int id = strcmp(w[0], "*") == 0 ? GUARD_IDS : guard_check_named(w[0]);
    int to = n > 1 ? index_of(w[1], level_names, 3) : -1;
    int who = n > 2 ? index_of(w[2], whos, GUARD_WHOS) : GUARD_WHOS;
    if (id < 0) {
        return wrong(ps, err, "there is no such statement or check", w[0]);
    }
    if (to < 0 || who < 0 || n > 3) {
        return wrong(ps, err, "CHECK require|keep|ignore [own|reader]", "");
    }
    if (who < GUARD_WHOS && id < GUARD_IDS && !guard_checks[id].about[who]) {
        return wrong(ps, err, "this check is not about those", w[2]);
    }
    if (id < GUARD_IDS && who != GUARD_OWN) {
        ps->said[id] = true;
    }
    for (int i = 0; i < GUARD_IDS; i++) {
        for (int k = 0; k < GUARD_WHOS; k++) {
            if ((id == GUARD_IDS || i == id) && (who == GUARD_WHOS || k == who)) {
                set_level(ps->p, i, k, (enum guard_level)to);
            }
        }
    }
    return 0;
}

static bool same_thing(const struct guard_declared *a, const struct guard_declared *b)
{
    return a->kind == b->kind && a->uid == b->uid && (a->path == NULL) == (b->path == NULL) &&
           (!a->path || strcmp(a->path, b->path) == 0) && a->has_digest == b->has_digest &&
           memcmp(a->digest, b->digest, sizeof(a->digest)) == 0;
}

static int declare(struct parse *ps, struct guard_declared *d, const char *path, struct ct_err *err)
{
    if (path && *path != '/') {
        return wrong(ps, err, "not an absolute path", path);
    }
    char *copy = path ? strdup(path) : NULL;
    if (path && !copy) {
        return ct_err_set(err, CT_NOMEM, "no memory for a profile");
    }
    for (size_t n = copy ? strlen(copy) : 0; n > 1 && copy[n - 1] == '/'; n--) {
        copy[n - 1] = '\0';
    }
    d->path = copy;
    for (size_t i = 0; i < ps->p->count; i++) {
        if (same_thing(&ps->p->declared[i], d)) {
            ps->p->declared[i].rw |= d->rw;
            ps->p->declared[i].needs_tree |= d->needs_tree;
            free(copy);
            return 0;
        }
    }
    if (ps->p->count == GUARD_DECLARED_MAX) {
        free(copy);
        return wrong(ps, err, "too much is declared", "");
    }
    ps->p->declared[ps->p->count++] = *d;
    ps->p->count_of[d->kind]++;
    return 0;
}

static int admit_what(struct parse *ps, char **w, int n, bool exe, struct ct_err *err)
{
    struct guard_declared d = {.kind = exe ? GUARD_ADMIT_EXE : GUARD_ADMIT_TREE};
    for (int i = 3; i < n; i++) {
        if (exe && !d.needs_tree && strcmp(w[i], "tree") == 0) {
            d.needs_tree = true;
        } else if (!d.has_digest && strlen(w[i]) == HEX_DIGITS &&
                   ct_unhex(w[i], HEX_DIGITS, d.digest, CT_SHA256_LEN) == CT_SHA256_LEN) {
            d.has_digest = true;
        } else {
            return wrong(ps, err, "not a SHA-256 of 64 hexadecimal digits", w[i]);
        }
    }
    return declare(ps, &d, w[2], err);
}

static int admit(struct parse *ps, char **w, int n, struct ct_err *err)
{
    if (n < 3) {
        return wrong(ps, err, "admit uid|exe|tree|pin WHAT", "");
    }
    if (strcmp(w[1], "exe") == 0 || strcmp(w[1], "tree") == 0) {
        return admit_what(ps, w, n, w[1][0] == 'e', err);
    }
    if (strcmp(w[1], "pin") == 0) {
        ps->p->pins = 0;
    }
    for (int i = 2; i < n; i++) {
        uint64_t uid = 0;
        int pin = index_of(w[i], pin_names, 3);
        if (strcmp(w[1], "uid") == 0 && number(w[i], 0, UINT32_MAX - 1, &uid) == 0) {
            struct guard_declared d = {.kind = GUARD_ADMIT_UID, .uid = (uid_t)uid};
            if (declare(ps, &d, NULL, err)) {
                return -1;
            }
        } else if (strcmp(w[1], "pin") == 0 && pin >= 0) {
            ps->p->pins |= 1U << pin;
        } else {
            return wrong(ps, err, "admit uid|exe|tree|pin WHAT", w[i]);
        }
    }
    return 0;
}

static int name(struct parse *ps, char **w, int n, struct ct_err *err)
{
    static const char *const taken[] = {"strict", "drift", "off", "none"};
    if (n != 2 || !is_name(w[1]) || ps->named) {
        return wrong(ps, err, "profile NAME, once, of a-z 0-9 -", "");
    }
    if (!ps->allow_builtin_name && index_of(w[1], taken, 4) >= 0) {
        return wrong(ps, err, "this name is taken", w[1]);
    }
    ps->named = true;
    (void)snprintf(ps->p->name, sizeof(ps->p->name), "%s", w[1]);
    return 0;
}

static int parse_text(struct parse *ps, const char *text, size_t n, struct ct_err *err);

static int base(struct parse *ps, char **w, int n, struct ct_err *err)
{
    const struct guard_builtin *b = n == 2 ? guard_builtin_named(w[1]) : NULL;
    char own[GUARD_NAME_MAX + 1];
    if (!b || ps->based) {
        return wrong(ps, err, "base strict|drift|off, once and before everything else", "");
    }
    memcpy(own, ps->p->name, sizeof(own));
    struct parse inner = {.p = ps->p, .label = w[1], .allow_builtin_name = true};
    if (parse_text(&inner, (const char *)b->text, b->len, err)) {
        return -1;
    }
    memcpy(ps->p->name, own, sizeof(own));
    ps->based = true;
    return 0;
}

static int plain(struct parse *ps, char **w, int n, struct ct_err *err)
{
    struct guard_declared d = {.kind = (enum guard_kind)index_of(w[0], kind_names, GUARD_KINDS)};
    d.rw = d.kind == GUARD_BIND && n == 3 && strcmp(w[2], "rw") == 0;
    if (n != (d.rw ? 3 : 2)) {
        return wrong(ps, err, "what, or too much", w[0]);
    }
    return declare(ps, &d, w[1], err);
}

static int milliseconds(struct parse *ps, char **w, int n, struct ct_err *err)
{
    uint64_t ms = 0;
    if (n != 2 || number(w[1], 10, 3600000, &ms)) {
        return wrong(ps, err, "10 to 3600000 milliseconds", "");
    }
    *(w[0][0] == 'p' ? &ps->p->period_ms : &ps->p->gap_ms) = (unsigned)ms;
    return 0;
}

static int statement(struct parse *ps, char **w, int n, struct ct_err *err)
{
    if (strcmp(w[0], "profile") == 0) {
        return name(ps, w, n, err);
    }
    if (!ps->named) {
        return wrong(ps, err, "the first statement has to be `profile NAME`", "");
    }
    if (strcmp(w[0], "base") == 0) {
        return base(ps, w, n, err);
    }
    ps->based = true; /* it would undo what was said */
    if (strcmp(w[0], "admit") == 0) {
        return admit(ps, w, n, err);
    }
    if (strcmp(w[0], "period") == 0 || strcmp(w[0], "gap") == 0) {
        return milliseconds(ps, w, n, err);
    }
    return index_of(w[0], kind_names, GUARD_ADMIT_UID) >= 0 ? plain(ps, w, n, err)
                                                            : level(ps, w, n, err);
}

static int parse_line(struct parse *ps, char *line, struct ct_err *err)
{
    char *words[WORDS_MAX];
    char *save = NULL;
    int count = 0;
    ps->line++;
    line[strcspn(line, "#")] = '\0';
    for (char *w = strtok_r(line, " \t\r", &save); w; w = strtok_r(NULL, " \t\r", &save)) {
        if (count == WORDS_MAX) {
            return wrong(ps, err, "too many words", "");
        }
        words[count++] = w;
    }
    return count ? statement(ps, words, count, err) : 0;
}

static int parse_text(struct parse *ps, const char *text, size_t n, struct ct_err *err)
{
    ct_autobuf copy = {0};
    if (n >= GUARD_PROFILE_MAX || memchr(text, '\0', n)) {
        return ct_err_set(err, CT_USAGE, "%s: not a text of less than %d bytes", ps->label,
                          GUARD_PROFILE_MAX);
    }
    ct_buf_put(&copy, text, n);
    ct_buf_putc(&copy, '\0');
    if (ct_buf_ok(&copy, err)) {
        return -1;
    }
    for (char *line = (char *)copy.data; line;) {
        char *next = strchr(line, '\n');
        if (next) {
            *next++ = '\0';
        }
        if (parse_line(ps, line, err)) {
            return -1;
        }
        line = next;
    }
    return ps->named ? 0 : wrong(ps, err, "there is no `profile NAME`", "");
}

/* Whoever says who may read wants it to count, whatever the base does with readers. */
static void require_admission(const struct parse *ps)
{
    struct guard_profile *p = ps->p;
    bool trees = p->count_of[GUARD_ADMIT_TREE] > 0;
    for (size_t i = 0; i < p->count; i++) {
        trees |= p->declared[i].needs_tree;
    }
    const struct {
        enum guard_id id;
        bool asked;
    } checks[] = {{GUARD_READER_UID, p->count_of[GUARD_ADMIT_UID] > 0},
                  {GUARD_READER_EXE, p->count_of[GUARD_ADMIT_EXE] > 0},
                  {GUARD_READER_TREE, trees},
                  {GUARD_READER_PIN, p->pins != 0}};
    for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
        enum guard_level *level = &p->level[checks[i].id][GUARD_READER];
        if (checks[i].asked && !ps->said[checks[i].id] && *level == GUARD_IGNORE) {
            *level = GUARD_REQUIRE;
        }
    }
}

static int parse(const char *text, size_t n, const char *label, bool builtin,
                 struct guard_profile **out, struct ct_err *err)
{
    struct guard_profile *p = calloc(1, sizeof(*p));
    if (!p) {
        return ct_err_set(err, CT_NOMEM, "no memory for a profile");
    }
    p->period_ms = 1000;
    p->gap_ms = 5000;
    for (int i = 0; i < GUARD_IDS; i++) {
        set_level(p, i, GUARD_OWN, GUARD_REQUIRE);
        set_level(p, i, GUARD_READER, GUARD_REQUIRE);
    }
    struct parse ps = {.p = p, .label = label, .allow_builtin_name = builtin};
    if (parse_text(&ps, text, n, err)) {
        guard_profile_free(p);
        return -1;
    }
    require_admission(&ps);
    *out = p;
    return 0;
}

int guard_profile_parse(const char *text, size_t n, const char *label, struct guard_profile **out,
                        struct ct_err *err)
{
    return parse(text, n, label, false, out, err);
}

int guard_profile_load(const char *name_or_path, struct guard_profile **out, struct ct_err *err)
{
    ct_autobuf text = {0};
    const struct guard_builtin *b = guard_builtin_named(name_or_path);
    if (b) {
        return parse((const char *)b->text, b->len, name_or_path, true, out, err);
    }
    if (!strchr(name_or_path, '/')) {
        return ct_err_set(err, CT_USAGE,
                          "%s: no profile; there are strict, drift, off, and files (./NAME)",
                          name_or_path);
    }
    if (ct_read_file(AT_FDCWD, name_or_path, GUARD_PROFILE_MAX, &text, err)) {
        return -1;
    }
    return guard_profile_parse((char *)text.data, text.len, name_or_path, out, err);
}

void guard_profile_free(struct guard_profile *p)
{
    for (size_t i = 0; p && i < p->count; i++) {
        free((char *)p->declared[i].path);
    }
    free(p);
}

bool guard_profile_is_off(const struct guard_profile *p)
{
    for (int i = 0; i < GUARD_IDS; i++) {
        if (p->level[i][GUARD_OWN] || p->level[i][GUARD_READER]) {
            return false;
        }
    }
    return true;
}

bool guard_profile_judges_readers(const struct guard_profile *p)
{
    for (int i = 0; i < GUARD_IDS; i++) {
        if (p->level[i][GUARD_READER]) {
            return true;
        }
    }
    return false;
}

/* ---- The one way of saying it ---- */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void put_declared(struct ct_buf *line, const struct guard_declared *d)
{
    ct_buf_puts(line, kind_names[d->kind]);
    if (d->path) {
        ct_buf_printf(line, " %s", d->path);
    } else {
        ct_buf_printf(line, " %u", d->uid);
    }
    if (d->has_digest) {
        char hex[2 * CT_SHA256_LEN + 1];
        ct_hex(hex, d->digest, sizeof(d->digest));
        ct_buf_printf(line, " %s", hex);
    }
    ct_buf_puts(line, d->rw ? " rw" : "");
    ct_buf_puts(line, d->needs_tree ? " tree" : "");
    ct_buf_putc(line, '\0');
}

/* In the order of their bytes: it does not matter in which they were declared. */
static int put_all_declared(const struct guard_profile *p, struct ct_buf *out, struct ct_err *err)
{
    char *lines[GUARD_DECLARED_MAX];
    struct ct_buf texts[GUARD_DECLARED_MAX];
    int rc = 0;
    memset(texts, 0, sizeof(texts));
    for (size_t i = 0; i < p->count; i++) {
        put_declared(&texts[i], &p->declared[i]);
        rc = rc ? rc : ct_buf_ok(&texts[i], err);
        lines[i] = (char *)texts[i].data;
    }
    if (rc == 0) {
        qsort(lines, p->count, sizeof(lines[0]), by_text);
        for (size_t i = 0; i < p->count; i++) {
            ct_buf_printf(out, "%s\n", lines[i]);
        }
    }
    for (size_t i = 0; i < p->count; i++) {
        ct_buf_free(&texts[i]);
    }
    return rc;
}

int guard_profile_text(const struct guard_profile *p, struct ct_buf *out, struct ct_err *err)
{
    ct_buf_printf(out, "profile %s\n", p->name);
    for (int i = 0; i < GUARD_IDS; i++) {
        for (int who = 0; who < GUARD_WHOS; who++) {
            if (guard_checks[i].about[who]) {
                ct_buf_printf(out, "%s %s %s\n", guard_checks[i].name,
                              level_names[p->level[i][who]], who ? "reader" : "own");
            }
        }
    }
    if (put_all_declared(p, out, err)) {
        return -1;
    }
    ct_buf_printf(out, "period %u\ngap %u\n", p->period_ms, p->gap_ms);
    ct_buf_puts(out, p->pins ? "admit pin" : "");
    for (unsigned i = 0; i < 3; i++) {
        if (p->pins & 1U << i) {
            ct_buf_printf(out, " %s", pin_names[i]);
        }
    }
    ct_buf_puts(out, p->pins ? "\n" : "");
    return ct_buf_ok(out, err);
}

int guard_profile_digest(const struct guard_profile *p, uint8_t out[static CT_SHA256_LEN],
                         struct ct_err *err)
{
    ct_autobuf text = {0};
    return guard_profile_text(p, &text, err) ? -1 : ct_sha256(text.data, text.len, out, err);
}
