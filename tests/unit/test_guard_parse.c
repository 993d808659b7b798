#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "guard/mounts.h"
#include "guard/proc.h"

/* Parsers of what /proc says: names in it are chosen by whoever is judged. */

static const char status_text[] = "Name:\tx\n"
                                  "State:\tS (sleeping)\n"
                                  "Tgid:\t12\n"
                                  "TracerPid:\t7\n"
                                  "Uid:\t1000\t1001\t1002\t1003\n"
                                  "Gid:\t0\t5\t5\t5\n"
                                  "Groups:\t4 0 27 \n"
                                  "CapInh:\t0000000000000000\n"
                                  "CapPrm:\t000001ffffffffff\n"
                                  "CapEff:\t0000000000200000\n"
                                  "CapBnd:\t0000000000000001\n"
                                  "CapAmb:\t0000000000000000\n"
                                  "NoNewPrivs:\t1\n"
                                  "Seccomp:\t2\n";

static int parse_status(const char *text, struct guard_status *s)
{
    return guard_parse_status(text, strlen(text), s, NULL);
}

Test(status, reads_what_the_kernel_writes)
{
    struct guard_status s;
    cr_assert_eq(parse_status(status_text, &s), 0);
    cr_assert_eq(s.tgid, 12);
    cr_assert_eq(s.tracer, 7);
    cr_assert_eq(s.state, 'S');
    cr_assert_eq(s.uid[1], 1001);
    cr_assert_eq(s.gid[0], 0);
    cr_assert(s.group0);
    cr_assert_eq(s.caps[GUARD_CAP_EFF], UINT64_C(1) << 21);
    cr_assert_eq(s.caps[GUARD_CAP_PRM], UINT64_C(0x1ffffffffff));
    cr_assert_eq(s.no_new_privs, 1);
    cr_assert_eq(s.seccomp, 2);
}

Test(status, refuses_what_lacks_or_repeats_lines)
{
    struct guard_status s;
    char text[sizeof(status_text) + 64];
    for (const char *line = status_text; *line; line = strchr(line, '\n') + 1) {
        size_t before = (size_t)(line - status_text);
        const char *rest = strchr(line, '\n') + 1;
        (void)snprintf(text, sizeof(text), "%.*s%s", (int)before, status_text, rest);
        bool may_lack = strchr("NGS", line[0]) && strncmp(line, "Gid", 3) != 0 &&
                        strncmp(line, "State", 5) != 0;
        cr_assert_eq(parse_status(text, &s), may_lack ? 0 : -1, "without %.12s", line);
    }
    (void)snprintf(text, sizeof(text), "%sTracerPid:\t0\n", status_text);
    cr_assert_eq(parse_status(text, &s), -1, "a second line could undo the first");
    cr_assert_eq(parse_status("", &s), -1);
}

Test(status, refuses_numbers_that_are_none)
{
    static const char *const lines[] = {"TracerPid:\t99999999999\n",
                                        "TracerPid:\t-1\n",
                                        "TracerPid:\t\n",
                                        "Uid:\t0\t0\t0\n",
                                        "Uid:\t4294967296\t0\t0\t0\n",
                                        "CapEff:\tfffffffffffffffff\n",
                                        "CapEff:\tx\n"};
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        struct guard_status s;
        cr_assert_eq(parse_status(lines[i], &s), -1, "%s", lines[i]);
    }
}

Test(stat, start_time_behind_any_name)
{
    static const char *const names[] = {"x", "a b) S 1 2 3", "((((", ") R 0 0 0 0 0 0 0 0 0 (", ""};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char text[256];
        uint64_t t = 0;
        bool exiting = true;
        (void)snprintf(text, sizeof(text),
                       "1 (%s) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9\n", names[i]);
        cr_assert_eq(guard_parse_stat(text, strlen(text), &t, &exiting, NULL), 0, "%s", names[i]);
        cr_assert(t == 4711 && !exiting);
        strstr(text, "4194560")[6] = '4';
        cr_assert_eq(guard_parse_stat(text, strlen(text), &t, &exiting, NULL), 0);
        cr_assert(exiting);
    }
    uint64_t t = 0;
    bool exiting = false;
    static const char *const bad[] = {"", "1 (x", "1 (x) S 1 1", "1 (x)"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        cr_assert_eq(guard_parse_stat(bad[i], strlen(bad[i]), &t, &exiting, NULL), -1, "%s",
                     bad[i]);
    }
}

