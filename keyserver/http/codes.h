/*
 * Every refusal there is: name, HTTP status, sentence. PROTOCOL.md's table is printed from this one
 * (`kvfs-keyserver codes`); a test compares them.
 */
#ifndef KS_CODES_H
#define KS_CODES_H

#define KS_CODES(X)                                                                                \
    X(OK, "ok", 200, "done")                                                                       \
    X(MALFORMED, "malformed", 400, "The request is not what the protocol says")                    \
    X(JOSE, "jose_rejected", 400, "A JOSE object does not have the one form that is allowed")      \
    X(NAME, "name_invalid", 400, "A name or path has characters or a form that is not allowed")    \
    X(NOT_FOUND, "not_found", 404, "There is no such thing, or it is not yours")                   \
    X(METHOD, "method_not_allowed", 405, "This address takes other methods")                       \
    X(TOO_LARGE, "too_large", 413, "The request is larger than this address takes")                \
    X(RATE, "rate_limited", 429, "Too many requests from this address: wait, then try again")      \
    X(INTERNAL, "internal", 500, "The server failed; its log says why")                            \
    X(BUSY, "busy", 503, "The server is busy: try again")                                          \
    X(UNAVAILABLE, "unavailable", 503, "The server's database cannot be used now: try again")      \
    X(DENIED, "denied", 401, "No such key, user or model, or no access to it")                     \
    X(TOKEN, "token_invalid", 401, "The token is unknown, expired or revoked: log in")             \
    X(SCOPE, "wrong_scope", 403, "The API key is for another purpose: use one of the right scope") \
    X(EXISTS, "exists", 409, "There is one of this name already")                                  \
    X(HEADER, "header_rejected", 422, "A header is malformed or made with other keys")             \
    X(HEADER_LARGE, "header_too_large", 413,                                                       \
      "A header is above 10 MiB: encrypt with larger chunks or in more shards")                    \
    X(POLICY_SYNTAX, "policy_unsupported", 422, "A remote policy is outside the supported subset") \
    X(STAGE_EMPTY, "stage_empty", 409, "Nothing is staged there: upload first")                    \
    X(GENERATION, "generation_mismatch", 409,                                                      \
      "The number is not the model's next generation: somebody else published")                    \
    X(MANIFEST, "manifest_rejected", 422,                                                          \
      "The manifest does not fit the user or the staged files")                                    \
    X(VERSION, "version_unsupported", 400, "No common version of the protocol: update")            \
    X(DOWNGRADE, "version_downgraded", 403,                                                        \
      "The offered versions are not those of the challenge request: somebody altered it")          \
    X(SERVER_KEY, "server_key_unknown", 409, "The evidence is for a key that is gone: start anew") \
    X(CHALLENGE, "challenge_invalid", 403, "The challenge was not given out by this server")       \
    X(CHALLENGE_OLD, "challenge_expired", 403, "The challenge is too old: ask for a new one")      \
    X(CHALLENGE_USED, "challenge_used", 403, "The challenge was used before: ask for a new one")   \
    X(BINDING, "binding_rejected", 403,                                                            \
      "The evidence is not signed by the runtime's key, or for other evidence")                    \
    X(HARDWARE, "hardware_unsupported", 403, "Nothing here verifies hardware evidence: send null") \
    X(PROFILE, "profile_refused", 403, "The model does not allow this guard profile")              \
    X(GUARD, "guard_drift", 403, "The guard reports drift: repair the container")                  \
    X(BASELINE, "baseline_unknown", 403,                                                           \
      "The measurements match no baseline: have their digest registered")                          \
    X(BASELINE_OLD, "baseline_withdrawn", 403, "The baseline was withdrawn: update the runtime")   \
    X(ASSURANCE, "assurance_too_low", 403, "The model asks for more assurance than self-reported") \
    X(SUBSCRIPTION, "subscription_ended", 403, "The subscription ended: ask the owner")            \
    X(EMPTY, "model_empty", 409, "The model has no files yet: the owner has to publish")           \
    X(POLICY, "policy_denied", 403, "The model's remote policy does not allow this")               \
    X(TICKET, "ticket_unknown", 403, "The ticket was not given out, or is long gone: start anew")  \
    X(TICKET_OLD, "ticket_expired", 403, "The ticket is too old: start anew")                      \
    X(TICKET_USED, "ticket_used", 403, "The ticket is used up: start anew")                        \
    X(PROOF, "proof_rejected", 403, "The proof is not by the ticket's key, or for something else") \
    X(CALL, "call_out_of_order", 403, "This call of the ticket was made before, or is not next")   \
    X(GENERATION_CHANGED, "generation_changed", 409, "A new generation is current: start anew")    \
    X(SYNC, "sync_limit", 403, "The headers differ still after two synchronisations")              \
    X(MAX_LEASES, "max_leases", 403, "All leases of the subscription are taken: end one, or wait") \
    X(LEASE, "lease_unknown", 404, "There is no such lease")                                       \
    X(LEASE_END, "lease_ended", 403, "The lease was given back")                                   \
    X(LEASE_OLD, "lease_expired", 403, "The lease is over: start anew")                            \
    X(LEASE_REVOKED, "lease_revoked", 403, "The lease was revoked")                                \
    X(MEASUREMENT, "measurement_changed", 403,                                                     \
      "The measurements are not those of the release: start anew")                                 \
    X(AUDIT, "audit_gap", 409, "The records do not extend those that are here")

enum ks_code {
#define X(name, text, status, sentence) KS_##name,
    KS_CODES(X)
#undef X
        KS_CODE_COUNT
};

const char *ks_code_name(enum ks_code code);
unsigned ks_code_status(enum ks_code code);
const char *ks_code_sentence(enum ks_code code);

#endif
