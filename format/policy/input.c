#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "format/policy/policy.h"

json_t *ct_policy_input(const struct ct_policy_context *c)
{
    char host[256] = "";
    char text[32] = "";
    struct tm utc;
    time_t now = (time_t)c->unix_time;
    if (!c->host && gethostname(host, sizeof(host) - 1)) {
        host[0] = '\0';
    }
    if (gmtime_r(&now, &utc)) {
        (void)strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
    }
    /* A path that is not UTF-8 makes the whole document NULL, which refuses. */
    return json_pack("{s:{s:s},s:s,s:I,s:s,s:I,s:s,s:s,s:{s:s,s:b,s:[]}}", "kvfs", "version",
                     KVFS_VERSION, "host", c->host ? c->host : host, "uid", (json_int_t)c->uid,
                     "time", text, "unix", (json_int_t)c->unix_time, "path", c->path, "model",
                     c->model, "guard", "profile", c->guard ? c->guard : "none", "ok",
                     c->guard != NULL, "findings");
}