static const char maps_text[] =
    "55d000000000-55d000001000 r--p 00000000 fe:00 11 /bin/a b\n"
    "55d000001000-55d000002000 r-xp 00001000 fe:00 11                /bin/a b\n"
    "55d000003000-55d000004000 rw-p 00000000 00:00 0                 [heap]\n"
    "7f0000000000-7f0000001000 r-xp 00000000 00:01 12                /memfd:x (deleted)\n"
    "7f0000001000-7f0000002000 rwxp 00000000 00:00 0 \n"
    "7f0000002000-7f0000003000 r-xs 00000000 fe:00 13                /lib/new\\012line (deleted)\n"
    "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0         [vsyscall]\n";

Test(maps, keeps_what_can_be_executed)
{
    struct guard_maps m;
    cr_assert_eq(guard_parse_maps(maps_text, strlen(maps_text), &m, NULL), 0);
    cr_assert_eq(m.count, 5);
    cr_assert_str_eq(m.items[0].path, "/bin/a b");
    cr_assert_eq(m.items[0].ino, 11);
    cr_assert_not(m.items[0].deleted);
    cr_assert_str_eq(m.items[1].path, "/memfd:x");
    cr_assert(m.items[1].deleted);
    cr_assert_eq(m.items[2].flags, GUARD_MAP_W | GUARD_MAP_X);
    cr_assert_str_eq(m.items[2].path, "");
    cr_assert_str_eq(m.items[3].path, "/lib/new\nline");
    cr_assert(m.items[3].deleted && (m.items[3].flags & GUARD_MAP_SHARED));
    cr_assert_eq(m.items[4].start, UINT64_C(0xffffffffff600000));
    guard_maps_free(&m);
}

Test(maps, refuses_other_lines)
{
    static const char *const bad[] = {
        "x\n",
        "1000-1000 r-xp 0 0:0 0\n",
        "2000-1000 r-xp 0 0:0 0\n",
        "1000-2000 r-x\n",
        "1000-2000 r-xp\n",
        "1000-2000 r-xp 0 0:0\n",
        "1000-2000 r-xp 0 0:0 99999999999999999999999\n",
        "10000000000000000-2 r-xp 0 0:0 0\n",
        "\n",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct guard_maps m;
        cr_assert_eq(guard_parse_maps(bad[i], strlen(bad[i]), &m, NULL), -1, "%s", bad[i]);
        guard_maps_free(&m);
    }
}

Test(environ, finds_variables_that_are_set)
{
    static const char text[] = "A=LD_PRELOAD=x\0LD_PRELOAD=\0LD_AUDIT=x\0XLD_LIBRARY_PATH=/y\0"
                               "LD_LIBRARY_PATH";
    cr_assert_eq(guard_parse_environ(text, sizeof(text) - 1), GUARD_ENV_AUDIT);
    cr_assert_eq(guard_parse_environ("LD_LIBRARY_PATH=x", 17), GUARD_ENV_LIBRARY_PATH);
    cr_assert_eq(guard_parse_environ("", 0), 0);
    cr_assert_eq(guard_parse_environ("\0\0LD_PRELOAD=x", 14), GUARD_ENV_PRELOAD);
}

Test(limits, rows_by_name)
{
    static const char text[] =
        "Limit                     Soft Limit           Hard Limit    Units\n"
        "Max core file size        0                    unlimited     bytes\n"
        "Max locked memory         8388608              8388608       bytes\n";
    uint64_t soft = 1;
    uint64_t hard = 1;
    cr_assert_eq(guard_parse_limit(text, strlen(text), "Max core file size", &soft, &hard, NULL),
                 0);
    cr_assert(soft == 0 && hard == UINT64_MAX);
    cr_assert_eq(guard_parse_limit(text, strlen(text), "Max locked memory", &soft, &hard, NULL), 0);
    cr_assert_eq(soft, 8388608);
    cr_assert_eq(guard_parse_limit(text, strlen(text), "Max nonsense", &soft, &hard, NULL), -1);
    cr_assert_eq(guard_parse_limit(text, 70, "Max core file size", &soft, &hard, NULL), -1);
}

