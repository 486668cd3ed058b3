/* What every program of HASTE does alike: exit codes, Ctrl-C, lines of help. For mains only: the library neither exits
 * nor catches signals. */
#ifndef HS_PROGRAM_H
#define HS_PROGRAM_H

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

/* The first Ctrl-C (or SIGTERM) prints `note`, which must last, and is then to be seen by hs_program_stopped; a second
 * one exits at once. A closed pipe and the limit of file sizes become errors of write. */
void hs_program_catch_signals(const char *note);
int hs_program_stopped(void);

/* user is a FILE; for hs_options_help and its like. */
void hs_program_print_line(void *user, const char *text);
#endif
