#include "kvfs/http/http.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <strings.h>

#include "format/base/file.h"
#include "kvfs/http/curl.h"

#define HTTPS "https://"

enum { CA_MAX = 4 << 20 };

struct kvfs_http {
    const struct kvfs_curl *lib;
    CURL *curl;
    char *url;  /* without '/' at the end */
    char *host; /* HOST[:PORT], for messages */
    bool (*stop)(void);
    char why[CURL_ERROR_SIZE];
};

/* ---- opening ---- */

static bool url_has(const struct kvfs_curl *lib, CURLU *u, CURLUPart part)
{
    char *text = NULL;
    bool has = lib->url_get(u, part, &text, 0) == CURLUE_OK;
    lib->free(text);
    return has;
}

/* libcurl's parser is lenient: it takes one slash for two, and three for two. A password in the
 * text would be in argv. */
static bool url_ok(const struct kvfs_curl *lib, const char *url)
{
    const size_t scheme = sizeof(HTTPS) - 1;
    if (strncasecmp(url, HTTPS, scheme) != 0 || url[scheme] == '/' || strlen(url) > KVFS_URL_MAX) {
        return false;
    }
    CURLU *u = lib->url();
    bool ok = u && lib->url_set(u, CURLUPART_URL, url, 0) == CURLUE_OK &&
              !url_has(lib, u, CURLUPART_USER) && !url_has(lib, u, CURLUPART_PASSWORD) &&
              !url_has(lib, u, CURLUPART_QUERY) && !url_has(lib, u, CURLUPART_FRAGMENT);
    lib->url_cleanup(u);
    return ok;
}

static int take_url(struct kvfs_http *h, const char *url, struct ct_err *err)
{
    if (!url_ok(h->lib, url)) {
        return ct_err_set(err, CT_USAGE, "the server's URL has to be https://HOST[:PORT][/PREFIX]");
    }
    size_t n = strlen(url);
    while (n && url[n - 1] == '/') {
        n--;
    }
    const char *host = url + sizeof(HTTPS) - 1;
    h->url = strndup(url, n);
    h->host = strndup(host, strcspn(host, "/"));
    return h->url && h->host ? 0 : ct_err_set(err, CT_NOMEM, "out of memory");
}

static int take_ca(struct kvfs_http *h, const char *ca, struct ct_err *err)
{
    static const char mark[] = "-----BEGIN ";
    ct_autobuf pem = {0};
    if (!ca) {
        return 0;
    }
    if (ct_read_file(AT_FDCWD, ca, CA_MAX, &pem, err)) {
        return -1;
    }
    if (!pem.len || !memmem(pem.data, pem.len, mark, sizeof(mark) - 1)) {
        return ct_err_set(err, CT_MALFORMED, "%s: no certificate in it", ca);
    }
    struct curl_blob blob = {.data = pem.data, .len = pem.len, .flags = CURL_BLOB_COPY};
    /* libcurl would trust the system's directory besides. */
    if (h->lib->easy_setopt(h->curl, CURLOPT_CAINFO_BLOB, &blob) ||
        h->lib->easy_setopt(h->curl, CURLOPT_CAINFO, NULL) ||
        h->lib->easy_setopt(h->curl, CURLOPT_CAPATH, NULL)) {
        return ct_err_set(err, CT_UNSUPPORTED, "this libcurl takes no CA file");
    }
    return 0;
}

static size_t take_answer(const char *p, size_t size, size_t n, void *ctx);

