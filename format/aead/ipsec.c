#include <intel-ipsec-mb.h>
#include <pthread.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "format/aead/backend.h"
#include "format/aead/gf1305.h"
#include "format/base/secret.h"

/*
 * Of ipsec-mb only the direct functions are used, not its jobs: they keep all their state in what
 * the caller passes, so the pointers, taken once from a manager that is then freed, serve every
 * thread. (They note errors in a variable of the library; with arguments that are right there are
 * none, and it is not read.) Finding out the processor takes instructions only, no system call.
 */
static struct {
    bool works;
    struct gcm {
        aes_gcm_pre_t pre;
        aes_gcm_init_var_iv_t init;
        aes_gcm_enc_dec_update_t decrypt, encrypt;
        aes_gcm_enc_dec_finalize_t finish; /* the same for both directions */
        aes_gmac_init_t gmac_init;
        aes_gmac_update_t gmac_update;
        aes_gmac_finalize_t gmac_finish;
    } gcm[CT_ALG_AES256GCM + 1];
    chacha_poly_init_t poly_init;
    chacha_poly_enc_dec_update_t poly_decrypt, poly_encrypt;
    chacha_poly_finalize_t poly_finish;
} mb;
static pthread_once_t looked = PTHREAD_ONCE_INIT;

/* The library (1.3) looks at what the processor has, not at what the kernel has switched on; gcc's
 * builtins look at both. */
static bool usable(uint64_t features)
{
    __builtin_cpu_init();
    return (features & IMB_CPUFLAGS_SSE) == IMB_CPUFLAGS_SSE &&
           (!(features & IMB_FEATURE_AVX) || __builtin_cpu_supports("avx")) &&
           (!(features & IMB_FEATURE_AVX2) || __builtin_cpu_supports("avx2")) &&
           (!(features & IMB_FEATURE_AVX512F) || __builtin_cpu_supports("avx512f"));
}

static void take_pointers(const IMB_MGR *m)
{
    mb.gcm[CT_ALG_AES128GCM] = (struct gcm){
        m->gcm128_pre,          m->gcm128_init_var_iv, m->gcm128_dec_update, m->gcm128_enc_update,
        m->gcm128_dec_finalize, m->gmac128_init,       m->gmac128_update,    m->gmac128_finalize};
    mb.gcm[CT_ALG_AES256GCM] = (struct gcm){
        m->gcm256_pre,          m->gcm256_init_var_iv, m->gcm256_dec_update, m->gcm256_enc_update,
        m->gcm256_dec_finalize, m->gmac256_init,       m->gmac256_update,    m->gmac256_finalize};
    mb.poly_init = m->chacha20_poly1305_init;
    mb.poly_decrypt = m->chacha20_poly1305_dec_update;
    mb.poly_encrypt = m->chacha20_poly1305_enc_update;
    mb.poly_finish = m->chacha20_poly1305_finalize;
}

static void look(void)
{
    const uint64_t tested = IMB_FEATURE_SELF_TEST | IMB_FEATURE_SELF_TEST_PASS;
    if (imb_get_version() < IMB_VERSION(1, 3, 0) || !usable(imb_get_feature_flags())) {
        return;
    }
    IMB_MGR *m = alloc_mb_mgr(0);
    if (m) {
        init_mb_mgr_auto(m, NULL); /* tests itself */
        mb.works = imb_get_errno(m) == 0 && (m->features & tested) == tested;
        take_pointers(m);
        free_mb_mgr(m);
    }
}

static bool ipsec_provides(enum ct_alg alg, enum ct_op op)
{
    pthread_once(&looked, look);
    /* Its ChaCha20 begins at block 0 or 1 only. */
    return mb.works && ct_alg_has(alg, op) && op != CT_OP_CHACHA20;
}

/* All that depends on a key. */
struct keyed {
    union {
        struct {
            /* The code needs this, the header says so only under a macro of the library's own. */
            _Alignas(64) struct gcm_key_data key;
            struct gcm_context_data ctx;
        } gcm;
        struct {
            uint8_t key[32];
            struct chacha20_poly1305_context_data ctx;
        } chacha;
    };
    uint8_t tag[16];
};

struct ipsec {
    struct ct_impl base;
    struct ct_secret *secret;
    struct keyed *keyed; /* in it */
    const struct gcm *gcm;
};

static void ipsec_destroy(struct ct_impl *i)
{
    struct ipsec *p = (struct ipsec *)i;
    ct_secret_free(p->secret);
    free(p);
}

static struct ct_impl *ipsec_create(enum ct_alg alg)
{
    struct ipsec *p = calloc(1, sizeof(*p));
    if (!p) {
        return NULL;
    }
    *p = (struct ipsec){.base = {&ct_backend_ipsec, alg},
                        .secret = ct_secret_new(sizeof(struct keyed), NULL)};
    if (p->secret) {
        p->keyed = (struct keyed *)(void *)ct_secret_bytes(p->secret);
        p->gcm = alg == CT_ALG_CHACHA20POLY1305 ? NULL : &mb.gcm[alg];
        /* A secret ends where its pages end, so multiples of the alignment are aligned. */
        if ((uintptr_t)p->keyed % _Alignof(struct keyed) == 0) {
            return &p->base;
        }
    }
    ipsec_destroy(&p->base);
    return NULL;
}

