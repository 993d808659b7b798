#include "kvfs/mount/options.h"

#include <argp.h>
#include <getopt.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "format/base/log.h"
#include "kvfs/args.h"
#include "kvfs/kvfs.h"
#include "kvfs/mount/keys_in.h"
#include "kvfs/mount/limits.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

enum {
    NOBODY = 65534,
    THREADS_MAX = 256,
    READAHEAD_MAX = 1 << 20,
    READAHEAD_KB = 1024,
    LINGER_MAX = 1 << 30,
    LINGER = 30,
    WAIT_MAX = 86400,
    EXIT_MAX = 125,
    WAIT = 10
};
static const uint64_t memory_least = 16 << 20;

typedef int (*set_fn)(struct kvfs_mount_options *o, const char *value, struct ct_err *err);

/* ---- What each option does; `value` is never NULL where the table names one ---- */

static int set_key(struct kvfs_mount_options *o, const char *value, struct ct_err *err)
{
    return kvfs_keys_arg_add(&o->keys, value)
               ? ct_err_set(err, CT_USAGE, "more than %d times", KVFS_KEY_PATHS_MAX)
               : 0;
}

/* The index of a word in a list; the list ends with NULL. */
static int choose(const char *value, const char *const *words, int *index, struct ct_err *err)
{
    struct ct_buf list = {0};
    for (int i = 0; words[i]; i++) {
        if (strcmp(value, words[i]) == 0) {
            ct_buf_free(&list);
            *index = i;
            return 0;
        }
        ct_buf_printf(&list, "%s%s", i ? ", " : "", words[i]);
    }
    ct_buf_putc(&list, '\0');
    ct_err_set(err, CT_USAGE, "'%s' is none of %s", value,
               list.data ? (const char *)list.data : "these");
    ct_buf_free(&list);
    return -1;
}

/* The words are at the index of their value. */
#define CHOICE(function, field, type, ...)                                                         \
    static int function(struct kvfs_mount_options *o, const char *value, struct ct_err *err)       \
    {                                                                                              \
        static const char *const words[] = {__VA_ARGS__, NULL};                                    \
        int i = 0;                                                                                 \
        int rc = choose(value, words, &i, err);                                                    \
        o->config.field = (type)i;                                                                 \
        return rc;                                                                                 \
    }
CHOICE(set_plain, plain, enum kvfs_plain, [KVFS_PLAIN_SAFE] = "safe", [KVFS_PLAIN_ALL] = "all",
       [KVFS_PLAIN_NONE] = "none")
CHOICE(set_manifest, manifest,
       enum kvfs_manifest, [KVFS_MANIFEST_AUTO] = "auto", [KVFS_MANIFEST_REQUIRE] = "require")
CHOICE(set_update, update,
       enum kvfs_update, [KVFS_UPDATE_PIN] = "pin", [KVFS_UPDATE_FOLLOW] = "follow")
CHOICE(set_cache, cache, enum kvfs_cache, [KVFS_CACHE_AUTO] = "auto", [KVFS_CACHE_PAGE] = "page",
       [KVFS_CACHE_RESIDENT] = "resident", [KVFS_CACHE_DIRECT] = "direct")
CHOICE(set_log_level, log_level, uint32_t, [CT_LOG_ERROR] = "error", [CT_LOG_WARN] = "warning",
       [CT_LOG_INFO] = "info", [CT_LOG_DEBUG] = "debug")

static int set_crypto(struct kvfs_mount_options *o, const char *value, struct ct_err *err)
{
    int i = 0;
    o->crypto_set = true;
    int rc = choose(value, ct_crypto_names, &i, err);
    o->config.crypto = (enum ct_crypto)i;
    return rc;
}

