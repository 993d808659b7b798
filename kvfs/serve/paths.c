#include "kvfs/serve/paths.h"

#include <stdio.h>
#include <string.h>

int kvfs_path_join(char out[PATH_MAX], const char *dir, const char *name)
{
    int n = snprintf(out, PATH_MAX, "%s%s%s", dir, *dir ? "/" : "", name);
    return n < PATH_MAX ? 0 : -1;
}

void kvfs_path_up(char *path)
{
    char *slash = strrchr(path, '/');
    *(slash ? slash : path) = '\0';
}

const char *kvfs_path_below(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    path += n;
    return n && *path == '/' ? path + 1 : path;
}

int kvfs_path_follow(char path[PATH_MAX], const char *target)
{
    if (*target == '/' || !*target) {
        return -1;
    }
    kvfs_path_up(path);
    while (*target) {
        size_t n = strcspn(target, "/");
        if (n == 2 && memcmp(target, "..", 2) == 0) {
            if (!*path) {
                return -1;
            }
            kvfs_path_up(path);
        } else if (n && !(n == 1 && *target == '.')) {
            size_t have = strlen(path);
            if (have + n + 2 > PATH_MAX) {
                return -1;
            }
            if (have) {
                path[have++] = '/';
            }
            memcpy(path + have, target, n);
            path[have + n] = '\0';
        }
        target += n;
        target += *target == '/';
    }
    return 0;
}

bool kvfs_path_ends(const char *path, const char *ending)
{
    size_t n = strlen(path);
    size_t m = strlen(ending);
    return n >= m && strcmp(path + n - m, ending) == 0;
}
