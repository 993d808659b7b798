#include "guard/mounts.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "guard/proc.h"

enum { WORD_ID, WORD_PARENT, WORD_DEV, WORD_ROOT, WORD_PATH, WORD_OPTIONS, WORDS };

/* Up to the next blank; NULL at the end of the line. Blanks in names are escaped. */
static char *next_word(char **at)
{
    char *word = *at;
    if (!word || !*word) {
        return NULL;
    }
    char *blank = strchr(word, ' ');
    *at = blank ? blank + 1 : NULL;
    if (blank) {
        *blank = '\0';
    }
    return word;
}

static bool number(const char *text, char stop, const char **rest, unsigned *out)
{
    char *end = NULL;
    if (*text < '0' || *text > '9') {
        return false;
    }
    unsigned long v = strtoul(text, &end, 10);
    *out = (unsigned)v;
    *rest = end + 1;
    return v <= INT32_MAX && *end == stop;
}

static bool parse_dev(const char *text, dev_t *dev)
{
    unsigned major = 0;
    unsigned minor = 0;
    const char *rest = NULL;
    if (!number(text, ':', &rest, &major) || !number(rest, '\0', &rest, &minor)) {
        return false;
    }
    *dev = makedev(major, minor);
    return true;
}

static unsigned parse_flags(char *options)
{
    static const struct {
        const char *name;
        unsigned flag;
    } names[] = {{"ro", GUARD_M_RO},
                 {"nosuid", GUARD_M_NOSUID},
                 {"nodev", GUARD_M_NODEV},
                 {"noexec", GUARD_M_NOEXEC}};
    unsigned flags = 0;
    char *save = NULL;
    for (char *o = strtok_r(options, ",", &save); o; o = strtok_r(NULL, ",", &save)) {
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
            flags |= strcmp(o, names[i].name) == 0 ? names[i].flag : 0;
        }
    }
    return flags;
}

/* ID PARENT MAJOR:MINOR ROOT PATH OPTIONS [TAGS…] - FSTYPE SOURCE SUPEROPTIONS */
static bool parse_line(char *line, struct guard_mount *m)
{
    char *words[WORDS];
    char *at = line;
    char *word = NULL;
    const char *rest = NULL;
    unsigned id = 0;
    unsigned parent = 0;
    for (int i = 0; i < WORDS; i++) {
        if (!(words[i] = next_word(&at))) {
            return false;
        }
    }
    while ((word = next_word(&at)) && strcmp(word, "-") != 0) {
    }
    char *fstype = next_word(&at);
    char *source = next_word(&at);
    char *super = next_word(&at);
    /* A source may be empty; then two blanks follow each other and `source` is "". */
    if (!word || !fstype || !source || !super || !number(words[WORD_ID], '\0', &rest, &id) ||
        !number(words[WORD_PARENT], '\0', &rest, &parent) || !parse_dev(words[WORD_DEV], &m->dev) ||
        words[WORD_PATH][0] != '/') {
        return false;
    }
    guard_unescape(words[WORD_ROOT]);
    guard_unescape(words[WORD_PATH]);
    guard_unescape(source);
    m->id = (int)id;
    m->parent = (int)parent;
    m->root = words[WORD_ROOT];
    m->path = words[WORD_PATH];
    m->flags = parse_flags(words[WORD_OPTIONS]);
    m->fstype = fstype;
    m->source = source;
    m->super_ro = parse_flags(super) & GUARD_M_RO;
    return true;
}

static size_t count_lines(const char *text, size_t n)
{
    size_t lines = 0;
    for (size_t i = 0; i < n; i++) {
        lines += text[i] == '\n';
    }
    return lines + (n && text[n - 1] != '\n');
}

int guard_parse_mounts(const char *text, size_t n, struct guard_mounts *out, struct ct_err *err)
{
    *out = (struct guard_mounts){0};
    size_t lines = count_lines(text, n);
    if (memchr(text, '\0', n)) {
        return ct_err_set(err, CT_MALFORMED, "mountinfo: NUL");
    }
    if (lines > GUARD_MOUNTS_MAX) {
        return ct_err_set(err, CT_UNSUPPORTED, "more than %d mounts", GUARD_MOUNTS_MAX);
    }
    out->items = ct_arena_alloc(&out->arena, lines, sizeof(*out->items), err);
    char *copy = ct_arena_copy(&out->arena, text, n, err);
    if (!out->items || !copy) {
        return -1;
    }
    for (char *line = copy; *line;) {
        char *nl = strchrnul(line, '\n');
        char *next = *nl ? nl + 1 : nl;
        *nl = '\0';
        if (!parse_line(line, &out->items[out->count])) {
            return ct_err_set(err, CT_MALFORMED, "mountinfo: line %zu", out->count + 1);
        }
        out->count++;
        line = next;
    }
    return out->count ? 0 : ct_err_set(err, CT_MALFORMED, "mountinfo: no mount at all");
}

void guard_mounts_free(struct guard_mounts *m)
{
    ct_arena_free(&m->arena);
    *m = (struct guard_mounts){0};
}

bool guard_path_beneath(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    while (n && dir[n - 1] == '/') {
        n--;
    }
    return strncmp(path, dir, n) == 0 && (path[n] == '/' || path[n] == '\0');
}

static const struct guard_mount *by_id(const struct guard_mounts *m, int id)
{
    for (size_t i = 0; i < m->count; i++) {
        if (m->items[i].id == id) {
            return &m->items[i];
        }
    }
    return NULL;
}

/* Whether something but `except` lies over `one`: on its root, or within the same parent over a
 * directory above (what was there first would be its parent). */
static bool covered(const struct guard_mounts *m, const struct guard_mount *one,
                    const struct guard_mount *except)
{
    for (size_t i = 0; i < m->count; i++) {
        const struct guard_mount *o = &m->items[i];
        bool same = strcmp(o->path, one->path) == 0;
        if (o == one || o == except || o->id == o->parent) {
            continue;
        }
        if ((o->parent == one->id && same) ||
            (o->parent == one->parent && !same && guard_path_beneath(one->path, o->path))) {
            return true;
        }
    }
    return false;
}

bool guard_mount_visible(const struct guard_mounts *m, const struct guard_mount *one)
{
    const struct guard_mount *from = NULL;
    for (size_t depth = 0; one && depth <= m->count; depth++) {
        if (covered(m, one, from)) {
            return false;
        }
        from = one;
        one = by_id(m, one->parent);
        if (!one || one == from) {
            return true;
        }
    }
    return false;
}

const struct guard_mount *guard_mount_of(const struct guard_mounts *m, const char *path)
{
    const struct guard_mount *best = NULL;
    for (size_t i = 0; i < m->count; i++) {
        const struct guard_mount *o = &m->items[i];
        if (guard_path_beneath(path, o->path) && guard_mount_visible(m, o) &&
            (!best || strlen(o->path) >= strlen(best->path))) {
            best = o;
        }
    }
    return best;
}