static int set_memory(struct kvfs_mount_options *o, const char *value, struct ct_err *err)
{
    o->memory_set = strcmp(value, "auto") != 0;
    if (!o->memory_set) {
        return 0;
    }
    if (kvfs_parse_size(value, &o->config.memory)) {
        return ct_err_set(err, CT_USAGE, "'%s' is no size (such as 256M) and not auto", value);
    }
    return o->config.memory >= memory_least ? 0
                                            : ct_err_set(err, CT_USAGE, "at least 16M is needed");
}

static int set_resident(struct kvfs_mount_options *o, const char *value, struct ct_err *err)
{
    o->resident_set = strcmp(value, "auto") != 0;
    if (!o->resident_set) {
        return 0;
    }
    return kvfs_parse_size(value, &o->config.resident) || !o->config.resident
               ? ct_err_set(err, CT_USAGE, "'%s' is no size (such as 16G) and not auto", value)
               : 0;
}

static int set_number(const char *value, uint64_t least, uint64_t most, uint32_t *out,
                      struct ct_err *err)
{
    uint64_t n = 0;
    if (kvfs_parse_u64(value, most, &n) || n < least) {
        return ct_err_set(err, CT_USAGE, "'%s' is no number from %u to %u", value, (unsigned)least,
                          (unsigned)most);
    }
    *out = (uint32_t)n;
    return 0;
}

static int set_threads(struct kvfs_mount_options *o, const char *value, struct ct_err *err)
{
    o->threads_set = strcmp(value, "auto") != 0;
    return o->threads_set ? set_number(value, 1, THREADS_MAX, &o->config.threads, err) : 0;
}

/* A number, or the name of a user (its group in *gid, which may be NULL). */
static int find_user(const char *value, uint32_t *uid, uint32_t *gid, struct ct_err *err)
{
    uint64_t n = 0;
    bool number = kvfs_parse_u64(value, UINT32_MAX - 1, &n) == 0;
    const struct passwd *pw = number ? getpwuid((uid_t)n) : getpwnam(value);
    if (!pw && !number) {
        return ct_err_set(err, CT_USAGE, "there is no user '%s'", value);
    }
    *uid = number ? (uint32_t)n : pw->pw_uid;
    if (gid) {
        *gid = pw ? pw->pw_gid : (uint32_t)n;
    }
    return 0;
}

static int find_group(const char *value, uint32_t *gid, struct ct_err *err)
{
    uint64_t n = 0;
    if (kvfs_parse_u64(value, UINT32_MAX - 1, &n) == 0) {
        *gid = (uint32_t)n;
        return 0;
    }
    const struct group *gr = getgrnam(value);
    if (!gr) {
        return ct_err_set(err, CT_USAGE, "there is no group '%s'", value);
    }
    *gid = gr->gr_gid;
    return 0;
}

static int set_uid(struct kvfs_mount_options *o, const char *value, struct ct_err *err)
{
    o->uid_set = true;
    return find_user(value, &o->config.uid, NULL, err);
}

static int set_gid(struct kvfs_mount_options *o, const char *value, struct ct_err *err)
{
    o->gid_set = true;
    return find_group(value, &o->config.gid, err);
}

static int set_umask(struct kvfs_mount_options *o, const char *value, struct ct_err *err)
{
    char *end = NULL;
    unsigned long mask = strtoul(value, &end, 8);
    if (*value < '0' || *value > '7' || *end || mask > 0777) {
        return ct_err_set(err, CT_USAGE, "'%s' is no octal mask such as 022", value);
    }
    o->config.umask = (uint32_t)mask;
    o->config.umask_set = true;
    return 0;
}

static int set_text(const char *value, char *out, size_t cap, struct ct_err *err)
{
    if (strlen(value) >= cap) {
        return ct_err_set(err, CT_USAGE, "it is longer than %zu characters", cap - 1);
    }
    memcpy(out, value, strlen(value) + 1);
    return 0;
}

#define FLAG(function, field)                                                                      \
    static int function(struct kvfs_mount_options *o, const char *value, struct ct_err *err)       \
    {                                                                                              \
        (void)value;                                                                               \
        (void)err;                                                                                 \
        o->field = true;                                                                           \
        return 0;                                                                                  \
    }
