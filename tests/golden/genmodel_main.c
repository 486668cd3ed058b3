/* genmodel: writes one of the test models into a folder.
 *
 *     genmodel [--sparse] MODEL FOLDER        MODEL: a name of models.json
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
    int a = 1;
    if (a < argc && !strcmp(argv[a], "--sparse")) {
        opt.sparse = 1;
        a++;
    }
    if (argc - a != 2) {
        fprintf(stderr, "usage: genmodel [--sparse] MODEL FOLDER\n");
        return 2;
    }
    if (gm_write_model(GOLDEN_DIR, argv[a], argv[a + 1], &opt, &err)) {
        fprintf(stderr, "genmodel: %s\n", err.msg);
        return 1;
    }
    return 0;
}
