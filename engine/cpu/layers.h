/* Linear layers and convolutions of the CPU backend; contracts in backend.h. Called by cpu.c only. */
#ifndef HS_CPU_LAYERS_H
#define HS_CPU_LAYERS_H
#include "cpu/cpu.h"
#ifdef __cplusplus
extern "C" {
#endif

/* The scratch of hs_cpu; done accepts a half-opened device. */
int hs_cpu_layers_init(hs_device *dev, hs_err *err);
void hs_cpu_layers_done(hs_device *dev);

int hs_cpu_weight_linear(hs_device *dev, const hs_linear_src *src, hs_weight *w, hs_err *err);
int hs_cpu_weight_conv(hs_device *dev, const hs_conv_src *src, hs_weight *w, hs_err *err);
void hs_cpu_weight_free(hs_device *dev, hs_weight *w);
void hs_cpu_linear(hs_device *dev, const hs_linear *a);
void hs_cpu_conv(hs_device *dev, const hs_conv *a);

#ifdef __cplusplus
}
#endif
#endif