#define NUMBER(function, field, least, most)                                                       \
    static int function(struct kvfs_mount_options *o, const char *value, struct ct_err *err)       \
    {                                                                                              \
        return set_number(value, least, most, &o->field, err);                                     \
    }
#define WORD(function, field)                                                                      \
    static int function(struct kvfs_mount_options *o, const char *value, struct ct_err *err)       \
    {                                                                                              \
        (void)err;                                                                                 \
        o->field = value;                                                                          \
        return 0;                                                                                  \
    }
#define TEXT(function, field)                                                                      \
    static int function(struct kvfs_mount_options *o, const char *value, struct ct_err *err)       \
    {                                                                                              \
        return set_text(value, o->config.field, sizeof(o->config.field), err);                     \
    }
NUMBER(set_linger, config.linger, 0, LINGER_MAX)
NUMBER(set_readahead, config.readahead_kb, 0, READAHEAD_MAX)
NUMBER(set_wait, config.wait, 0, WAIT_MAX)
NUMBER(set_exit_on_seal, exit_on_seal, 1, EXIT_MAX)
WORD(set_key_dir, keys.key_dir)
WORD(set_deploy_key, deploy_key)
WORD(set_ca, ca)
WORD(set_state_dir, state_dir)
WORD(set_worker_user, worker_user)
WORD(set_log, log_file)
WORD(set_audit, audit_file)
WORD(set_guard, guard)
TEXT(set_server, server)
TEXT(set_server_key, server_key)
TEXT(set_model, model)
TEXT(set_mounter, mounter)
FLAG(set_require_all, config.require_all)
FLAG(set_allow_other, config.allow_other)
FLAG(set_foreground, config.foreground)
FLAG(set_nonempty, nonempty)
FLAG(set_warm, warm)
FLAG(set_audit_log, audit_log)

static int set_debug(struct kvfs_mount_options *o, const char *value, struct ct_err *err)
{
    (void)value;
    (void)err;
    o->config.log_level = CT_LOG_DEBUG;
    return 0;
}

/* ---- The table ---- */

