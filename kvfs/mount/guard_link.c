#include "kvfs/mount/guard_link.h"

#include <stddef.h>
#include <string.h>

#include "kvfs/mount/control.h"

/* No more than there is to say: the socket holds hundreds of short packets, but few of the longest.
 */
int kvfs_guard_send(int link, struct kvfs_guard_message *m, struct ct_err *err)
{
    m->size = (uint32_t)(offsetof(struct kvfs_guard_message, text) + strlen(m->text) + 1);
    return kvfs_control_send(link, m, m->size, -1, true, err);
}

int kvfs_guard_recv(int link, struct kvfs_guard_message *m, struct ct_err *err)
{
    size_t got = 0;
    int r = kvfs_control_recv_upto(link, m, sizeof(*m), &got, NULL, err);
    if (r != 1) {
        return r;
    }
    return got > offsetof(struct kvfs_guard_message, text) && m->size == got &&
                   ((const char *)m)[got - 1] == '\0'
               ? 1
               : ct_err_set(err, CT_MALFORMED, "the guard's link: a message of the wrong form");
}
