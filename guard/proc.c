#include "guard/proc.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A line at a time out of a text that need not end with NUL. */
struct lines {
    const char *p, *end;
};

static bool next_line(struct lines *l, const char **line, size_t *n)
{
    if (l->p >= l->end) {
        return false;
    }
    const char *nl = memchr(l->p, '\n', (size_t)(l->end - l->p));
    *line = l->p;
    *n = (size_t)((nl ? nl : l->end) - l->p);
    l->p = nl ? nl + 1 : l->end;
    return true;
}

/* Digits up to something else; moves *p. Overflow is not good. */
static bool take_number(const char **p, const char *end, unsigned base, uint64_t *out)
{
    const char *from = *p;
    uint64_t v = 0;
    for (; *p < end; (*p)++) {
        char c = **p;
        unsigned d = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                     : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a' + 10)
                                            : 16;
        if (d >= base) {
            break;
        }
        if (__builtin_mul_overflow(v, base, &v) || __builtin_add_overflow(v, d, &v)) {
            return false;
        }
    }
    *out = v;
    return *p > from;
}

static void skip_blanks(const char **p, const char *end)
{
    while (*p < end && (**p == ' ' || **p == '\t')) {
        (*p)++;
    }
}

/* ---- status ---- */

static bool value_of(const char *line, size_t n, const char *key, const char **value)
{
    size_t len = strlen(key);
    if (n <= len || memcmp(line, key, len) != 0 || line[len] != ':') {
        return false;
    }
    *value = line + len + 1;
    return true;
}

static bool numbers(const char *p, const char *end, unsigned base, uint64_t *out, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        skip_blanks(&p, end);
        if (!take_number(&p, end, base, &out[i])) {
            return false;
        }
    }
    return true;
}

static bool ids(const char *p, const char *end, uint32_t out[4])
{
    uint64_t v[4];
    if (!numbers(p, end, 10, v, 4)) {
        return false;
    }
    for (int i = 0; i < 4; i++) {
        if (v[i] > UINT32_MAX) {
            return false;
        }
        out[i] = (uint32_t)v[i];
    }
    return true;
}

static bool has_zero(const char *p, const char *end)
{
    uint64_t v = 0;
    for (;;) {
        skip_blanks(&p, end);
        if (!take_number(&p, end, 10, &v)) {
            return false;
        }
        if (v == 0) {
            return true;
        }
    }
}

enum seen { TGID = 1, TRACER = 2, UID = 4, GID = 8, CAPS = 16, STATE = 32 };

/* Bits of what the line was, or -1. */
static int status_line(const char *line, size_t n, struct guard_status *s)
{
    static const char *const sets[GUARD_CAPSETS] = {"CapInh", "CapPrm", "CapEff", "CapBnd",
                                                    "CapAmb"};
    const char *end = line + n;
    const char *v = NULL;
    uint64_t number = 0;
    if (value_of(line, n, "Tgid", &v)) {
        bool good = numbers(v, end, 10, &number, 1) && number <= INT32_MAX;
        s->tgid = (pid_t)number;
        return good ? TGID : -1;
    }
    if (value_of(line, n, "TracerPid", &v)) {
        bool good = numbers(v, end, 10, &number, 1) && number <= INT32_MAX;
        s->tracer = (pid_t)number;
        return good ? TRACER : -1;
    }
    if (value_of(line, n, "State", &v)) {
        skip_blanks(&v, end);
        s->state = v < end ? *v : '?';
        return STATE;
    }
    if (value_of(line, n, "Uid", &v)) {
        return ids(v, end, s->uid) ? UID : -1;
    }
    if (value_of(line, n, "Gid", &v)) {
        return ids(v, end, s->gid) ? GID : -1;
    }
    if (value_of(line, n, "Groups", &v)) {
        s->group0 = has_zero(v, end);
    } else if (value_of(line, n, "NoNewPrivs", &v)) {
        s->no_new_privs = numbers(v, end, 10, &number, 1) ? (int)(number & 1) : -1;
    } else if (value_of(line, n, "Seccomp", &v)) {
        s->seccomp = numbers(v, end, 10, &number, 1) ? (int)(number & 3) : -1;
    }
    for (int i = 0; i < GUARD_CAPSETS; i++) {
        if (value_of(line, n, sets[i], &v)) {
            return numbers(v, end, 16, &s->caps[i], 1) ? CAPS << (i + 2) : -1;
        }
    }
    return 0;
}

