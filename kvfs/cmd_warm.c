#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include "format/base/clock.h"
#include "kvfs/args.h"
#include "kvfs/kvfs.h"
#include "kvfs/mount/limits.h"
#include "kvfs/mounts.h"
#include "kvfs/progress.h"
#include "kvfs/serve/ioctl.h"
#include "kvfs/term.h"
#include "kvfs/walk.h"

/* Reading stops while this much of the machine's (or cgroup's) memory is still to be had. */
static const uint64_t reserve = UINT64_C(256) << 20;

enum {
    STEP = 4 << 20,
    SKIP = 1 << 20, /* behind what fails */
    STATUS_MAX = 64 << 20,
    POLL_MS = 200,
};

struct warm {
    const char *mount, *path;
    bool wait, json, quiet;

    struct kvfs_walk all;
    uint64_t bytes, done;
    uint64_t budget; /* what was to be had at the beginning: cached pages count as free later on */
    uint64_t least_resident; /* the size of the smallest file that became so */
    unsigned files, resident, damaged;
    bool short_of_memory;

    /* for the thread that shows how far an open is that decrypts the whole file */
    pthread_mutex_t lock;
    const char *opening; /* guarded by it: the path, NULL: none */
    uint64_t shown;      /* guarded by it: bytes of this file that were counted as done */
    bool ended;          /* guarded by it */
    pthread_cond_t end;
};

