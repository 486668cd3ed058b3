/* Signals and output of the programs; the handler does only what a signal handler may. */
#include "program.h"
#include "base.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t stop_requested;
static const char *note_text;
static size_t note_size;

static void on_signal(int number) {
    (void)number;
    if (stop_requested) _exit(EXIT_INTERRUPTED);
    stop_requested = 1;
    ssize_t ignored = write(STDERR_FILENO, note_text, note_size);
    (void)ignored;
}

void hs_program_catch_signals(const char *note) {
    struct sigaction stop = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, ignore = {.sa_handler = SIG_IGN};
    note_text = note;
    note_size = strlen(note);
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
    sigaction(SIGXFSZ, &ignore, NULL);
}

int hs_program_stopped(void) {
    return stop_requested;
}

void hs_program_print_line(void *user, const char *text) {
    fprintf(user, "%s\n", text);
}

static atomic_int fallbacks;

static void on_log(void *user, enum hs_log_level level, const char *msg) {
    static const char *const label[] = {"error: ", "warning: ", "fall-back: ", "", ""};
    hs_console *c = user;
    if (level == HS_LOG_FALLBACK) atomic_fetch_add(&fallbacks, 1);
    if (level > HS_LOG_FALLBACK && !c->verbose) return;
    hs_console_clear(c);
    fprintf(stderr, "%s: %s%s\n", c->program, label[level], msg);
}

void hs_console_begin(hs_console *c, const char *program, int verbose) {
    *c = (hs_console){.program = program, .verbose = verbose, .tty = isatty(STDERR_FILENO)};
    hs_log_set(on_log, c);
}

int hs_console_fallbacks(void) {
    return atomic_load(&fallbacks);
}

void hs_console_clear(hs_console *c) {
    if (c->open) fputs("\r\033[K", stderr);
    c->open = 0;
}

void hs_console_end_line(hs_console *c, int last) {
    c->open = c->tty && !last;
    if (!c->open) fputc('\n', stderr);
    fflush(stderr);
}

int hs_console_error(hs_console *c, const hs_err *err) {
    hs_console_clear(c);
    fprintf(stderr, "%s: %s\n", c->program, err->msg);
    return err->code == HS_EINTR ? EXIT_INTERRUPTED : err->code == HS_EINVAL ? EXIT_USAGE : EXIT_FAILED;
}
