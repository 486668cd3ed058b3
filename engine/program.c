/* Signals and output of the programs; the handler does only what a signal handler may. */
#include "program.h"

#include <signal.h>
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
