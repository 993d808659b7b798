/*
 * The server's certificate, which can be replaced while it serves: a handshake takes the newest
 * one, what is under way keeps its own. One a process, since MHD's callback has no argument for it.
 */
#ifndef KS_TLS_H
#define KS_TLS_H

#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>

#include "format/base/err.h"

/* Reads chain and key (PEM) and uses them from now on; on failure the former ones stay.
 * CT_MALFORMED when one is none, or they do not fit each other. */
int ks_tls_load(const char *cert, const char *key, struct ct_err *err);
/* After the last connection. */
void ks_tls_free(void);
/* For MHD_OPTION_HTTPS_CERT_CALLBACK. */
int ks_tls_choose(gnutls_session_t session, const gnutls_datum_t *authorities, int authority_count,
                  const gnutls_pk_algorithm_t *algorithms, int algorithm_count,
                  gnutls_pcert_st **chain, unsigned *chain_count, gnutls_privkey_t *key);

#endif
