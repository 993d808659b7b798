#include "keyserver/store/driver.h"

struct ks_db *ks_postgres_open(const char *where, struct ct_err *err)
{
    (void)where;
    ct_err_set(err, CT_UNSUPPORTED, "not yet");
    return NULL;
}