int guard_parse_status(const char *text, size_t n, struct guard_status *out, struct ct_err *err)
{
    const int all = TGID | TRACER | UID | GID | STATE | 0x1f * (CAPS << 2);
    struct lines l = {text, text + n};
    const char *line = NULL;
    size_t len = 0;
    int seen = 0;
    *out = (struct guard_status){.no_new_privs = -1, .seccomp = -1};
    while (next_line(&l, &line, &len)) {
        int bits = status_line(line, len, out);
        /* Name stands in the first line; the kernel escapes a newline in it. */
        if (bits < 0 || (seen & bits)) {
            return ct_err_set(err, CT_MALFORMED, "status: %.*s", (int)(len < 80 ? len : 80), line);
        }
        seen |= bits;
    }
    return (seen & all) == all ? 0 : ct_err_set(err, CT_MALFORMED, "status: lines are missing");
}

/* The fields behind the name, which is the process's own choice: counted from its last
 * parenthesis. NULL if there are not so many. */
static const char *stat_field(const char *text, size_t n, int number)
{
    const char *end = text + n;
    const char *p = memrchr(text, ')', n);
    for (int field = 2; p && field < number; field++) {
        p = memchr(p, ' ', (size_t)(end - p));
        p = p ? p + 1 : NULL;
    }
    return p;
}

int guard_parse_stat(const char *text, size_t n, uint64_t *start_time, bool *exiting,
                     struct ct_err *err)
{
    const uint64_t pf_exiting = 4;
    uint64_t flags = 0;
    const char *nine = stat_field(text, n, 9);
    const char *twenty_two = stat_field(text, n, 22);
    if (!nine || !twenty_two || !take_number(&nine, text + n, 10, &flags) ||
        !take_number(&twenty_two, text + n, 10, start_time)) {
        return ct_err_set(err, CT_MALFORMED, "stat: no start time");
    }
    *exiting = flags & pf_exiting;
    return 0;
}

/* ---- maps ---- */

/* START-END PERMS OFFSET MAJOR:MINOR INODE PATH */
static bool map_line(const char *line, size_t n, struct guard_map *m, const char **path)
{
    const char *p = line;
    const char *end = line + n;
    uint64_t skip = 0;
    *m = (struct guard_map){0};
    if (!take_number(&p, end, 16, &m->start) || p == end || *p++ != '-' ||
        !take_number(&p, end, 16, &m->end) || end - p < 6 || p[0] != ' ' || p[5] != ' ') {
        return false;
    }
    m->flags = (p[2] == 'w' ? GUARD_MAP_W : 0) | (p[3] == 'x' ? GUARD_MAP_X : 0) |
               (p[4] == 's' ? GUARD_MAP_SHARED : 0);
    p += 6;
    if (!take_number(&p, end, 16, &skip) || p == end || *p++ != ' ' ||
        !take_number(&p, end, 16, &skip) || p == end || *p++ != ':' ||
        !take_number(&p, end, 16, &skip) || p == end || *p++ != ' ' ||
        !take_number(&p, end, 10, &m->ino)) {
        return false;
    }
    skip_blanks(&p, end);
    *path = p;
    return m->start < m->end;
}

static int add_map(struct guard_maps *out, size_t *cap, struct guard_map *m, const char *path,
                   size_t len, struct ct_err *err)
{
    static const char gone[] = " (deleted)";
    const size_t tail = sizeof(gone) - 1;
    if (out->count == *cap) {
        size_t want = *cap ? *cap * 2 : 64;
        struct guard_map *more = realloc(out->items, want * sizeof(*more));
        if (!more) {
            return ct_err_set(err, CT_NOMEM, "no memory for maps");
        }
        out->items = more;
        *cap = want;
    }
    m->deleted = len > tail && memcmp(path + len - tail, gone, tail) == 0;
    char *copy = ct_arena_copy(&out->arena, path, m->deleted ? len - tail : len, err);
    if (!copy) {
        return -1;
    }
    guard_unescape(copy);
    m->path = copy;
    out->items[out->count++] = *m;
    return 0;
}

int guard_parse_maps(const char *text, size_t n, struct guard_maps *out, struct ct_err *err)
{
    struct lines l = {text, text + n};
    const char *line = NULL;
    size_t len = 0;
    size_t cap = 0;
    *out = (struct guard_maps){0};
    while (next_line(&l, &line, &len)) {
        struct guard_map m;
        const char *path = NULL;
        if (!map_line(line, len, &m, &path)) {
            return ct_err_set(err, CT_MALFORMED, "maps: %.*s", (int)(len < 80 ? len : 80), line);
        }
        if (!(m.flags & GUARD_MAP_X)) {
            continue;
        }
        if (out->count >= GUARD_MAPS_MAX) {
            return ct_err_set(err, CT_UNSUPPORTED, "more than %d mappings of code", GUARD_MAPS_MAX);
        }
        if (add_map(out, &cap, &m, path, (size_t)(line + len - path), err)) {
            return -1;
        }
    }
    return 0;
}

