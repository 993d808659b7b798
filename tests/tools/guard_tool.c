/*
 * The guard, and those that it looks at, for tests/system/test_guard.py.
 *
 *     guard_tool watch PROFILE [OPTION]…
 *     guard_tool idle            a reader, or another process of kvfs
 *     guard_tool trace PID       traces it until stdin ends
 *     guard_tool load            holds an eBPF program that traces until stdin ends
 *     guard_tool inject PID DEED has another process do something, and lets it go (guard_inject.c)
 *     guard_tool read FILE       a reader that goes on reading (guard_reader.c)
 *
 * Options: source=DIR, mount=DIR, lock=BYTES, lock-all=BYTES, first=DEED (more than one),
 * after=DEED.
 *
 * The first two read lines: `do DEED` has the process do something that ought to be found. `watch`
 * also knows `check`, `full`, `own PID`, `mounted MAJOR:MINOR`, `admit PID`, `admit-many PID N`,
 * `wait MS` (as a supervisor waits; ends with the first finding) and answers each with a line of
 * JSON; `idle` answers `ok` or `E…`.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "format/base/secret.h"
#include "guard/guard.h"
#include "guard_tool.h"

static struct guard_report report;
static const char *after; /* the deed once the start state is taken */

static int64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* ---- Deeds ---- */

static int map_code(int fd, int flags, int prot)
{
    return fd >= -1 && mmap(NULL, 4096, prot, flags, fd, 0) != MAP_FAILED ? 0 : -1;
}

static int map_memfd(const char *arg)
{
    (void)arg;
    int fd = memfd_create("code", 0);
    return ftruncate(fd, 4096) ? -1 : map_code(fd, MAP_PRIVATE, PROT_READ | PROT_EXEC);
}

static int map_shared(const char *arg)
{
    (void)arg;
    return map_code(-1, MAP_SHARED | MAP_ANONYMOUS, PROT_READ | PROT_EXEC);
}

static int map_rwx(const char *arg)
{
    (void)arg;
    return map_code(-1, MAP_PRIVATE | MAP_ANONYMOUS, PROT_READ | PROT_WRITE | PROT_EXEC);
}

static int map_file(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -1 : map_code(fd, MAP_PRIVATE, PROT_READ | PROT_EXEC);
}

/* Writes what is there already: the page is another one all the same. */
static int patch(const char *arg)
{
    char byte = 0;
    int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    off_t at = (off_t)(uintptr_t)&map_memfd;
    (void)arg;
    return fd >= 0 && pread(fd, &byte, 1, at) == 1 && pwrite(fd, &byte, 1, at) == 1 ? 0 : -1;
}

static int dumpable(const char *arg)
{
    return prctl(PR_SET_DUMPABLE, strtoul(arg, NULL, 10), 0, 0, 0);
}

static int limit(int which, const char *arg)
{
    struct rlimit both;
    (void)getrlimit(which, &both);
    both.rlim_cur = strtoul(arg, NULL, 10);
    return setrlimit(which, &both);
}

static int core(const char *arg)
{
    return limit(RLIMIT_CORE, arg);
}

static int memlock(const char *arg)
{
    return limit(RLIMIT_MEMLOCK, arg);
}

static int effective(const char *arg)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &head, data)) {
        return -1;
    }
    for (int i = 0; i < 2; i++) {
        data[i].effective = *arg == '0' ? 0 : data[i].permitted;
    }
    return (int)syscall(SYS_capset, &head, data);
}

static int to_uid(const char *arg)
{
    uid_t uid = (uid_t)strtoul(arg, NULL, 10);
    return setresuid(uid, uid, uid);
}

static int unshare_one(const char *arg)
{
    int flag = strcmp(arg, "uts") == 0    ? CLONE_NEWUTS
               : strcmp(arg, "user") == 0 ? CLONE_NEWUSER | CLONE_NEWNS
                                          : CLONE_NEWNS;
    return unshare(flag);
}

static int run(const char *arg)
{
    char path[512];
    char *const argv[] = {path, (char[]){"idle"}, NULL};
    (void)snprintf(path, sizeof(path), "%s", arg);
    return execv(path, argv);
}

/* By itself, which glibc's functions would not do. */
static int be_another(const char *how)
{
    if (strncmp(how, "uid ", 4) == 0) {
        uid_t uid = (uid_t)strtoul(how + 4, NULL, 10);
        return (int)syscall(SYS_setresuid, uid, uid, uid);
    }
    return strcmp(how, "mnt") == 0 ? unshare(CLONE_FS | CLONE_NEWNS) : 0;
}

struct another {
    const char *how;
    int error;
    sem_t begun;
};

static void *sleep_on(void *arg)
{
    struct another *a = arg;
    a->error = be_another(a->how) ? errno : 0;
    (void)sem_post(&a->begun);
    for (;;) {
        pause();
    }
    return NULL;
}