Test(small, swaps_and_namespaces)
{
    static const char none[] = "Filename Type Size Used Priority\n";
    static const char one[] = "Filename Type Size Used Priority\n/swap file 8 0 -2\n";
    cr_assert_not(guard_parse_swaps(none, strlen(none)));
    cr_assert(guard_parse_swaps(one, strlen(one)));
    cr_assert_not(guard_parse_swaps("", 0));
    cr_assert_eq(guard_parse_ns("mnt:[4026531841]"), UINT64_C(4026531841));
    cr_assert_eq(guard_parse_ns("mnt:[1]x"), 0);
    cr_assert_eq(guard_parse_ns("mnt"), 0);
    cr_assert_eq(guard_parse_ns("mnt:[]"), 0);
}

/* ---- Mounts ---- */

static const char table[] =
    "20 1 0:30 / / ro,relatime master:1 - overlay overlay rw,lowerdir=/a\n"
    "21 20 0:31 / /proc rw,nosuid,nodev,noexec - proc proc rw\n"
    "22 20 0:32 / /tmp rw,nosuid,nodev - tmpfs tmpfs rw\n"
    "23 20 fe:0 /data/my\\040models /models\\011x ro,nosuid shared:4 propagate_from:2 - ext4 "
    "/dev/vda rw\n"
    "24 22 0:33 / /tmp/in rw - tmpfs none rw\n"
    "25 20 0:34 / /data rw - tmpfs  rw\n"
    "26 20 0:35 / /data/sub rw - tmpfs none rw\n"
    "27 25 0:36 / /data ro - tmpfs none ro\n"
    "28 27 0:37 / /data/deep ro - fuse.kvfs kvfs ro\n";

static void parse(const char *text, struct guard_mounts *m)
{
    struct ct_err err = CT_ERR_INIT;
    /* Majors and minors are decimal; the letters above are for people. */
    char copy[4096];
    (void)snprintf(copy, sizeof(copy), "%s", text);
    for (char *p; (p = strstr(copy, "fe:0"));) {
        memcpy(p, "25:0", 4);
    }
    cr_assert_eq(guard_parse_mounts(copy, strlen(copy), m, &err), 0, "%s", err.msg);
}

static const struct guard_mount *with_id(const struct guard_mounts *m, int id)
{
    for (size_t i = 0; i < m->count; i++) {
        if (m->items[i].id == id) {
            return &m->items[i];
        }
    }
    cr_assert_fail("no mount %d", id);
    return NULL;
}

Test(mounts, fields)
{
    struct guard_mounts m;
    parse(table, &m);
    cr_assert_eq(m.count, 9);
    cr_assert_eq(m.items[0].flags, GUARD_M_RO);
    cr_assert_not(m.items[0].super_ro, "the mount is ro, its file system is not");
    cr_assert_str_eq(m.items[3].path, "/models\tx");
    cr_assert_str_eq(m.items[3].root, "/data/my models");
    cr_assert_str_eq(m.items[3].source, "/dev/vda");
    cr_assert_eq(m.items[1].flags, GUARD_M_NOSUID | GUARD_M_NODEV | GUARD_M_NOEXEC);
    cr_assert_str_eq(with_id(&m, 25)->source, "", "an empty source");
    cr_assert(with_id(&m, 27)->super_ro);
    guard_mounts_free(&m);
}

