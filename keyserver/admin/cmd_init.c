#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "keyserver/admin/admin.h"
#include "keyserver/crypto/newfile.h"
#include "keyserver/http/codes.h"
#include "keyserver/server.h"

/* The connection string may hold a password: it comes from a file or from the environment, and is
 * kept in a file of mode 0600. */
static int write_database(struct ks_admin *a, struct ct_err *err)
{
    char path[KS_PATH];
    ct_autobuf text = {0};
    const char *where = ks_option(a, "database", getenv("KVFS_KEYSERVER_DATABASE"));
    if (!where) {
        return 0;
    }
    if (*where == '@') {
        if (ct_read_file(AT_FDCWD, where + 1, KS_PATH - 1, &text, err)) {
            return -1;
        }
    } else {
        ct_buf_puts(&text, where);
        ct_buf_putc(&text, '\n');
    }
    return ks_path(a, "database", path, err) || ct_buf_ok(&text, err) ||
                   ks_write_file(path, S_IRUSR | S_IWUSR, true, text.data, text.len, err)
               ? -1
               : 0;
}

static int load(struct ks_admin *a, struct ks_server *s, struct ct_err *err)
{
    if (ks_begin(a->ctx.db, KS_READ, err)) {
        return -1;
    }
    int r = ks_secrets_load(&a->ctx, s, err);
    ks_rollback(a->ctx.db);
    return r;
}

/* Of several at once one makes them. */
static int make_secrets(struct ks_admin *a, struct ct_err *err)
{
    if (ks_begin(a->ctx.db, KS_WRITE, err)) {
        return -1;
    }
    if (ks_secrets_create(&a->ctx, err)) {
        ks_rollback(a->ctx.db);
        return err->code == CT_EXISTS ? 0 : -1;
    }
    return ks_commit(a->ctx.db, err);
}

static int make_certificate(struct ks_admin *a, struct ct_err *err)
{
    char cert[KS_PATH];
    char key[KS_PATH];
    char host[256] = "localhost";
    char names[512];
    if (ks_path(a, "tls.crt", cert, err) || ks_path(a, "tls.key", key, err)) {
        return -1;
    }
    if (access(cert, F_OK) == 0) {
        return 0;
    }
    (void)gethostname(host, sizeof(host) - 1);
    (void)snprintf(names, sizeof(names), "localhost,127.0.0.1,::1,%s", host);
    return ks_self_signed(ks_option(a, "name", names), cert, key, err);
}

static int print_thumbprint(struct ks_admin *a, struct ct_err *err)
{
    struct ks_server s = {0};
    int r = load(a, &s, err);
    if (r == 0) {
        r = a->json ? ks_admin_print(a, json_pack("{s:s}", "thumbprint", s.thumbprint), err)
                    : puts(s.thumbprint) < 0;
    }
    ks_secrets_free(&s);
    return r ? -1 : 0;
}

int ks_cmd_init(struct ks_admin *a, struct ct_err *err)
{
    char secrets[KS_PATH];
    if (mkdir(a->dir, S_IRWXU) && errno != EEXIST) {
        return ct_err_sys(err, errno, "%s", a->dir);
    }
    if (write_database(a, err) || ks_seal_path(a, secrets, err)) {
        return -1;
    }
    if (access(secrets, F_OK) && ks_seal_create(secrets, err)) {
        return -1;
    }
    return ks_admin_open(a, false, err) || ks_migrate(a->ctx.db, err) || make_secrets(a, err) ||
                   make_certificate(a, err) || print_thumbprint(a, err)
               ? -1
               : 0;
}

int ks_cmd_migrate(struct ks_admin *a, struct ct_err *err)
{
    return ks_admin_open(a, false, err) || ks_migrate(a->ctx.db, err) ? -1 : 0;
}

int ks_cmd_thumbprint(struct ks_admin *a, struct ct_err *err)
{
    ks_rollback(a->ctx.db); /* it only reads */
    int r = print_thumbprint(a, err);
    return r || ks_begin(a->ctx.db, KS_READ, err) ? -1 : 0;
}

int ks_cmd_codes(struct ks_admin *a, struct ct_err *err)
{
    (void)a;
    (void)err;
    (void)puts("| code | HTTP | means |\n| --- | --- | --- |");
    for (int i = KS_OK + 1; i < KS_CODE_COUNT; i++) {
        enum ks_code code = (enum ks_code)i;
        (void)printf("| `%s` | %u | %s. |\n", ks_code_name(code), ks_code_status(code),
                     ks_code_sentence(code));
    }
    return 0;
}
