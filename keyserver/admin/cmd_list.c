#include <string.h>

#include "keyserver/admin/admin.h"

static const struct {
    const char *noun, *columns, *sql;
} lists[] = {
    {"user", "name id created:t disabled:t sign_kid",
     "SELECT name, id, created, disabled, sign_kid FROM users ORDER BY name"},
    {"apikey", "id user scope label created:t expires:t revoked:t",
     "SELECT k.id, u.name, k.scope, k.label, k.created, k.expires, k.revoked FROM apikeys k"
     " JOIN users u ON u.id = k.user_id ORDER BY u.name, k.created"},
    {"model", "model id generation:n files:n lease:n grace:n assurance profiles",
     "SELECT u.name || '/' || m.name, m.id, m.generation, (SELECT COUNT(*) FROM files f WHERE"
     " f.model_id = m.id AND f.generation = m.generation), m.lease_seconds, m.lease_grace,"
     " m.assurance, m.profiles FROM models m JOIN users u ON u.id = m.owner_id"
     " ORDER BY u.name, m.name"},
    {"subscription", "id model user created:t expires:t ended:t max_leases:n",
     "SELECT s.id, o.name || '/' || m.name, u.name, s.created, s.expires, s.ended, s.max_leases"
     " FROM subscriptions s JOIN models m ON m.id = s.model_id JOIN users o ON o.id = m.owner_id"
     " JOIN users u ON u.id = s.user_id ORDER BY s.created"},
    {"baseline", "model digest assurance label created:t withdrawn:t",
     "SELECT o.name || '/' || m.name, b.digest, b.assurance, b.label, b.created, b.withdrawn"
     " FROM baselines b JOIN models m ON m.id = b.model_id JOIN users o ON o.id = m.owner_id"
     " ORDER BY o.name, m.name, b.created"},
    {"lease",
     "id model user generation:n created:t expires:t ended:t revoked:t reason records:n head",
     "SELECT l.id, o.name || '/' || m.name, u.name, l.generation, l.created, l.expires, l.ended,"
     " l.revoked, l.reason, l.audit_count, l.audit_head FROM leases l JOIN models m ON m.id ="
     " l.model_id JOIN users o ON o.id = m.owner_id JOIN users u ON u.id = l.user_id"
     " WHERE $2 = 1 OR (l.ended = 0 AND l.revoked = 0 AND l.expires + l.grace > $3)"
     " ORDER BY l.created DESC LIMIT $1"},
    {"audit", "id:n at:t event code user model lease address detail",
     "SELECT id, at / 1000, event, code, user_name, model, lease_id, address, detail FROM"
     " (SELECT * FROM audit ORDER BY id DESC LIMIT $1) a ORDER BY id"},
};

int ks_cmd_list(struct ks_admin *a, struct ct_err *err)
{
    int64_t last = 0;
    const int64_t all = ks_option(a, "all", NULL) != NULL;
    if (ks_option_number(a, "last", strcmp(a->command->noun, "audit") == 0 ? 100 : 100000, 1000000,
                         &last, err)) {
        return -1;
    }
    for (size_t i = 0; i < sizeof(lists) / sizeof(*lists); i++) {
        if (strcmp(lists[i].noun, a->command->noun) == 0) {
            /* How many parameters the text has, all of them numbers. */
            const char *format = strstr(lists[i].sql, "$3")   ? "iii"
                                 : strstr(lists[i].sql, "$1") ? "i"
                                                              : "";
            struct ks_rows *rows =
                ks_query(a->ctx.db, err, lists[i].sql, format, last, all, ks_now());
            return ks_admin_list(a, rows, lists[i].columns, err);
        }
    }
    return ct_err_set(err, CT_USAGE, "nothing to list");
}
