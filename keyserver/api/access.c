#include <stdio.h>
#include <string.h>

#include "format/policy/policy.h"
#include "keyserver/api/api.h"

static const char *claim(const json_t *claims, const char *name)
{
    const char *text = json_string_value(json_object_get(claims, name));
    return text ? text : "";
}

static int find(struct ks_request *r, const struct ks_user *user, const char *model,
                struct ks_access *a, struct ct_err *err)
{
    char owner[KS_NAME_LEN + 1];
    char name[KS_NAME_LEN + 1];
    if (!kx_split_model(model, owner, name)) {
        return ks_refuse(r, KS_NAME, "a model is OWNER/NAME");
    }
    (void)snprintf(r->audit_model, sizeof(r->audit_model), "%s", model);
    int rc = ks_model_find(&r->ctx, owner, name, &a->model, err);
    if (rc) {
        return rc < 0 ? -1 : ks_refuse(r, KS_DENIED, NULL);
    }
    a->owned = strcmp(a->model.owner_id, user->id) == 0;
    if (a->owned) {
        return 0;
    }
    rc = ks_subscription_find(&r->ctx, a->model.id, user->id, &a->subscription, err);
    if (rc) {
        return rc < 0 ? -1 : ks_refuse(r, KS_DENIED, NULL);
    }
    const struct ks_subscription *s = &a->subscription;
    return s->ended || (s->expires && s->expires <= ks_now()) ? ks_refuse(r, KS_SUBSCRIPTION, NULL)
                                                              : 0;
}

/* `list` is names with blanks between them. */
static bool in_list(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = list; *p;) {
        size_t len = strcspn(p, " ");
        if (len == n && memcmp(p, name, n) == 0) {
            return true;
        }
        p += len + (p[len] == ' ');
    }
    return false;
}

static int check_baseline(struct ks_request *r, const struct ks_model *m, const json_t *claims,
                          struct ct_err *err)
{
    ks_autorows rows = NULL;
    int rank = ks_assurance_rank(claim(claims, "assurance"));
    int rc =
        ks_one(r->ctx.db, &rows, err,
               "SELECT assurance, withdrawn FROM baselines WHERE model_id = $1 AND digest = $2",
               "ss", m->id, claim(claims, "measurement"));
    if (rc != 1) {
        return rc < 0 ? -1 : ks_refuse(r, KS_BASELINE, "%s", claim(claims, "measurement"));
    }
    if (ks_int(rows, 1)) {
        return ks_refuse(r, KS_BASELINE_OLD, NULL);
    }
    /* A name that is not known here asks for more than there is. */
    int wanted = ks_assurance_rank(ks_text(rows, 0));
    int by_model = ks_assurance_rank(m->assurance);
    return wanted < 0 || by_model < 0 || rank < wanted || rank < by_model
               ? ks_refuse(r, KS_ASSURANCE, NULL)
               : 0;
}

static json_t *policy_input(const struct ks_user *user, const struct ks_access *a,
                            const char *model, const json_t *claims, const char *event)
{
    char now[32];
    int64_t unix_time = ks_now();
    ks_rfc3339(unix_time, now);
    return json_pack(
        "{s:{s:s},s:s,s:s,s:s,s:s,s:I,s:b,s:s,s:s,s:s,s:s,s:s,s:s,s:I,s:s}", "kvfs", "version",
        KVFS_VERSION, "user", user->name, "model", model, "owner", a->model.owner, "name",
        a->model.name, "generation", (json_int_t)a->model.generation, "owned", a->owned,
        "assurance", claim(claims, "assurance"), "profile", claim(claims, "profile"), "measurement",
        claim(claims, "measurement"), "guard", claim(claims, "guard"), "host",
        claim(claims, "host"), "time", now, "unix", (json_int_t)unix_time, "event", event);
}

/* Every policy that a header of the generation has. */
static int check_policies(struct ks_request *r, const struct ks_access *a, const json_t *input,
                          struct ct_err *err)
{
    int rc = 0;
    size_t count = 0;
    if (!input) {
        return ct_err_set(err, CT_NOMEM, "no memory for a policy's input");
    }
    ks_autorows rows = ks_query(r->ctx.db, err,
                                "SELECT policy FROM policies WHERE model_id = $1 AND"
                                " generation = $2",
                                "si", a->model.id, a->model.generation);
    if (!rows) {
        return -1;
    }
    for (; (rc = ks_next(rows, err)) == 1; count++) {
        const char *text = ks_text(rows, 0);
        if (ct_policy_allow(text, strlen(text), input, err)) {
            return err->code == CT_POLICY ? ks_refuse_err(r, KS_POLICY, err) : -1;
        }
    }
    return rc      ? -1
           : count ? 0
                   : ct_err_set(err, CT_BUSY, "another generation became current meanwhile");
}

int ks_access_check(struct ks_request *r, const struct ks_user *user, const char *model,
                    const json_t *claims, const char *event, struct ks_access *out,
                    struct ct_err *err)
{
    *out = (struct ks_access){0};
    int rc = find(r, user, model, out, err);
    if (rc) {
        return rc;
    }
    if (out->model.generation == 0) {
        return ks_refuse(r, KS_EMPTY, NULL);
    }
    if (!in_list(out->model.profiles, claim(claims, "profile"))) {
        return ks_refuse(r, KS_PROFILE, "%s", claim(claims, "profile"));
    }
    if (strcmp(claim(claims, "guard"), "drift") == 0) {
        return ks_refuse(r, KS_GUARD, NULL);
    }
    rc = check_baseline(r, &out->model, claims, err);
    if (rc) {
        return rc;
    }
    kx_autojson input = policy_input(user, out, model, claims, event);
    return check_policies(r, out, input, err);
}