static const struct option_row {
    const char *name;
    int short_key;
    const char *arg; /* NULL: a flag */
    const char *help;
    set_fn set;
} table[] = {
    {"key", 'k', "FILE|DIR", "JWK or JWK Set, or a directory of them; may be repeated", set_key},
    {"key-dir", 'K', "DIR", "Master keys that a header names by file:// are looked for in here",
     set_key_dir},
    {"server", 's', "URL", "Ask the key server at this https address for the keys", set_server},
    {"server-key", 0, "THUMBPRINT",
     "Of the server's identity key, as kvfs-keyserver init prints it", set_server_key},
    {"model", 'm', "OWNER/NAME", "What lies in SRC (as each file says)", set_model},
    {"deploy-key", 0, "FILE|fd:N",
     "API key to show the server (" KVFS_DEPLOY_KEY_ENV
     ", or systemd's credential kvfs-deploy-key)",
     set_deploy_key},
    {"ca", 0, "FILE", "Certificates to verify the server's with (the system's)", set_ca},
    {"wait", 0, "SEC", "How long to go on asking a server that does not answer (10)", set_wait},
    {"state-dir", 0, "DIR",
     "Remembers the latest generation that was seen of each model (systemd's, or /var/lib/kvfs "
     "where it exists)",
     set_state_dir},
    {"guard", 'g', "strict|drift|off|FILE",
     "How the container has to be and to stay, or nothing is served any more (drift)", set_guard},
    {"exit-on-seal", 0, "CODE",
     "Once sealed, unmount and end with this code, so that who started it starts it anew",
     set_exit_on_seal},
    {"manifest", 0, "auto|require", "require: show nothing that no manifest vouches for (auto)",
     set_manifest},
    {"plain", 0, "safe|all|none",
     "What is shown of that which no signature covers: inert side files, all, nothing (safe)",
     set_plain},
    {"require-all", 0, NULL, "Do not mount if the key of any model is missing", set_require_all},
    {"update", 0, "pin|follow",
     "A replaced file: keep to the version first opened, or show the new one (pin)", set_update},
    {"uid", 0, "UID|NAME", "Owner of all files (the caller)", set_uid},
    {"gid", 0, "GID|NAME", "Group of all files (the caller's)", set_gid},
    {"umask", 0, "OCTAL", "Modes are 0444 and 0555 less this mask (0440 and 0550)", set_umask},
    {"allow-other", 0, NULL, "Users other than the caller may enter (always when root mounts)",
     set_allow_other},
    {"memory", 0, "SIZE|auto",
     "Plaintext that the worker may hold (auto: an eighth of the memory limit, 64M to 512M)",
     set_memory},
    {"threads", 0, "N|auto", "Threads that decrypt (auto: the processors it may use)", set_threads},
    {"cache", 0, "auto|page|resident|direct",
     "Whole files decrypted into memory at first open, none, or those of 256 MB and more where "
     "kernel, privileges and memory allow (auto); or nothing kept (direct)",
     set_cache},
    {"resident", 0, "SIZE|auto", "Memory for these (auto: half of what is available)",
     set_resident},
    {"linger", 0, "SEC", "How long such a file stays after its last close (30)", set_linger},
    {"crypto", 0, "auto|openssl|ipsec",
     "Cipher library (auto: for each operation the faster that gives right answers)", set_crypto},
    {"warm", 0, NULL, "Decrypt everything in the background (kvfs warm) once it is mounted",
     set_warm},
    {"readahead", 0, "KIB", "The kernel's read-ahead (1024; takes root)", set_readahead},
    {"mounter", 0, "SOCKET|fd:N", "Have kvfs-mounter mount, for a process without privileges",
     set_mounter},
    {"worker-user", 0, "USER[:GROUP]", "What the worker becomes when root mounts (65534)",
     set_worker_user},
    {"audit", 0, "FILE", "Append every decision, one line of JSON each, chained and signed",
     set_audit},
    {"audit-log", 0, NULL, "The same goes where the log goes", set_audit_log},
    {"log", 0, "FILE", "Log to a file (syslog; in the foreground stderr)", set_log},
    {"log-level", 0, "LEVEL", "error, warning, info or debug (info)", set_log_level},
    {"debug", 'd', NULL, "The same as log-level=debug", set_debug},
    {"nonempty", 0, NULL, "Mount over a directory that is not empty", set_nonempty},
    {"foreground", 'f', NULL, "Stay in the foreground", set_foreground},
};

/* What mount(8) and fstab say for themselves. A trailing `*`: whatever follows. */
static const char *const ignored[] = {
    "_netdev",  "async",      "atime",  "auto",       "comment=*",  "defaults",    "dev",
    "diratime", "exec",       "group",  "lazytime",   "loud",       "noatime",     "noauto",
    "nodev",    "nodiratime", "nofail", "nolazytime", "norelatime", "nosuid",      "nouser",
    "owner",    "relatime",   "ro",     "rw",         "silent",     "strictatime", "suid",
    "user",     "user=*",     "users",  "X-*",        "x-*"};

