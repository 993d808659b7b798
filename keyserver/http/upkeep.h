/* What a server does by itself: keys renewed, settled uploads made current, old rows removed. */
#ifndef KS_UPKEEP_H
#define KS_UPKEEP_H

#include "keyserver/server.h"

/* The counter of changes; -1 when the database does not answer. */
int64_t ks_upkeep_changes(struct ks_db *db);
/* Called every second. */
void ks_upkeep(struct ks_ctx *c, struct ks_server *s, unsigned second);

#endif
