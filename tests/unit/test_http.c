/* The address of a server, its CA file, and what nobody answers. With a real server: test_publish.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "format/base/secret.h"
#include "kvfs/http/http.h"

static void start(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
}

TestSuite(http, .init = start);

static enum ct_code opens(const char *url, const char *ca)
{
    struct ct_err err = CT_ERR_INIT;
    struct kvfs_http_config config = {.url = url, .ca = ca};
    struct kvfs_http *h = kvfs_http_open(&config, &err);
    cr_assert_eq(h == NULL, err.code != CT_OK);
    kvfs_http_close(h);
    return err.code;
}

Test(http, addresses)
{
    static const char *const good[] = {"https://a", "https://a.example:8443/", "https://[::1]:1/x/",
                                       "HTTPS://a", "https://127.0.0.1/prefix"};
    static const char *const bad[] = {"",
                                      "a",
                                      "a:8443",
                                      "//a",
                                      "http://a",
                                      "file:///etc/passwd",
                                      "https://",
                                      "https:///x",
                                      "https:/a",
                                      "https://u@a",
                                      "https://u:p@a",
                                      "https://a?q",
                                      "https://a/#f",
                                      "https://a:99999",
                                      "https://a b",
                                      "https://a\r\nb",
                                      "ftps://a"};
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        cr_assert_eq(opens(good[i], NULL), CT_OK, "%s", good[i]);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        cr_assert_eq(opens(bad[i], NULL), CT_USAGE, "%s", bad[i]);
    }
}

Test(http, authorities)
{
    cr_assert_eq(opens("https://a", "/does/not/exist"), CT_IO);
    cr_assert_eq(opens("https://a", "/dev/null"), CT_MALFORMED);
}

Test(http, slashes_at_the_end_go)
{
    struct kvfs_http_config config = {.url = "https://a:1/p//"};
    struct kvfs_http *h = kvfs_http_open(&config, NULL);
    cr_assert_str_eq(kvfs_http_url(h), "https://a:1/p");
    kvfs_http_close(h);
}

/* A port on which nobody listens, since it is bound here. */
static int silent_port(char *url, size_t n)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert(fd >= 0 && bind(fd, (struct sockaddr *)&a, len) == 0 &&
              getsockname(fd, (struct sockaddr *)&a, &len) == 0);
    (void)snprintf(url, n, "https://127.0.0.1:%d", ntohs(a.sin_port));
    return fd;
}

static bool now(void)
{
    return true;
}

Test(http, nobody_answers, .timeout = 20)
{
    char url[64];
    unsigned status = 0;
    ct_autobuf out = {0};
    struct ct_err err = CT_ERR_INIT;
    int fd = silent_port(url, sizeof(url));
    struct kvfs_http_config config = {.url = url, .connect_seconds = 5};
    struct kvfs_http *h = kvfs_http_open(&config, &err);
    cr_assert(h, "%s", err.msg);
    cr_assert_eq(kvfs_http_call(h, "GET", "/", NULL, NULL, 0, 1, 10, &status, &out, &err), -1);
    cr_assert(err.code == CT_IO && err.sys == ECONNREFUSED);
    cr_assert(strstr(err.msg, "127.0.0.1:"), "%s", err.msg);

    /* Now somebody takes the connection and is silent. */
    cr_assert_eq(listen(fd, 4), 0);
    cr_assert_eq(kvfs_http_call(h, "POST", "/", "token", "{}", 2, 1, 10, &status, &out, &err), -1);
    cr_assert_eq(err.code, CT_IO);
    kvfs_http_stop_when(h, now);
    cr_assert_eq(kvfs_http_call(h, "GET", "/", NULL, NULL, 0, 10, 10, &status, &out, &err), -1);
    cr_assert(err.code == CT_IO && strstr(err.msg, "interrupted"), "%s", err.msg);
    cr_assert(status == 0 && out.len == 0);
    kvfs_http_close(h);
    close(fd);
}