static bool is_ignored(const char *option)
{
    for (size_t i = 0; i < COUNT(ignored); i++) {
        size_t n = strlen(ignored[i]);
        if (ignored[i][n - 1] == '*' ? strncmp(option, ignored[i], n - 1) == 0
                                     : strcmp(option, ignored[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* `n` bytes of name, `_` as `-`. */
static const struct option_row *find_row(const char *name, size_t n)
{
    for (size_t i = 0; i < COUNT(table); i++) {
        const char *want = table[i].name;
        size_t k = 0;
        while (k < n && want[k] && (want[k] == name[k] || (want[k] == '-' && name[k] == '_'))) {
            k++;
        }
        if (k == n && !want[k]) {
            return &table[i];
        }
    }
    return NULL;
}

/* One `name[=value]`, which stays in use. */
static int apply(struct kvfs_mount_options *o, const char *option, struct ct_err *err)
{
    size_t n = strcspn(option, "=");
    const char *value = option[n] ? option + n + 1 : NULL;
    const struct option_row *row = find_row(option, n);
    if (strcmp(option, "noexec") == 0) {
        o->noexec = true;
        return 0;
    }
    if (!row) {
        return is_ignored(option)
                   ? 0
                   : ct_err_set(err, CT_USAGE,
                                "unknown option '%.*s' (kvfs mount --help lists them all)", (int)n,
                                option);
    }
    if (!row->arg != !value || (value && !*value)) {
        return ct_err_set(err, CT_USAGE,
                          row->arg ? "option %s: %s=%s is missing its value"
                                   : "option %s takes no value",
                          row->name, row->name, row->arg ? row->arg : "");
    }
    return row->set(o, value, err) ? ct_err_wrap(err, "option %s", row->name) : 0;
}

int kvfs_options_list(struct kvfs_mount_options *o, const char *list, struct ct_err *err)
{
    /* Options point into the copy: all copies stay, and stay in reach. */
    static struct kept {
        struct kept *next;
        char text[];
    } * all;
    size_t size = strlen(list) + 1;
    struct kept *copy = malloc(sizeof(*copy) + size);
    if (!copy) {
        return ct_err_set(err, CT_NOMEM, "no memory for options");
    }
    copy->next = all;
    all = copy;
    char *from = memcpy(copy->text, list, size);
    for (bool more = true; more;) {
        char *option = from;
        char *to = from;
        while (*from && *from != ',') {
            if (*from == '\\' && (from[1] == ',' || from[1] == '\\')) {
                from++;
            }
            *to++ = *from++;
        }
        more = *from == ',';
        from += more;
        *to = '\0';
        if (*option && apply(o, option, err)) {
            return -1;
        }
    }
    return 0;
}

/* ---- Command lines ---- */

enum { KEY_OF_ROW = 0x100 };

static void take_place(struct kvfs_mount_options *o, const char *arg, struct argp_state *state)
{
    char *to = state->arg_num == 0 ? o->config.source : o->config.mountpoint;
    if (state->arg_num > 1) {
        argp_error(state, "too many arguments: %s", arg);
    }
    if (!*arg || strlen(arg) >= PATH_MAX) {
        argp_error(state, "'%s' is no path", arg);
    }
    memcpy(to, arg, strlen(arg) + 1);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct kvfs_mount_options *o = state->input;
    struct ct_err err = CT_ERR_INIT;
    if (key == 'o') {
        if (kvfs_options_list(o, arg, &err)) {
            argp_error(state, "%s", err.msg);
        }
        return 0;
    }
    if (key == ARGP_KEY_ARG) {
        take_place(o, arg, state);
        return 0;
    }
    if (key == ARGP_KEY_END && state->arg_num < 2) {
        argp_error(state, "what is to be mounted, and where?");
    }
    for (size_t i = 0; i < COUNT(table); i++) {
        if (key == (table[i].short_key ? table[i].short_key : (int)(KEY_OF_ROW + i))) {
            if (table[i].set(o, arg, &err)) {
                argp_error(state, "--%s: %s", table[i].name, err.msg);
            }
            return 0;
        }
    }
    return ARGP_ERR_UNKNOWN;
}

static void defaults(struct kvfs_mount_options *o)
{
    o->config.log_level = CT_LOG_INFO;
    o->config.readahead_kb = READAHEAD_KB;
    o->config.linger = LINGER;
    o->config.wait = WAIT;
    o->guard = "drift";
}

void kvfs_options_parse(struct kvfs_mount_options *o, int argc, char **argv)
{
    struct argp_option options[COUNT(table) + 2] = {{0}};
    for (size_t i = 0; i < COUNT(table); i++) {
        options[i] = (struct argp_option){
            .name = table[i].name,
            .key = table[i].short_key ? table[i].short_key : (int)(KEY_OF_ROW + i),
            .arg = table[i].arg,
            .doc = table[i].help,
        };
    }
    options[COUNT(table)] = (struct argp_option){
        .key = 'o', .arg = "NAME[=VALUE],...", .doc = "The same options, as fstab says them"};
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "SRC MNT",
        .doc = "Mount the directory SRC of encrypted models at MNT, as plain safetensors.\v"
               "Defaults are in parentheses. Without --key and --server, keys come from the "
               "environment variable " KVFS_KEYS_ENV ".",
    };
    defaults(o);
    kvfs_parse_args(&argp, "mount", argc, argv, o);
}

int kvfs_options_parse_helper(struct kvfs_mount_options *o, int argc, char **argv,
                              struct ct_err *err)
{
    int opt;
    defaults(o);
    opterr = 0;
    while ((opt = getopt(argc, argv, "sfnvrwo:t:")) != -1) {
        if (opt == '?') {
            return ct_err_set(err, CT_USAGE, "unknown option -%c", optopt);
        }
        o->fake = o->fake || opt == 'f';
        if (opt == 'o' && kvfs_options_list(o, optarg, err)) {
            return -1;
        }
    }
    if (argc - optind != 2) {
        return ct_err_set(err, CT_USAGE, "usage: %s SRC MNT [-o OPTIONS]", argv[0]);
    }
    char *const places[] = {o->config.source, o->config.mountpoint};
    for (int i = 0; i < 2; i++) {
        size_t n = strlen(argv[optind + i]);
        if (n == 0 || n >= PATH_MAX) {
            return ct_err_set(err, CT_USAGE, "'%s' is no path", argv[optind + i]);
        }
        memcpy(places[i], argv[optind + i], n + 1);
    }
    return 0;
}

/* ---- What nobody said ---- */

static int complete_worker(struct kvfs_mount_options *o, struct ct_err *err)
{
    o->config.worker_uid = NOBODY;
    o->config.worker_gid = NOBODY;
    if (!o->worker_user) {
        return 0;
    }
    char user[64];
    size_t n = strcspn(o->worker_user, ":");
    if (n >= sizeof(user)) {
        return ct_err_set(err, CT_USAGE, "option worker-user: the name is too long");
    }
    memcpy(user, o->worker_user, n);
    user[n] = '\0';
    if (find_user(user, &o->config.worker_uid, &o->config.worker_gid, err) ||
        (o->worker_user[n] && find_group(o->worker_user + n + 1, &o->config.worker_gid, err))) {
        return ct_err_wrap(err, "option worker-user");
    }
    if (o->config.worker_uid == 0) {
        return ct_err_set(err, CT_USAGE, "option worker-user: the worker never runs as root");
    }
    return 0;
}

int kvfs_options_complete(struct kvfs_mount_options *o, struct ct_err *err)
{
    o->config.have_key_dir = o->keys.key_dir != NULL;
    o->config.audit = o->audit_file || o->audit_log || *o->config.server;
    o->config.uid = o->uid_set ? o->config.uid : getuid();
    o->config.gid = o->gid_set ? o->config.gid : getgid();
    o->config.allow_other = o->config.allow_other || geteuid() == 0;
    o->config.memory = o->memory_set ? o->config.memory : kvfs_auto_memory("");
    o->config.resident = o->resident_set ? o->config.resident : kvfs_available_memory("") / 2;
    o->config.threads = o->threads_set ? o->config.threads : kvfs_auto_threads("");
    if (!o->crypto_set && ct_crypto_environment(&o->config.crypto, err)) {
        return -1;
    }
    return kvfs_keys_check(o, err) || complete_worker(o, err) ? -1 : 0;
}
