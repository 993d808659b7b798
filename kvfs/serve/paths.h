/* Relative paths as the tree uses them: components without `.` and `..`, "" is the root. Buffers
 * have PATH_MAX bytes. */
#ifndef KVFS_SERVE_PATHS_H
#define KVFS_SERVE_PATHS_H

#include <limits.h>
#include <stdbool.h>

/* dir/name into out. -1 if it is too long. */
int kvfs_path_join(char out[PATH_MAX], const char *dir, const char *name);
/* Takes the last component away. */
void kvfs_path_up(char *path);
/* What is left of `path`, which lies in `dir`. */
const char *kvfs_path_below(const char *path, const char *dir);
/* Replaces a link's path by where its relative target leads, lexically. -1 when that leaves. */
int kvfs_path_follow(char path[PATH_MAX], const char *target);
bool kvfs_path_ends(const char *path, const char *ending);

#endif