static const struct argp_option options[] = {
    {"wait", 'w', NULL, 0, "Return when it is done, and show progress meanwhile", 0},
    {"json", 'j', NULL, 0, "Print what was done as JSON (with --wait)", 0},
    {"quiet", 'q', NULL, 0, "Show no progress", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct warm *w = state->input;
    switch (key) {
    case 'w':
        w->wait = true;
        return 0;
    case 'j':
        w->json = w->wait = true;
        return 0;
    case 'q':
        w->quiet = true;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 1) {
            argp_error(state, "too many arguments: %s", arg);
        }
        *(state->arg_num ? &w->path : &w->mount) = arg;
        return 0;
    case ARGP_KEY_END:
        if (!w->mount) {
            argp_error(state, "which mount?");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = options,
    .parser = parse,
    .args_doc = "MNT [PATH]",
    .doc = "Decrypt files before they are read: all that is mounted, or what lies at PATH beneath "
           "MNT, in the order of names, into the page cache or, in resident mode, whole into "
           "memory. It stops before memory runs short. Without --wait it goes on in the "
           "background; kvfs umount ends it.",
};

/* ---- progress of an open ---- */

/* NULL if the mount says nothing, with an error unless it is what was said that can't be read. */
static json_t *status_of(const struct warm *w, struct ct_err *err)
{
    ct_autobuf text = {0};
    ct_autofd fd = kvfs_mount_open(w->mount, "status.json", err);
    if (fd < 0 || ct_read_fd(fd, STATUS_MAX, &text, err)) {
        return NULL;
    }
    return json_loadb((char *)text.data, text.len, 0, NULL);
}

/* What the mount says of a file, or NULL. */
static const json_t *file_of(const json_t *status, const char *path)
{
    size_t i = 0;
    const json_t *f = NULL;
    json_array_foreach(json_object_get(status, "files"), i, f)
    {
        const char *name = json_string_value(json_array_get(json_object_get(f, "paths"), 0));
        if (name && strcmp(name, path) == 0) {
            return f;
        }
    }
    return NULL;
}

/* How much of the file that is being opened is decrypted. */
static uint64_t opened_so_far(const struct warm *w, const char *path)
{
    json_t *status = status_of(w, NULL);
    uint64_t done =
        (uint64_t)json_integer_value(json_object_get(file_of(status, path), "resident_bytes"));
    json_decref(status);
    return done;
}

/* Whether it would become resident in the place of what is so already: the budget is full. */
static bool would_displace(const struct warm *w, const struct kvfs_item *item)
{
    uint64_t size = (uint64_t)item->st.st_size;
    if (!w->resident || size < w->least_resident) {
        return false;
    }
    json_t *status = status_of(w, NULL);
    const json_t *memory = json_object_get(status, "memory");
    uint64_t used = (uint64_t)json_integer_value(json_object_get(memory, "resident"));
    uint64_t bound = (uint64_t)json_integer_value(json_object_get(memory, "resident_bound"));
    const char *cache = json_string_value(json_object_get(file_of(status, item->path), "cache"));
    bool there = cache && strcmp(cache, "resident") == 0;
    json_decref(status);
    return !there && size <= bound && used > bound - size;
}

/* What was counted of the one before. */
static uint64_t set_opening(struct warm *w, const char *path)
{
    pthread_mutex_lock(&w->lock);
    uint64_t shown = w->shown;
    w->opening = path;
    w->shown = 0;
    pthread_mutex_unlock(&w->lock);
    return shown;
}

static void *show(void *arg)
{
    struct warm *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!w->ended) {
        const char *path = w->opening;
        pthread_mutex_unlock(&w->lock);
        uint64_t now = path ? opened_so_far(w, path) : 0;
        pthread_mutex_lock(&w->lock);
        if (path && path == w->opening && now > w->shown) {
            (void)kvfs_progress_add(NULL, now - w->shown);
            w->shown = now;
        }
        const struct timespec until = ct_after_ms(POLL_MS);
        while (!w->ended &&
               pthread_cond_clockwait(&w->end, &w->lock, CLOCK_MONOTONIC, &until) != ETIMEDOUT) {
        }
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* ---- one file ---- */

static bool has_memory(struct warm *w, uint64_t bytes)
{
    w->short_of_memory |=
        w->done + bytes > w->budget || kvfs_available_memory("") < bytes + reserve;
    return !w->short_of_memory;
}

/* Into the page cache, and nowhere from there; what can't be read is left out and counted. `shown`
 * bytes of it are in the progress already. */
static int read_all(struct warm *w, int fd, const struct kvfs_item *item, uint64_t shown,
                    struct ct_err *err)
{
    bool good = true;
    ct_autofd nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (nowhere < 0) {
        return ct_err_sys(err, errno, "/dev/null");
    }
    for (off_t at = 0, next = 0; at < item->st.st_size && has_memory(w, STEP); at = next) {
        off_t to = at;
        ssize_t n = sendfile(nowhere, fd, &to, STEP);
        next = n > 0 ? to : at + SKIP - at % SKIP;
        next = next < item->st.st_size ? next : item->st.st_size;
        good = good && n > 0;
        w->done += n > 0 ? (uint64_t)n : 0;
        uint64_t step = (uint64_t)(next - at);
        uint64_t again = shown < step ? shown : step;
        shown -= again;
        if (kvfs_progress_add(NULL, step - again)) {
            return kvfs_check_interrupted(err);
        }
    }
    if (!good) {
        w->damaged++;
        kvfs_warn("warm", "%s: some of it can't be read: kvfs status %s", item->path, w->mount);
    }
    return 0;
}

static int warm_file(struct warm *w, const struct kvfs_item *item, struct ct_err *err)
{
    uint64_t size = (uint64_t)item->st.st_size;
    uint32_t resident = 0;
    kvfs_progress_item(item->path);
    set_opening(w, item->path);
    struct stat st;
    ct_autofd fd = kvfs_open_regular(w->all.fd, item->path, &st, err);
    uint64_t shown = set_opening(w, NULL);
    if (fd < 0) {
        w->damaged++;
        kvfs_warn("warm", "%s", err->msg);
        *err = (struct ct_err)CT_ERR_INIT;
        return kvfs_check_interrupted(err);
    }
    w->files++;
    if (ioctl(fd, KVFS_IOC_KEEP, &resident) == 0 && resident) {
        w->least_resident = w->resident && w->least_resident < size ? w->least_resident : size;
        w->resident++;
        w->done += size;
        return kvfs_progress_add(NULL, size > shown ? size - shown : 0)
                   ? kvfs_check_interrupted(err)
                   : 0;
    }
    return read_all(w, fd, item, shown, err);
}

/* ---- all ---- */

/* PATH is beneath MNT, or as it is written from here. */
static bool is_wanted(const struct warm *w, const struct kvfs_item *item)
{
    size_t n = w->path ? strlen(w->path) : 0;
    while (n && w->path[n - 1] == '/') {
        n--;
    }
    return item->kind == KVFS_ITEM_FILE && item->st.st_size > 0 &&
           (n == 0 || (strncmp(item->path, w->path, n) == 0 &&
                       (item->path[n] == '/' || item->path[n] == '\0')));
}

static int warm_all(struct warm *w, struct ct_err *err)
{
    pthread_t shower;
    uint64_t available = kvfs_available_memory("");
    w->budget = available > reserve ? available - reserve : 0;
    kvfs_progress_start(w->bytes, w->quiet || !w->wait);
    int shows = pthread_create(&shower, NULL, show, w);
    int rc = 0;
    for (size_t i = 0; i < w->all.count && rc == 0; i++) {
        const struct kvfs_item *item = &w->all.items[i];
        if (is_wanted(w, item) && has_memory(w, 0)) {
            w->short_of_memory |= would_displace(w, item);
            rc = w->short_of_memory ? 0 : warm_file(w, item, err);
        }
    }
    pthread_mutex_lock(&w->lock);
    w->ended = true;
    pthread_cond_signal(&w->end);
    pthread_mutex_unlock(&w->lock);
    if (shows == 0) {
        (void)pthread_join(shower, NULL);
    }
    double seconds = kvfs_progress_end();
    if (w->json) {
        printf(
            "{\"files\": %u, \"resident\": %u, \"bytes\": %llu, \"of\": %llu, \"seconds\": %.3f, "
            "\"damaged\": %u, \"complete\": %s}\n",
            w->files, w->resident, (unsigned long long)w->done, (unsigned long long)w->bytes,
            seconds, w->damaged, w->done == w->bytes ? "true" : "false");
    }
    if (w->short_of_memory) {
        kvfs_warn("warm", "stopped after %llu of %llu MiB: memory runs short",
                  (unsigned long long)w->done >> 20, (unsigned long long)w->bytes >> 20);
    }
    return rc;
}

/* Is it a mount of kvfs, and does it keep what is read? */
static int check_mount(const struct warm *w, struct ct_err *err)
{
    *err = (struct ct_err)CT_ERR_INIT;
    json_t *status = status_of(w, err);
    const char *cache =
        json_string_value(json_object_get(json_object_get(status, "options"), "cache"));
    bool keeps = !cache || strcmp(cache, "direct") != 0;
    json_decref(status);
    return err->code ? -1
           : keeps   ? 0
                     : ct_err_set(err, CT_UNSUPPORTED,
                                  "%s is mounted with cache=direct: it keeps nothing", w->mount);
}

static int find_files(struct warm *w, struct ct_err *err)
{
    unsigned found = 0;
    if (check_mount(w, err) || kvfs_walk_dir(w->mount, NULL, NULL, &w->all, err)) {
        return -1;
    }
    for (size_t i = 0; i < w->all.count; i++) {
        if (is_wanted(w, &w->all.items[i])) {
            w->bytes += (uint64_t)w->all.items[i].st.st_size;
            found++;
        }
    }
    return found || !w->path
               ? 0
               : ct_err_set(err, CT_NOTFOUND, "there is nothing at %s in %s", w->path, w->mount);
}

/* The parent has found out that there is something to do; the child does it, deaf to the terminal.
 */
static int detach(void)
{
    pid_t pid = fork();
    if (pid != 0) {
        return pid < 0 ? -1 : 1;
    }
    (void)setsid();
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd <= STDERR_FILENO && null >= 0; fd++) {
        (void)dup2(null, fd);
    }
    return 0;
}

int cmd_warm(int argc, char **argv)
{
    struct warm w = {
        .all.fd = -1, .lock = PTHREAD_MUTEX_INITIALIZER, .end = PTHREAD_COND_INITIALIZER};
    struct ct_err err = CT_ERR_INIT;
    kvfs_parse_args(&argp, "warm", argc, argv, &w);
    (void)prctl(PR_SET_NAME, KVFS_WARM_NAME, 0, 0, 0);
    if (find_files(&w, &err)) {
        kvfs_walk_free(&w.all);
        return kvfs_complain("warm", &err);
    }
    int parent = w.wait ? 0 : detach();
    int rc = parent > 0   ? KVFS_DONE
             : parent < 0 ? ct_err_sys(&err, errno, "fork")
                          : warm_all(&w, &err);
    kvfs_walk_free(&w.all);
    return rc < 0 ? kvfs_complain("warm", &err) : w.damaged ? KVFS_FAILED : KVFS_DONE;
}
