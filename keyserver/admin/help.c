#include <stdio.h>
#include <string.h>

#include "keyserver/admin/admin.h"

/* Every option there is. Commands name theirs (main.c); completion reads what is printed here. */
static const struct {
    const char *name, *value, *help; /* value NULL: none */
} options[] = {
    {"all", NULL, "those that are over as well"},
    {"assurance", "NAME", "what it asks for at least: self-reported, tpm or tee"},
    {"cert", "FILE", "the certificate chain (DIR/tls.crt); read anew at SIGHUP"},
    {"challenge-seconds", "SEC", "how long a challenge is good (60)"},
    {"database", "URL|@FILE", "PostgreSQL's connection string, or the file that has it"},
    {"description", "TEXT", "a line about the model"},
    {"dir", "DIR", "database, keys, certificate ($KVFS_KEYSERVER_DIR, /var/lib/kvfs-keyserver)"},
    {"expires", "TIME", "when it ends: 2026-12-31, 2026-12-31T23:59:59Z or never"},
    {"grace", "SEC", "how long reads go on while the server cannot be reached"},
    {"help", NULL, "print this"},
    {"json", NULL, "print JSON"},
    {"keep", "DAYS", "how long audit, leases and uploads are kept (365); 0: for ever"},
    {"key", "FILE", "the certificate's key (DIR/tls.key); read anew at SIGHUP"},
    {"label", "TEXT", "a note of what it is"},
    {"last", "N", "only so many of them, the latest"},
    {"lease", "SEC", "how long a release is good: 60 to 86400"},
    {"listen", "ADDRESS:PORT", "where to listen (:8443)"},
    {"max-leases", "N", "how many runtimes may have it at once; 0: any number"},
    {"max-upload", "MIB", "of one request with headers (256)"},
    {"name", "NAMES", "host names and addresses of the certificate, with commas between them"},
    {"profiles", "NAMES", "guard profiles that are allowed, with blanks between them"},
    {"rate-attest", "N", "challenges and attestations a second for an address (20); 0: any number"},
    {"rate-login", "N", "logins a second for an address (1); 0: any number"},
    {"reason", "TEXT", "what runtimes and audit are told"},
    {"scope", "SCOPE", "publish or deploy"},
    {"secrets", "FILE", "the key of all secrets (systemd credential, or DIR/secrets.jwks)"},
    {"server-key-seconds", "SEC", "how long a key for evidence is good (7200)"},
    {"settle", "SEC", "how long an upload without a stage has to rest (5)"},
    {"step", "STEP", "only add, use or drop"},
    {"ticket-seconds", "SEC", "how long a ticket is good (60)"},
    {"verbose", NULL, "log more"},
    {"workers", "N", "threads that answer (twice the processors)"},
};
enum { COUNT = sizeof(options) / sizeof(*options) };

bool ks_in_list(const char *list, const char *name, size_t n)
{
    for (const char *p = list; *p;) {
        size_t len = strcspn(p, " ");
        if (len == n && memcmp(p, name, n) == 0) {
            return true;
        }
        p += len + (p[len] == ' ');
    }
    return false;
}

static bool takes(const struct ks_command *c, const char *name)
{
    const size_t n = strlen(name);
    return ks_in_list("dir help json", name, n) || ks_in_list(c->options, name, n);
}

bool ks_option_known(const struct ks_command *c, const char *name, size_t n, bool value)
{
    for (size_t i = 0; i < COUNT; i++) {
        if (strlen(options[i].name) == n && memcmp(options[i].name, name, n) == 0) {
            return value == (options[i].value != NULL) && takes(c, options[i].name);
        }
    }
    return false;
}

static void head(const struct ks_command *c, char *out, size_t cap)
{
    (void)snprintf(out, cap, "%s%s%s%s%s", c->noun, c->verb ? " " : "", c->verb ? c->verb : "",
                   *c->words ? " " : "", c->words);
}

void ks_help(const struct ks_command *c, FILE *to)
{
    char text[128];
    head(c, text, sizeof(text));
    (void)fprintf(to, "Usage: kvfs-keyserver %s [--option=value...]\n\n%s\n\n", text, c->summary);
    for (size_t i = 0; i < COUNT; i++) {
        const char *value = options[i].value;
        if (takes(c, options[i].name)) {
            (void)snprintf(text, sizeof(text), "--%s%s%s", options[i].name, value ? "=" : "",
                           value ? value : "");
            (void)fprintf(to, "  %-26s %s\n", text, options[i].help);
        }
    }
}

void ks_help_all(const struct ks_command *commands, FILE *to)
{
    char text[128];
    (void)fputs("Usage: kvfs-keyserver COMMAND [WORD...] [--option=value...]\n\n", to);
    for (const struct ks_command *c = commands; c->noun; c++) {
        head(c, text, sizeof(text));
        (void)fprintf(to, "  %-38s %s\n", text, c->summary);
    }
    (void)fputs("\nkvfs-keyserver COMMAND --help lists its options.\n", to);
}