void guard_maps_free(struct guard_maps *m)
{
    free(m->items);
    ct_arena_free(&m->arena);
    *m = (struct guard_maps){0};
}

/* ---- the small ones ---- */

static unsigned env_bit(const char *var, size_t n)
{
    static const struct {
        const char *name;
        unsigned bit;
    } names[] = {{"LD_PRELOAD=", GUARD_ENV_PRELOAD},
                 {"LD_AUDIT=", GUARD_ENV_AUDIT},
                 {"LD_LIBRARY_PATH=", GUARD_ENV_LIBRARY_PATH},
                 {"PYTHONPATH=", GUARD_ENV_INTERPRETER},
                 {"PYTHONHOME=", GUARD_ENV_INTERPRETER},
                 {"PYTHONINSPECT=", GUARD_ENV_INTERPRETER},
                 {"PYTHONUSERBASE=", GUARD_ENV_INTERPRETER},
                 {"PYTHONPYCACHEPREFIX=", GUARD_ENV_INTERPRETER},
                 {"NODE_OPTIONS=", GUARD_ENV_INTERPRETER},
                 {"NODE_PATH=", GUARD_ENV_INTERPRETER},
                 {"BASH_ENV=", GUARD_ENV_INTERPRETER},
                 {"PERL5LIB=", GUARD_ENV_INTERPRETER},
                 {"PERL5OPT=", GUARD_ENV_INTERPRETER},
                 {"RUBYLIB=", GUARD_ENV_INTERPRETER},
                 {"RUBYOPT=", GUARD_ENV_INTERPRETER}};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        size_t len = strlen(names[i].name);
        if (n > len && memcmp(var, names[i].name, len) == 0) {
            return names[i].bit;
        }
    }
    return 0;
}

unsigned guard_parse_environ(const char *text, size_t n)
{
    unsigned bits = 0;
    for (size_t at = 0; at < n;) {
        size_t len = strnlen(text + at, n - at);
        bits |= env_bit(text + at, len);
        at += len + 1;
    }
    return bits;
}

static bool limit_number(const char **p, const char *end, uint64_t *out)
{
    static const char none[] = "unlimited";
    skip_blanks(p, end);
    if ((size_t)(end - *p) >= sizeof(none) - 1 && memcmp(*p, none, sizeof(none) - 1) == 0) {
        *p += sizeof(none) - 1;
        *out = UINT64_MAX;
        return true;
    }
    return take_number(p, end, 10, out);
}

int guard_parse_limit(const char *text, size_t n, const char *name, uint64_t *soft, uint64_t *hard,
                      struct ct_err *err)
{
    struct lines l = {text, text + n};
    const char *line = NULL;
    size_t len = 0;
    size_t want = strlen(name);
    while (next_line(&l, &line, &len)) {
        const char *p = line + want;
        if (len > want && memcmp(line, name, want) == 0 && limit_number(&p, line + len, soft) &&
            limit_number(&p, line + len, hard)) {
            return 0;
        }
    }
    return ct_err_set(err, CT_MALFORMED, "limits: no row '%s'", name);
}

bool guard_parse_swaps(const char *text, size_t n)
{
    const char *nl = memchr(text, '\n', n);
    return nl && nl + 1 < text + n;
}

uint64_t guard_parse_ns(const char *text)
{
    const char *p = strchr(text, '[');
    const char *end = text + strlen(text);
    uint64_t v = 0;
    if (!p) {
        return 0;
    }
    p++;
    return take_number(&p, end, 10, &v) && strcmp(p, "]") == 0 ? v : 0;
}

void guard_unescape(char *text)
{
    char *to = text;
    for (const char *p = text; *p; p++) {
        if (p[0] == '\\' && p[1] >= '0' && p[1] <= '3' && p[2] >= '0' && p[2] <= '7' &&
            p[3] >= '0' && p[3] <= '7') {
            *to++ = (char)((p[1] - '0') << 6 | (p[2] - '0') << 3 | (p[3] - '0'));
            p += 3;
        } else {
            *to++ = *p;
        }
    }
    *to = '\0';
}
