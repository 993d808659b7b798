/*
 * libcurl, loaded by the first command that speaks to a server. It brings some thirty libraries
 * along (LDAP, Kerberos, SSH): linked, they would be mapped into every worker, which has no use for
 * them, and each of their updates would change what a worker measures.
 */
#ifndef KVFS_CURL_H
#define KVFS_CURL_H

#include <curl/curl.h>

#include "format/base/err.h"

/* Functions of libcurl by their names, less "curl_". */
struct kvfs_curl {
    __typeof__(&curl_global_init_mem) global_init_mem;
    __typeof__(&curl_easy_init) easy_init;
    __typeof__(&curl_easy_setopt) easy_setopt; /* numbers have to be long, as its manual says */
    __typeof__(&curl_easy_perform) easy_perform;
    __typeof__(&curl_easy_getinfo) easy_getinfo;
    __typeof__(&curl_easy_strerror) easy_strerror;
    __typeof__(&curl_easy_cleanup) easy_cleanup;
    __typeof__(&curl_slist_append) slist_append;
    __typeof__(&curl_slist_free_all) slist_free_all;
    __typeof__(&curl_url) url;
    __typeof__(&curl_url_set) url_set;
    __typeof__(&curl_url_get) url_get;
    __typeof__(&curl_url_cleanup) url_cleanup;
    __typeof__(&curl_free) free;
};

/* Loads it once, with allocators that wipe, and never unloads it. Thread-safe. NULL with
 * CT_UNSUPPORTED where it is not installed. */
const struct kvfs_curl *kvfs_curl_load(struct ct_err *err);

#endif
