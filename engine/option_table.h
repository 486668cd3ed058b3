/* Tables of options, for every program: one row holds an option with its aliases, its argument and its line of help, so
 * that parsing, help and "did you mean" cannot drift apart. Pure: prints nothing, touches no file. */
#ifndef HS_OPTION_TABLE_H
#define HS_OPTION_TABLE_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

/* help NULL: a name of its own that is not listed (aliases follow the option they stand for). name NULL: a group. */
typedef struct hs_option_row {
    int id;
    char letter;
    const char *name, *arg, *help;
} hs_option_row;
enum { HS_OPTIONS_MAX_ROWS = 128 };

/* Hands every option of the line (argv[0] is the program) to `set`, in order; set returns 0, a negative HS_E* code, or
 * a positive number to end the reading (--help), which is handed on. Unknown names are refused with the
 * nearest one, names of other programs with what is done instead. */
typedef int (*hs_option_fn)(void *user, const hs_option_row *row, const char *arg, hs_err *err);
int hs_options_read(const hs_option_row *rows, int n, int argc, char **argv, hs_option_fn set, void *user, hs_err *err);
/* The table as lines of help. */
void hs_options_list(const hs_option_row *rows, int n, void (*line)(void *user, const char *text), void *user);

/* What options hold. All refuse with HS_EINVAL and a message that names the option, the text and what it should be. */
int hs_option_bad(const char *name, const char *text, const char *should, hs_err *err);
/* Digits only: no sign, no space, no hexadecimal. *ret_end is where they stop. HS_EINVAL without a message. */
int hs_option_digits(const char *s, uint64_t *ret, const char **ret_end);
int hs_option_int(const char *name, const char *text, int low, int high, int *ret, hs_err *err);
int hs_option_double(const char *name, const char *text, double low, double high, double *ret, hs_err *err);
/* I/N: part I of N, 0 <= I < N. */
int hs_option_shard(const char *name, const char *text, int *ret_i, int *ret_n, hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