Test(mounts, what_lies_over_what)
{
    struct guard_mounts m;
    parse(table, &m);
    static const struct {
        int id;
        bool visible;
    } want[] = {{20, true},  {21, true},  {22, true}, {23, true}, {24, true},
                {25, false}, {26, false}, {27, true}, {28, true}};
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        cr_assert_eq(guard_mount_visible(&m, with_id(&m, want[i].id)), want[i].visible, "%d",
                     want[i].id);
    }
    cr_assert_eq(guard_mount_of(&m, "/tmp/in/x")->id, 24);
    cr_assert_eq(guard_mount_of(&m, "/tmp/inner")->id, 22);
    cr_assert_eq(guard_mount_of(&m, "/tmpfoo")->id, 20);
    cr_assert_eq(guard_mount_of(&m, "/data/sub/x")->id, 27);
    cr_assert_eq(guard_mount_of(&m, "/data/deep")->id, 28);
    cr_assert_eq(guard_mount_of(&m, "/")->id, 20);
    guard_mounts_free(&m);
}

Test(mounts, loops_of_parents_end)
{
    struct guard_mounts m;
    parse("1 2 0:1 / / rw - a b rw\n2 1 0:2 / /x rw - a b rw\n3 3 0:3 / /y rw - a b rw\n", &m);
    for (size_t i = 0; i < m.count; i++) {
        (void)guard_mount_visible(&m, &m.items[i]);
    }
    (void)guard_mount_of(&m, "/x/y");
    guard_mounts_free(&m);
}

Test(mounts, refuses_other_lines)
{
    static const char *const bad[] = {
        "",
        "\n",
        "1\n",
        "1 2 0:1 / / rw a b rw\n",
        "1 2 0:1 / / rw - a\n",
        "1 2 0:1 / / rw - a b\n",
        "x 2 0:1 / / rw - a b rw\n",
        "1 2 0x1 / / rw - a b rw\n",
        "1 2 0: / / rw - a b rw\n",
        "99999999999 2 0:1 / / rw - a b rw\n",
        "1 2 0:1 / relative rw - a b rw\n",
        "1 2 0:1 / / rw - a b rw\nx\n",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct guard_mounts m;
        cr_assert_eq(guard_parse_mounts(bad[i], strlen(bad[i]), &m, NULL), -1, "%s", bad[i]);
        guard_mounts_free(&m);
    }
    struct guard_mounts m;
    cr_assert_eq(guard_parse_mounts("1 2 0:1 / /\0 rw - a b rw\n", 25, &m, NULL), -1, "NUL");
    guard_mounts_free(&m);
}

Test(mounts, beneath_by_components)
{
    cr_assert(guard_path_beneath("/tmp", "/tmp"));
    cr_assert(guard_path_beneath("/tmp/x", "/tmp"));
    cr_assert(guard_path_beneath("/tmp/x", "/tmp/"));
    cr_assert(guard_path_beneath("/x", "/"));
    cr_assert(guard_path_beneath("/", "/"));
    cr_assert_not(guard_path_beneath("/tmpfoo", "/tmp"));
    cr_assert_not(guard_path_beneath("/", "/tmp"));
    cr_assert_not(guard_path_beneath("/tm", "/tmp"));
}

/* Any change of one byte is either refused or read; nothing is looked at beyond the end. */
Test(hostile, one_byte_altered)
{
    const struct {
        const char *text;
    } texts[] = {{status_text}, {maps_text}, {table}};
    static const char bytes[] = {'\0', ' ', '\n', '\\', '0', '9', ')', (char)0xff};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        size_t n = strlen(texts[i].text);
        for (size_t at = 0; at < n; at++) {
            for (size_t k = 0; k < sizeof(bytes); k++) {
                char *copy = malloc(n); /* without a NUL behind */
                struct guard_status s;
                struct guard_maps maps;
                struct guard_mounts m;
                uint64_t v = 0;
                bool exiting = false;
                memcpy(copy, texts[i].text, n);
                copy[at] = bytes[k];
                (void)guard_parse_status(copy, n, &s, NULL);
                (void)guard_parse_maps(copy, n, &maps, NULL);
                (void)guard_parse_mounts(copy, n, &m, NULL);
                (void)guard_parse_stat(copy, n, &v, &exiting, NULL);
                (void)guard_parse_environ(copy, n);
                guard_maps_free(&maps);
                guard_mounts_free(&m);
                free(copy);
            }
        }
    }
}