/* Each has to be understood: a protection that a library lacks is an error. */
static int set_options(struct kvfs_http *h, unsigned connect_seconds, struct ct_err *err)
{
    CURL *c = h->curl;
    const struct kvfs_curl *lib = h->lib;
    CURLcode bad = CURLE_OK;
    const struct {
        CURLoption option;
        long value;
    } longs[] = {
        {CURLOPT_SSL_VERIFYPEER, 1},
        {CURLOPT_SSL_VERIFYHOST, 2},
        {CURLOPT_SSLVERSION, CURL_SSLVERSION_TLSv1_2},
        {CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1},
        {CURLOPT_FOLLOWLOCATION, 0},
        {CURLOPT_NETRC, CURL_NETRC_IGNORED},
        {CURLOPT_HEADEROPT, CURLHEADER_SEPARATE}, /* no token to a proxy */
        {CURLOPT_NOSIGNAL, 1},
        {CURLOPT_NOPROGRESS, 1},
        {CURLOPT_CONNECTTIMEOUT, connect_seconds},
    };
    for (size_t i = 0; i < sizeof(longs) / sizeof(*longs) && !bad; i++) {
        bad = lib->easy_setopt(c, longs[i].option, longs[i].value);
    }
    if (bad || lib->easy_setopt(c, CURLOPT_PROTOCOLS_STR, "https") ||
        lib->easy_setopt(c, CURLOPT_USERAGENT, "kvfs/" KVFS_VERSION) ||
        lib->easy_setopt(c, CURLOPT_ERRORBUFFER, h->why) ||
        lib->easy_setopt(c, CURLOPT_WRITEFUNCTION, take_answer)) {
        return ct_err_set(err, CT_UNSUPPORTED, "this libcurl lacks an option that is needed");
    }
    return 0;
}

struct kvfs_http *kvfs_http_open(const struct kvfs_http_config *config, struct ct_err *err)
{
    const struct kvfs_curl *lib = kvfs_curl_load(err);
    if (!lib) {
        return NULL;
    }
    struct kvfs_http *h = calloc(1, sizeof(*h));
    if (!h || !(h->curl = lib->easy_init())) {
        free(h);
        (void)ct_err_set(err, CT_NOMEM, "no memory for a connection");
        return NULL;
    }
    h->lib = lib;
    if (take_url(h, config->url, err) || set_options(h, config->connect_seconds, err) ||
        take_ca(h, config->ca, err)) {
        kvfs_http_close(h);
        return NULL;
    }
    return h;
}

static int ask_stop(void *ctx, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    const struct kvfs_http *h = ctx;
    (void)a, (void)b, (void)c, (void)d;
    return h->stop();
}

void kvfs_http_stop_when(struct kvfs_http *h, bool (*stop)(void))
{
    h->stop = stop;
    (void)h->lib->easy_setopt(h->curl, CURLOPT_XFERINFOFUNCTION, ask_stop);
    (void)h->lib->easy_setopt(h->curl, CURLOPT_XFERINFODATA, h);
    (void)h->lib->easy_setopt(h->curl, CURLOPT_NOPROGRESS, 0L);
}

const char *kvfs_http_url(const struct kvfs_http *h)
{
    return h->url;
}

void kvfs_http_close(struct kvfs_http *h)
{
    if (h) {
        h->lib->easy_cleanup(h->curl);
        free(h->url);
        free(h->host);
        free(h);
    }
}

/* ---- a call ---- */

struct answer {
    struct ct_buf *out;
    size_t left; /* how much more is taken */
    bool too_large;
};

/* Less than n stops the transfer. */
static size_t take_answer(const char *p, size_t size, size_t n, void *ctx)
{
    struct answer *a = ctx;
    (void)size; /* always 1 */
    if (n > a->left) {
        a->too_large = true;
        return 0;
    }
    a->left -= n;
    ct_buf_put(a->out, p, n);
    return a->out->failed ? 0 : n;
}

static int add_header(const struct kvfs_http *h, struct curl_slist **list, const char *line)
{
    struct curl_slist *longer = h->lib->slist_append(*list, line);
    if (longer) {
        *list = longer;
    }
    return longer ? 0 : -1;
}

static int make_headers(const struct kvfs_http *h, struct curl_slist **list, const char *bearer,
                        bool has_body)
{
    ct_autobuf line = {0};
    if (bearer) {
        ct_buf_puts(&line, "Authorization: Bearer ");
        ct_buf_put(&line, bearer, strlen(bearer) + 1);
        if (line.failed || strpbrk(bearer, "\r\n") ||
            add_header(h, list, (const char *)line.data)) {
            return -1;
        }
    }
    /* No waiting for "100 Continue", which not every proxy passes on. */
    return add_header(h, list, "Accept: application/json") || add_header(h, list, "Expect:") ||
                   (has_body && add_header(h, list, "Content-Type: application/json"))
               ? -1
               : 0;
}