/* [uid UID|mnt]: a thread, which is another user, or in another mount namespace. */
static int thread(const char *arg)
{
    static struct another a;
    pthread_t t;
    a.how = arg;
    if (sem_init(&a.begun, 0, 0) || pthread_create(&t, NULL, sleep_on, &a)) {
        return -1;
    }
    while (sem_wait(&a.begun)) {
    }
    errno = a.error;
    return errno ? -1 : 0;
}

/* The first thread ends, another one stays. */
static int leave(const char *arg)
{
    if (thread(arg)) {
        return -1;
    }
    pthread_exit(NULL);
}

static const struct {
    const char *name;
    int (*fn)(const char *arg);
} deeds[] = {{"memfd", map_memfd}, {"shared", map_shared},   {"rwx", map_rwx},
             {"map", map_file},    {"patch", patch},         {"dumpable", dumpable},
             {"core", core},       {"memlock", memlock},     {"effective", effective},
             {"uid", to_uid},      {"unshare", unshare_one}, {"exec", run},
             {"thread", thread},   {"leave", leave}};

/* NAME [ARGUMENT] */
static int deed(const char *line)
{
    for (size_t i = 0; i < sizeof(deeds) / sizeof(deeds[0]); i++) {
        size_t n = strlen(deeds[i].name);
        if (strncmp(line, deeds[i].name, n) == 0 && (line[n] == '\0' || line[n] == ' ')) {
            return deeds[i].fn(line + n + (line[n] == ' '));
        }
    }
    errno = ENOSYS;
    return -1;
}

/* ---- watch ---- */

static void say(const char *event, const struct guard_profile *p, int rc, const struct ct_err *err,
                json_int_t us)
{
    json_t *all = guard_report_json(p, &report);
    json_object_set_new(all, "event", json_string(event));
    json_object_set_new(all, "rc", json_integer(rc));
    json_object_set_new(all, "error", json_string(rc < 0 ? err->msg : ""));
    json_object_set_new(all, "us", json_integer(us));
    json_dumpf(all, stdout, JSON_COMPACT);
    puts("");
    (void)fflush(stdout);
    json_decref(all);
}

/* As a supervisor: until something is found. Answers with the time that it took. */
static int wait_for_finding(struct guard *g, int ms, struct ct_err *err)
{
    int64_t until = now_us() + (int64_t)ms * 1000;
    int rc = 0;
    do {
        struct pollfd p = {.fd = guard_pollfd(g), .events = POLLIN};
        int left = (int)((until - now_us()) / 1000);
        int due = guard_timeout_ms(g);
        int woken = poll(&p, 1, left < due ? left : due);
        rc = guard_check(g, woken > 0 ? GUARD_WOKEN : 0, &report, err);
    } while (rc == 0 && !report.count && now_us() < until);
    return rc;
}

static int admit_many(struct guard *g, const char *arg, struct ct_err *err, int64_t *us)
{
    char *end = NULL;
    pid_t pid = (pid_t)strtol(arg, &end, 10);
    long n = strtol(end, NULL, 10);
    int64_t best = INT64_MAX; /* of nine lots, so that a busy machine does not matter */
    int rc = 1;
    for (int lot = 0; lot < 9; lot++) {
        int64_t began = now_us();
        for (long i = 0; i < n && rc == 1; i++) {
            rc = guard_admit(g, pid, &report, err);
        }
        int64_t took = (now_us() - began) / (n ? n : 1);
        best = took < best ? took : best;
    }
    *us = best;
    return rc;
}

static int command(struct guard *g, char *line, struct ct_err *err, int64_t *us)
{
    char *arg = strchr(line, ' ');
    int64_t began = now_us();
    int rc = 0;
    if (arg) {
        *arg++ = '\0';
    } else {
        arg = line + strlen(line);
    }
    memset(&report, 0, sizeof(report));
    if (strcmp(line, "do") == 0) {
        rc = deed(arg) ? ct_err_sys(err, errno, "%s", arg) : 0;
    } else if (strcmp(line, "own") == 0) {
        rc = guard_add_own(g, (pid_t)strtol(arg, NULL, 10), err);
    } else if (strcmp(line, "mounted") == 0) {
        const char *colon = strchr(arg, ':');
        rc = guard_mounted(g,
                           makedev((unsigned)strtoul(arg, NULL, 10),
                                   (unsigned)strtoul(colon ? colon + 1 : "0", NULL, 10)),
                           err);
    } else if (strcmp(line, "admit") == 0) {
        rc = guard_admit(g, (pid_t)strtol(arg, NULL, 10), &report, err);
    } else if (strcmp(line, "admit-many") == 0) {
        return admit_many(g, arg, err, us);
    } else if (strcmp(line, "wait") == 0) {
        rc = wait_for_finding(g, (int)strtol(arg, NULL, 10), err);
    } else {
        rc = guard_check(g, strcmp(line, "full") == 0 ? GUARD_FULL : 0, &report, err);
    }
    *us = now_us() - began;
    return rc;
}

