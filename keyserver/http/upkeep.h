/* What a server does by itself: keys renewed, settled uploads made current, old rows removed. */
#ifndef KS_UPKEEP_H
#define KS_UPKEEP_H

#include "keyserver/http/request.h"

enum { KS_CHANGES_MAX = 256 };

struct ks_changes {
    int64_t since, counter;
    bool all; /* more than fit, or the database does not answer: everything may have changed */
    size_t count;
    struct {
        int64_t number;
        char subject[KS_ID + 1];
    } list[KS_CHANGES_MAX];
};
/* What changed after the counter was `since`. */
void ks_upkeep_changes(struct ks_db *db, int64_t since, struct ks_changes *out);
/* Whether something of it is for that request. */
bool ks_changes_concern(const struct ks_changes *c, const struct ks_request *r);
/* Called every second. */
void ks_upkeep(struct ks_ctx *c, struct ks_server *s, unsigned second);

#endif
