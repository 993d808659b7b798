/* What of a file is known to be damaged: decrypted once, remembered for as long as its node lives.
 */
#ifndef KVFS_SERVE_DAMAGE_H
#define KVFS_SERVE_DAMAGE_H

#include "kvfs/serve/node.h"

/* Ranges remembered of one file. When there are more, neighbours become one with what lies between:
 * then intact bytes are refused too. */
enum { KVFS_DAMAGES_MAX = 4096 };

/* -1 without memory: then the bytes, which are zeroed, must not be given out. */
int kvfs_damage_remember(struct kvfs_node *node, const struct ct_damages *d, struct ct_err *err);
/* -1 with the reason if a byte of [begin, end) is known to be damaged, or the node is stale. */
int kvfs_damage_check(struct kvfs_node *node, uint64_t begin, uint64_t end, struct ct_err *err);
void kvfs_damage_memo_free(struct kvfs_damage_memo *m);

#endif