static int prepare(int argc, char **argv, struct guard_config *config)
{
    for (int i = 3; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value) {
            return -1;
        }
        *value++ = '\0';
        if (strcmp(argv[i], "first") == 0) {
            if (deed(value)) {
                perror(value);
                return -1;
            }
        } else if (strcmp(argv[i], "after") == 0) {
            after = value;
        } else if (strcmp(argv[i], "lock") == 0) {
            config->lock_keys = strtoul(value, NULL, 10);
        } else if (strcmp(argv[i], "lock-all") == 0) {
            config->lock_all = strtoul(value, NULL, 10);
        } else {
            *(argv[i][0] == 's' ? &config->source : &config->mountpoint) = value;
        }
    }
    return 0;
}

static int watch(int argc, char **argv)
{
    char line[4096];
    struct guard_config config = {0};
    struct guard_profile *p = NULL;
    struct guard *g = NULL;
    struct ct_err err = CT_ERR_INIT;
    if (argc < 3 || prepare(argc, argv, &config) || guard_profile_load(argv[2], &p, &err) ||
        guard_new(p, &config, &g, &err)) {
        (void)fprintf(stderr, "%s\n", err.msg);
        guard_profile_free(p);
        return 1;
    }
    int rc = after && deed(after) ? -1 : guard_check(g, GUARD_FULL, &report, &err);
    say("ready", p, rc, &err, 0);
    while (fgets(line, sizeof(line), stdin)) {
        int64_t us = 0;
        line[strcspn(line, "\n")] = '\0';
        rc = command(g, line, &err, &us);
        say(line, p, rc, &err, us);
    }
    guard_free(g);
    guard_profile_free(p);
    return 0;
}

/* ---- The others ---- */

int guard_tool_idle(void)
{
    char line[4096];
    printf("%d\n", getpid());
    while (fflush(stdout) == 0 && fgets(line, sizeof(line), stdin)) {
        line[strcspn(line, "\n")] = '\0';
        (void)printf("%s\n",
                     strncmp(line, "do ", 3) == 0 && deed(line + 3) == 0 ? "ok" : strerror(errno));
    }
    return 0;
}

static int hold(int rc)
{
    char line[16];
    printf("%s\n", rc ? strerror(errno) : "ok");
    (void)fflush(stdout);
    while (rc == 0 && fgets(line, sizeof(line), stdin)) {
    }
    return rc != 0;
}

/* Passes on every signal, as debuggers do: the traced one goes on. */
static void pass_on(void)
{
    int status = 0;
    pid_t tid = 0;
    while ((tid = waitpid(-1, &status, __WALL | WNOHANG)) > 0) {
        bool group = status >> 16 == PTRACE_EVENT_STOP;
        if (WIFSTOPPED(status)) {
            (void)ptrace(group ? PTRACE_LISTEN : PTRACE_CONT, tid, NULL,
                         group ? 0L : (long)WSTOPSIG(status));
        }
    }
}

static int trace(pid_t tid)
{
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    if (ptrace(PTRACE_SEIZE, tid, NULL, NULL)) {
        return hold(-1);
    }
    printf("ok\n");
    (void)fflush(stdout);
    while (poll(&p, 1, 10) == 0) {
        pass_on();
    }
    return 0;
}

static int load_program(void)
{
    const struct bpf_insn insns[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0},
                                     {.code = BPF_JMP | BPF_EXIT}};
    union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT,
                           .insns = (uint64_t)(uintptr_t)insns,
                           .insn_cnt = 2,
                           .license = (uint64_t)(uintptr_t) "GPL"};
    return syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr)) < 0;
}

int main(int argc, char **argv)
{
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (ct_secret_init(NULL) || argc < 2) {
        return 2;
    }
    if (strcmp(argv[1], "watch") == 0) {
        return watch(argc, argv);
    }
    if (strcmp(argv[1], "trace") == 0 && argc == 3) {
        return trace((pid_t)strtol(argv[2], NULL, 10));
    }
    if (strcmp(argv[1], "load") == 0) {
        return hold(load_program());
    }
    if (strcmp(argv[1], "inject") == 0 && argc == 4) {
        int rc = guard_tool_inject((pid_t)strtol(argv[2], NULL, 10), argv[3]);
        printf("%s\n", rc ? strerror(errno) : "ok");
        return rc != 0;
    }
    if (strcmp(argv[1], "read") == 0 && argc == 3) {
        return guard_tool_read(argv[2]);
    }
    return guard_tool_idle();
}
