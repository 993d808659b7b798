/*
 * Who runs requests: MHD's threads only move bytes; every request is run by a worker with a
 * database connection of its own, and what may take long has workers of its own. Requests that wait
 * for something to change (long polls) cost no worker meanwhile.
 */
#ifndef KS_LANES_H
#define KS_LANES_H

#include "keyserver/http/request.h"

struct ks_lanes;

/* `done` is called by a worker for each request that has its answer. */
int ks_lanes_start(struct ks_server *s, void (*done)(struct ks_request *r), struct ks_lanes **out,
                   struct ct_err *err);
/* false when too many wait. The request is the worker's until `done`. */
bool ks_lanes_submit(struct ks_lanes *l, struct ks_request *r);
/* Answers what is under way within `seconds`, refuses the rest with KS_BUSY; ends the threads. From
 * then on all that is submitted is refused. */
void ks_lanes_stop(struct ks_lanes *l, unsigned seconds);
/* Once nobody can submit any more; NULL is allowed. */
void ks_lanes_free(struct ks_lanes *l);

#endif
