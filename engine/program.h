/* What every program of HASTE does alike: exit codes, Ctrl-C, lines of help, messages. For mains only: the library
 * neither exits, nor catches signals, nor prints. */
#ifndef HS_PROGRAM_H
#define HS_PROGRAM_H
#include "haste.h"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

/* The first Ctrl-C (or SIGTERM) prints `note`, which must last, and is then to be seen by hs_program_stopped; a second
 * one exits at once. A closed pipe and the limit of file sizes become errors of write. */
void hs_program_catch_signals(const char *note);
int hs_program_stopped(void);

/* user is a FILE; for hs_options_help and its like. */
void hs_program_print_line(void *user, const char *text);

/* Standard error as people see it: messages, and a line of progress that a terminal rewrites. */
typedef struct hs_console {
    const char *program; /* before every message */
    int verbose;         /* debug messages, too */
    int tty, open;       /* the last line waits to be rewritten */
} hs_console;

/* The library's messages go there from here on; one console at a time, which must last. */
void hs_console_begin(hs_console *c, const char *program, int verbose);
int hs_console_fallbacks(void); /* how many were told of */
/* Before anything else is printed: takes an open line away. After a line of progress: it stays open on a terminal,
 * unless it is the last one. */
void hs_console_clear(hs_console *c);
void hs_console_end_line(hs_console *c, int last);
/* Prints it; returns the exit code that it means. */
int hs_console_error(hs_console *c, const hs_err *err);
#endif
