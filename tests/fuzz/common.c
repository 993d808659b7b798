#include <fcntl.h>

#include "format/base/log.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv) // NOLINT(readability-non-const-parameter)
{
    (void)argc;
    (void)argv;
    MUST(ct_secret_init(NULL) == 0);
    fuzz_start();
    return 0;
}

struct ct_keyring *vector_keys(void)
{
    ct_autobuf text = {0};
    struct ct_keyring *ring = ct_keyring_new(NULL);
    MUST(ring &&
         ct_read_file(AT_FDCWD, TEST_VECTORS "/keys/owner.jwks", 1 << 20, &text, NULL) == 0);
    MUST(ct_keyring_add(ring, text.data, text.len, "owner.jwks", NULL) == 0);
    return ring;
}

static void nowhere(void *ctx, enum ct_level level, const char *line)
{
    (void)ctx;
    (void)level;
    (void)line;
}

void silence(void)
{
    ct_log_set_sink(nowhere, NULL);
}
