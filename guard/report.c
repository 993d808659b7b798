#include <stdio.h>
#include <string.h>

#include "guard/guard.h"

static const char *const who_names[GUARD_WHOS] = {"own", "reader"};
static const char *const level_names[] = {"ignore", "keep", "require"};
static const char *const state_names[] = {"skipped", "ok", "unseen", "held", "failed"};

const char *guard_report_state(const struct guard_profile *p, const struct guard_report *report)
{
    return guard_profile_is_off(p) ? "off" : report->count ? "drift" : "ok";
}

static json_t *checks_json(const struct guard_profile *p, const struct guard_report *report)
{
    json_t *all = json_array();
    for (int i = 0; i < GUARD_IDS; i++) {
        for (int who = 0; who < GUARD_WHOS; who++) {
            if (guard_checks[i].about[who]) {
                json_array_append_new(all, json_pack("{s:s,s:s,s:s,s:s}", "id",
                                                     guard_checks[i].name, "who", who_names[who],
                                                     "level", level_names[p->level[i][who]],
                                                     "state", state_names[report->state[i][who]]));
            }
        }
    }
    return all;
}

static json_t *findings_json(const struct guard_report *report)
{
    json_t *all = json_array();
    for (size_t i = 0; i < report->count && i < GUARD_FINDINGS_MAX; i++) {
        const struct guard_finding *f = &report->findings[i];
        json_array_append_new(
            all, json_pack("{s:s,s:s,s:s,s:i,s:s,s:s}", "id", guard_checks[f->id].name, "level",
                           level_names[f->level], "who", who_names[f->who], "pid", (int)f->pid,
                           "text", f->text, "fix", guard_checks[f->id].fix));
    }
    return all;
}

json_t *guard_report_json(const struct guard_profile *p, const struct guard_report *report)
{
    uint8_t digest[CT_SHA256_LEN];
    char hex[2 * CT_SHA256_LEN + 1];
    if (guard_profile_digest(p, digest, NULL)) {
        return NULL;
    }
    ct_hex(hex, digest, sizeof(digest));
    return json_pack("{s:s,s:s,s:s,s:o,s:o,s:I,s:I}", "profile", p->name, "digest", hex, "state",
                     guard_report_state(p, report), "checks", checks_json(p, report), "findings",
                     findings_json(report), "more", (json_int_t)report->more, "took_us",
                     (json_int_t)(report->took_ns / 1000));
}

json_t *guard_report_wire(const struct guard_profile *p, const struct guard_report *report)
{
    json_t *all = json_array();
    for (size_t i = 0; i < report->count && i < GUARD_FINDINGS_MAX; i++) {
        char text[GUARD_TEXT_MAX + 32]; /* names have at most 29 bytes */
        const struct guard_finding *f = &report->findings[i];
        (void)snprintf(text, sizeof(text), "%s: %s", guard_checks[f->id].name, f->text);
        json_array_append_new(all, json_string(text));
    }
    return json_pack("{s:s,s:o}", "state", guard_report_state(p, report), "findings", all);
}
