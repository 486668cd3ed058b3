/* genmodel: writes one of the test models into a folder.
 *
 *     genmodel [--sparse] [--layout diffusers|original|comfyui] [--dtype F32|BF16|F16] [--quant 1|2]
 *              [--prefix P] [--only transformer|text_encoder|vae] [--golden DIR] MODEL FOLDER
 *
 * MODEL: a name of models.json. DIR: tests/golden, where it is not in the place of the build.
 */
#include "genmodel.h"

#include <stdio.h>
#include <string.h>

#ifndef GOLDEN_DIR
#error "GOLDEN_DIR must name tests/golden"
#endif

int main(int argc, char **argv) {
    gm_options opt = {0};
    hs_err err = {0};
    const char *golden = GOLDEN_DIR;
    int a = 1;
    for (; a < argc && !strncmp(argv[a], "--", 2); a++) {
        static const char *const layouts[] = {"diffusers", "original", "comfyui"};
        if (!strcmp(argv[a], "--sparse")) {
            opt.sparse = 1;
            continue;
        }
        if (a + 1 == argc) break;
        const char *name = argv[a], *value = argv[++a];
        if (!strcmp(name, "--dtype")) opt.dtype = value;
        if (!strcmp(name, "--only")) opt.only = value;
        if (!strcmp(name, "--golden")) golden = value;
        if (!strcmp(name, "--prefix")) opt.prefix = value;
        if (!strcmp(name, "--quant")) opt.quant = *value - '0';
        for (int i = 0; i < 3 && !strcmp(name, "--layout"); i++)
            if (!strcmp(value, layouts[i])) opt.layout = (gm_layout)i;
    }
    if (argc - a != 2) {
        fprintf(stderr, "usage: genmodel [--sparse] [--layout L] [--dtype T] [--quant N] [--prefix P] [--only PART] "
                        "[--golden DIR] MODEL FOLDER\n");
        return 2;
    }
    if (gm_write_model(golden, argv[a], argv[a + 1], &opt, &err)) {
        fprintf(stderr, "genmodel: %s\n", err.msg);
        return 1;
    }
    return 0;
}
