/* What haste-eval found, for people and programs: a table in plain text, in Markdown and in JSON, and a page of HTML.
 */
#ifndef HS_EVAL_REPORT_H
#define HS_EVAL_REPORT_H
#include "eval_table.h"

#include <stdio.h>

typedef struct hs_eval_report {
    const hs_eval_results *results;
    const hs_eval_row *rows;
    int n;
    const char *baseline; /* or NULL */
} hs_eval_report;

/* The table and the notes that it needs to be read rightly. */
int hs_eval_report_text(FILE *to, const hs_eval_report *r, hs_err *err);
/* The same as Markdown, and the list of rows of table.json. */
int hs_eval_report_markdown(const char *path, const hs_eval_report *r, hs_err *err);
int hs_eval_report_json(const char *path, const hs_eval_report *r, hs_err *err);

/* The page with figures. videos: file names, in the page's folder, of what to show; NULL or ended by NULL. */
int hs_eval_report_page(const char *path, const hs_eval_report *r, const char *const *videos, hs_err *err);

/* The cells of the table as text, [rows, columns] behind a head of *ret_columns titles; one block, hs_free. */
typedef char hs_eval_cell[96];
int hs_eval_report_cells(const hs_eval_report *r, hs_eval_cell **ret, int *ret_columns, hs_err *err);
/* The notes without which the table misleads, one a call. */
void hs_eval_report_notes(const hs_eval_report *r, void (*note)(void *user, const char *text), void *user);

#endif
