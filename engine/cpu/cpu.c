/* The fast CPU backend: finds out what the processor can do, chooses the type activations have, owns the memory, and
 * puts the operation table together. The work is in layers.c (products, through onednn.c),
 * attention.c, sparse.c (masks for it) and rows.c (all the rest).
 */
#include "cpu/attention.h"
#include "cpu/cpu.h"
#include "cpu/layers.h"
#include "cpu/onednn.h"
#include "cpu/rows.h"
#include "cpu/sparse.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#endif

/* ---- what there is ---------------------------------------------------------------------------------------------- */
/* Linux grants the AMX tile registers (8 KB of state per thread) to a process that asks. */
static int allow_amx(void) {
#if defined(__linux__) && defined(__x86_64__) && defined(SYS_arch_prctl)
    enum { REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 }; /* <asm/prctl.h>, absent from older headers */
    return !syscall(SYS_arch_prctl, REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
#else
    return 0;
#endif
}

hs_cpu_isa hs_cpu_detect(void) {
    hs_cpu_isa isa = hs_onednn_isa();
#if defined(__x86_64__)
    isa.avx2 = isa.avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    isa.avx512 = isa.avx512 && isa.avx2;
    isa.avx512_bf16 = isa.avx512_bf16 && isa.avx512;
    isa.amx_bf16 = isa.amx_bf16 && isa.avx512_bf16 && allow_amx();
    return isa;
#else
    return (hs_cpu_isa){0};
#endif
}

static const char *isa_name(hs_cpu_isa isa, hs_dtype act) {
    if (act == HS_BF16) return isa.amx_bf16 ? "AMX" : "AVX512-BF16";
    return isa.avx512 ? "AVX512" : isa.avx2 ? "AVX2" : "portable";
}

static int64_t cpu_free_bytes(const hs_device *dev) {
    (void)dev;
    return hs_host_free_bytes();
}

/* ---- memory: the host's ----------------------------------------------------------------------------------------- */
static int cpu_alloc(hs_device *dev, size_t bytes, void **ret) {
    (void)dev;
    *ret = hs_alloc(bytes);
    return *ret ? HS_OK : HS_ENOMEM;
}

static void cpu_free(hs_device *dev, void *p) {
    (void)dev;
    hs_free(p);
}

static void cpu_upload(hs_device *dev, void *dst, const void *host, size_t bytes) {
    (void)dev;
    memcpy(dst, host, bytes);
}

static void cpu_download(hs_device *dev, void *host, const void *src, size_t bytes) {
    (void)dev;
    memcpy(host, src, bytes);
}

static void cpu_zero(hs_device *dev, hs_buf dst) {
    (void)dev;
    memset(dst.p, 0, (size_t)dst.n * hs_dtype_size(dst.type));
}

/* Every operation has finished when it returns. */
static int cpu_sync(hs_device *dev, hs_err *err) {
    (void)dev, (void)err;
    return HS_OK;
}

/* ---- open and close --------------------------------------------------------------------------------------------- */
static void cpu_close(hs_device *dev) {
    if (!hs_cpu_of(dev)) return;
    hs_cpu_attention_done(dev);
    hs_cpu_layers_done(dev);
    hs_onednn_close(dev);
    hs_free(dev->impl);
    dev->impl = NULL;
}

static const hs_ops ops = {
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_upload,
    .download = cpu_download,
    .copy = hs_cpu_copy,
    .zero = cpu_zero,
    .free_bytes = cpu_free_bytes,
    .sync = cpu_sync,
    .weight_linear = hs_cpu_weight_linear,
    .weight_conv = hs_cpu_weight_conv,
    .weight_free = hs_cpu_weight_free,
    .linear = hs_cpu_linear,
    .norm = hs_cpu_norm,
    .modulation = hs_cpu_modulation,
    .qk_norm = hs_cpu_qk_norm,
    .gated_gelu = hs_cpu_gated_gelu,
    .gather_rows = hs_cpu_gather_rows,
    .combine = hs_cpu_combine,
    .attention = hs_cpu_attention,
    .block_scores = hs_cpu_block_scores,
    .centroid_scores = hs_cpu_centroid_scores,
    .select = hs_cpu_select,
    .mask_density = hs_cpu_mask_density,
    .block_means = hs_cpu_block_means,
    .cluster = hs_cpu_cluster,
    .reuse = hs_cpu_reuse,
    .patchify = hs_cpu_patchify,
    .unpatchify = hs_cpu_unpatchify,
    .latent_frames = hs_cpu_latent_frames,
    .channel_norm = hs_cpu_channel_norm,
    .conv = hs_cpu_conv,
    .split_frames = hs_cpu_split_frames,
    .to_u8 = hs_cpu_to_u8,
    .count_nonfinite = hs_cpu_count_nonfinite,
};

int hs_cpu_open(const hs_device_params *p, hs_device *dev, hs_err *err) {
    const hs_cpu_isa isa = hs_cpu_detect();
    const int has_bf16 = isa.amx_bf16 || isa.avx512_bf16;
    char version[32];
    if (!strcmp(p->precision, "fp16"))
        return hs_fail(err, HS_ENOTSUP, "fp16 needs a GPU; device cpu computes in fp32 or bf16");
    if (!strcmp(p->precision, "bf16") && !has_bf16)
        return hs_fail(err, HS_ENOTSUP,
                       "this processor has no bf16 arithmetic (AMX or AVX512-BF16); use precision fp32 or auto");
    hs_cpu *cpu = hs_calloc(1, sizeof *cpu);
    if (!cpu) return hs_fail(err, HS_ENOMEM, "out of memory opening the cpu backend");
    dev->impl = cpu;
    dev->ops = &ops;
    dev->act = has_bf16 && strcmp(p->precision, "fp32") != 0 ? HS_BF16 : HS_F32;
    cpu->isa = isa;
    cpu->threads = p->threads ? p->threads : hs_host_threads();
    int rc = hs_onednn_open(dev, err);
    if (!rc) rc = hs_cpu_layers_init(dev, err);
    if (!rc) rc = hs_cpu_attention_init(dev, err);
    if (rc) {
        cpu_close(dev);
        return rc;
    }
    hs_onednn_version(version, sizeof version);
    snprintf(dev->name, sizeof dev->name, "cpu: oneDNN %s, %s (%s), %d thread%s", version,
             dev->act == HS_BF16 ? "bf16" : "fp32", isa_name(isa, dev->act), cpu->threads,
             cpu->threads == 1 ? "" : "s");
    return HS_OK;
}