static int ipsec_set_key(struct ct_impl *i, const uint8_t *key)
{
    struct ipsec *p = (struct ipsec *)i;
    ct_wipe(p->keyed, sizeof(*p->keyed));
    if (p->gcm) {
        p->gcm->pre(key, &p->keyed->gcm.key);
    } else {
        memcpy(p->keyed->chacha.key, key, sizeof(p->keyed->chacha.key));
    }
    return 0;
}

static void start(struct ipsec *p, const uint8_t *iv, size_t iv_len)
{
    struct keyed *k = p->keyed;
    if (p->gcm) {
        p->gcm->init(&k->gcm.key, &k->gcm.ctx, iv, iv_len, NULL, 0);
    } else {
        mb.poly_init(k->chacha.key, &k->chacha.ctx, iv, NULL, 0);
    }
}

static void finish(struct ipsec *p, uint8_t tag[static 16])
{
    struct keyed *k = p->keyed;
    if (p->gcm) {
        p->gcm->finish(&k->gcm.key, &k->gcm.ctx, tag, 16);
    } else {
        mb.poly_finish(&k->chacha.ctx, tag, 16);
    }
}

static int ipsec_open_start(struct ct_impl *i, const uint8_t *iv, size_t iv_len)
{
    start((struct ipsec *)i, iv, iv_len);
    return 0;
}

static int ipsec_open_add(struct ct_impl *i, const uint8_t *in, size_t n, uint8_t *out)
{
    struct ipsec *p = (struct ipsec *)i;
    struct keyed *k = p->keyed;
    if (n && p->gcm) {
        p->gcm->decrypt(&k->gcm.key, &k->gcm.ctx, out, in, n);
    } else if (n) {
        mb.poly_decrypt(k->chacha.key, &k->chacha.ctx, out, in, n);
    }
    return 0;
}

static int ipsec_open_finish(struct ct_impl *i, const uint8_t tag[static 16])
{
    struct ipsec *p = (struct ipsec *)i;
    struct keyed *k = p->keyed;
    finish(p, k->tag);
    return sodium_memcmp(k->tag, tag, 16) != 0;
}

static int ipsec_start(struct ct_impl *i, const uint8_t iv[static 12])
{
    start((struct ipsec *)i, iv, 12);
    return 0;
}

static int ipsec_update(struct ct_impl *i, const uint8_t *in, size_t n, uint8_t *out)
{
    struct ipsec *p = (struct ipsec *)i;
    struct keyed *k = p->keyed;
    if (n && p->gcm) {
        p->gcm->encrypt(&k->gcm.key, &k->gcm.ctx, out, in, n);
    } else if (n) {
        mb.poly_encrypt(k->chacha.key, &k->chacha.ctx, out, in, n);
    }
    return 0;
}

static int ipsec_finish(struct ct_impl *i, uint8_t tag[static 16])
{
    finish((struct ipsec *)i, tag);
    return 0;
}

static int ipsec_gmac_start(struct ct_impl *i, const uint8_t *iv, size_t iv_len)
{
    struct ipsec *p = (struct ipsec *)i;
    struct keyed *k = p->keyed;
    p->gcm->gmac_init(&k->gcm.key, &k->gcm.ctx, iv, iv_len);
    return 0;
}

static int ipsec_gmac_add(struct ct_impl *i, const uint8_t *in, size_t n)
{
    struct ipsec *p = (struct ipsec *)i;
    struct keyed *k = p->keyed;
    if (n) {
        p->gcm->gmac_update(&k->gcm.key, &k->gcm.ctx, in, n);
    }
    return 0;
}

static int ipsec_gmac_finish(struct ct_impl *i, uint8_t tag[static 16])
{
    struct ipsec *p = (struct ipsec *)i;
    struct keyed *k = p->keyed;
    p->gcm->gmac_finish(&k->gcm.key, &k->gcm.ctx, tag, 16);
    return 0;
}

/* The text as associated data: once that is taken in, what the context has for a hash is the sum.
 */
static int ipsec_poly1305(struct ct_impl *i, const uint8_t iv[static 12], const uint8_t *in,
                          size_t n, uint8_t sum[static CT_POLY_SUM])
{
    struct keyed *k = ((struct ipsec *)i)->keyed;
    mb.poly_init(k->chacha.key, &k->chacha.ctx, iv, in, n);
    struct ct_gf1305 v = ct_gf1305_load((const uint8_t *)k->chacha.ctx.hash, k->chacha.ctx.hash[2]);
    sum[16] = (uint8_t)ct_gf1305_store(&v, sum);
    ct_wipe(&v, sizeof(v));
    return 0;
}

const struct ct_backend ct_backend_ipsec = {
    .name = "ipsec",
    .provides = ipsec_provides,
    .create = ipsec_create,
    .destroy = ipsec_destroy,
    .set_key = ipsec_set_key,
    .open_start = ipsec_open_start,
    .open_add = ipsec_open_add,
    .open_finish = ipsec_open_finish,
    .start = ipsec_start,
    .update = ipsec_update,
    .finish = ipsec_finish,
    .gmac_start = ipsec_gmac_start,
    .gmac_add = ipsec_gmac_add,
    .gmac_finish = ipsec_gmac_finish,
    .poly1305 = ipsec_poly1305,
};
