/* A file that appears whole or not at all, by its path (format/base/file.h does it by directory).
 */
#ifndef KS_NEWFILE_H
#define KS_NEWFILE_H

#include <sys/stat.h>

#include "format/base/file.h"

int ks_write_file(const char *path, mode_t mode, bool replace, const void *bytes, size_t n,
                  struct ct_err *err);

#endif
