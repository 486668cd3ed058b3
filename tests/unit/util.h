/* What the unit tests share: a scratch folder, files in it, and loops that let the n-th allocation or I/O call fail. */
#ifndef HS_TEST_UTIL_H
#define HS_TEST_UTIL_H
#include "base.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Path of a file in the scratch folder of this test, which is made at the first call and removed at exit of the test
 * (scratch_remove, given as .fini). Valid until eight more calls. */
const char *scratch(const char *fmt, ...) HS_PRINTF(1, 2);
void scratch_remove(void);
void write_file(const char *path, const void *data, size_t len);
void write_text(const char *path, const char *text);
/* A safetensors file: length, header, then data_len bytes 0, 1, 2, ... */
void write_tensors(const char *path, const char *header, size_t data_len);
void make_dir(const char *path);

/* The smallest model folder that hs_config_load accepts. */
void write_configs(const char *dir);
extern const char transformer_json[], text_json[], vae_json[], sched_json[];

/* json with the first `from` replaced by `to`; static buffer. */
const char *edit(const char *json, const char *from, const char *to);

/* Runs `attempt` with the n-th allocation failing for n = 1, 2, ... until it succeeds. Each failure must be one of two
 * error codes with a message, and leave as many blocks as before. cJSON allocates through the library meanwhile.
 * Returns the number of failures seen. */
typedef int (*attempt_fn)(void *arg, hs_err *err); /* opens and, when that worked, closes again */
int fail_allocations(attempt_fn attempt, void *arg, const char *what);
#endif