static int set_request(const struct kvfs_http *h, const char *method, const void *body, size_t n)
{
    CURL *c = h->curl;
    const struct kvfs_curl *lib = h->lib;
    CURLcode bad;
    if (body) {
        bad = lib->easy_setopt(c, CURLOPT_POST, 1L);
        bad = bad ? bad : lib->easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)n);
        bad = bad ? bad : lib->easy_setopt(c, CURLOPT_POSTFIELDS, body); /* not copied */
    } else {
        bad = lib->easy_setopt(c, CURLOPT_HTTPGET, 1L);
    }
    return bad || lib->easy_setopt(c, CURLOPT_CUSTOMREQUEST, method) ? -1 : 0;
}

static int call_failed(const struct kvfs_http *h, CURLcode code, const struct answer *a, size_t max,
                       struct ct_err *err)
{
    const char *why = *h->why ? h->why : h->lib->easy_strerror(code);
    enum ct_code kind = CT_IO;
    if (a->too_large) {
        return ct_err_set(err, CT_MALFORMED, "%s: an answer of more than %zu bytes", h->host, max);
    }
    if (code == CURLE_OUT_OF_MEMORY || a->out->failed) {
        return ct_err_set(err, CT_NOMEM, "%s: out of memory", h->host);
    }
    if (code == CURLE_ABORTED_BY_CALLBACK) {
        return ct_err_set(err, CT_IO, "%s: interrupted", h->host);
    }
    if (code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE) {
        kind = CT_REJECTED;
    } else if (code == CURLE_UNSUPPORTED_PROTOCOL || code == CURLE_WEIRD_SERVER_REPLY) {
        kind = CT_MALFORMED;
    }
    ct_err_set(err, kind, "%s: %s", h->host, why);
    curl_off_t begun = 0;
    (void)h->lib->easy_getinfo(h->curl, CURLINFO_PRETRANSFER_TIME_T, &begun);
    if (err && kind == CT_IO && begun == 0) {
        err->sys = ECONNREFUSED;
    }
    return -1;
}

static CURLcode perform(struct kvfs_http *h, const char *path, struct curl_slist *headers,
                        unsigned seconds, struct answer *a)
{
    CURL *c = h->curl;
    const struct kvfs_curl *lib = h->lib;
    ct_autobuf url = {0};
    ct_buf_puts(&url, h->url);
    ct_buf_put(&url, path, strlen(path) + 1);
    if (url.failed || lib->easy_setopt(c, CURLOPT_URL, (const char *)url.data) ||
        lib->easy_setopt(c, CURLOPT_HTTPHEADER, headers) ||
        lib->easy_setopt(c, CURLOPT_WRITEDATA, a) ||
        lib->easy_setopt(c, CURLOPT_TIMEOUT, (long)seconds)) {
        return CURLE_OUT_OF_MEMORY;
    }
    h->why[0] = '\0';
    return lib->easy_perform(c);
}

int kvfs_http_call(struct kvfs_http *h, const char *method, const char *path, const char *bearer,
                   const void *body, size_t n, unsigned seconds, size_t max, unsigned *status,
                   struct ct_buf *out, struct ct_err *err)
{
    struct answer a = {.out = out, .left = max};
    struct curl_slist *headers = NULL;
    CURLcode code = CURLE_OUT_OF_MEMORY;
    if (make_headers(h, &headers, bearer, body != NULL) == 0 &&
        set_request(h, method, body, n) == 0) {
        code = perform(h, path, headers, seconds, &a);
    }
    /* Nothing of this call is left in the handle, which outlives it. */
    (void)h->lib->easy_setopt(h->curl, CURLOPT_HTTPHEADER, NULL);
    (void)h->lib->easy_setopt(h->curl, CURLOPT_POSTFIELDS, NULL);
    h->lib->slist_free_all(headers);
    if (code) {
        return call_failed(h, code, &a, max, err);
    }
    long got = 0;
    (void)h->lib->easy_getinfo(h->curl, CURLINFO_RESPONSE_CODE, &got);
    *status = (unsigned)got;
    return 0;
}
