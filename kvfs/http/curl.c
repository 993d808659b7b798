#include "kvfs/http/curl.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>

#include "format/base/bytes.h"
#include "format/base/secret.h"

#define LIBRARY "libcurl.so.4"

/* ---- its memory holds tokens and keys: it is wiped when it is freed ---- */

static void *wiping_calloc(size_t count, size_t size)
{
    uint64_t n;
    void *p = ct_mul_u64(count, size, &n) ? ct_wiping_malloc(n) : NULL;
    return p ? memset(p, 0, n) : NULL;
}

static char *wiping_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    char *p = ct_wiping_malloc(n);
    return p ? memcpy(p, s, n) : NULL;
}

/* ---- loading ---- */

static const struct {
    const char *name;
    size_t at;
} symbols[] = {
#define SYMBOL(name)                                                                               \
    {                                                                                              \
        "curl_" #name, offsetof(struct kvfs_curl, name)                                            \
    }
    SYMBOL(global_init_mem), SYMBOL(easy_init),     SYMBOL(easy_setopt),  SYMBOL(easy_perform),
    SYMBOL(easy_getinfo),    SYMBOL(easy_strerror), SYMBOL(easy_cleanup), SYMBOL(slist_append),
    SYMBOL(slist_free_all),  SYMBOL(url),           SYMBOL(url_set),      SYMBOL(url_get),
    SYMBOL(url_cleanup),     SYMBOL(free),
#undef SYMBOL
};

static struct {
    struct kvfs_curl curl;
    struct ct_err why; /* CT_OK once it is loaded */
} loaded;

static void load(void)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        (void)ct_err_set(&loaded.why, CT_UNSUPPORTED, LIBRARY " is needed to reach a server: %s",
                         dlerror());
        return;
    }
    for (size_t i = 0; i < sizeof(symbols) / sizeof(*symbols); i++) {
        void *f = dlsym(library, symbols[i].name);
        if (!f) {
            (void)ct_err_set(&loaded.why, CT_UNSUPPORTED, LIBRARY " is too old: it has no %s",
                             symbols[i].name);
            return;
        }
        memcpy((char *)&loaded.curl + symbols[i].at, &f, sizeof(f));
    }
    if (loaded.curl.global_init_mem(CURL_GLOBAL_DEFAULT, ct_wiping_malloc, ct_wiping_free,
                                    ct_wiping_realloc, wiping_strdup, wiping_calloc)) {
        (void)ct_err_set(&loaded.why, CT_UNSUPPORTED, LIBRARY " does not start");
    }
}

const struct kvfs_curl *kvfs_curl_load(struct ct_err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, load);
    if (loaded.why.code) {
        (void)ct_err_set(err, loaded.why.code, "%s", loaded.why.msg);
        return NULL;
    }
    return &loaded.curl;
}
