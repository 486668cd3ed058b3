/* clean.c: the repairs one by one. The expected texts are what ftfy 6.3 (without its repair of mojibake) and Python's
 * html.unescape give, as diffusers applies them; tests/golden holds whole prompts. */
#include "util.h"
#include "tokenizer.h"

#include <criterion/criterion.h>

static char *clean(const char *s) {
    char *r = NULL;
    hs_err e = {0};
    cr_assert_eq(hs_prompt_clean(s, &r, &e), 0, "%s: %s", s, e.msg);
    return r;
}

Test(clean, repairs) {
    static const char *const cases[][2] = {
        /* space */
        {"", ""},
        {"   ", ""},
        {"  a\x09\x09"
         "b \x0a c ",
         "a b c"},
        {"a\xc2\xa0\xe2\x80\x83"
         "b\xe3\x80\x80"
         "c\xe2\x80\xaf"
         "d",
         "a b c d"},
        {"\xe2\x80\xa8"
         "a\xe2\x80\xa9"
         "b\xc2\x85"
         "c\x0d\x0a"
         "d\x0d"
         "e",
         "a b\xe2\x80\xa6"
         "c d e"},
        {"a\xe2\x80\x8b"
         "b",
         "a\xe2\x80\x8b"
         "b"},
        /* full width */
        {"\xef\xbc\xa1\xef\xbc\xa2\xef\xbc\xa3\xef\xbc\x81\xef\xbc\x9f\xef\xbc\x8c", "ABC!\?,"},
        {"\xe6\xb5\x81\xe7\x95\x85\xef\xbc\x8c\xe9\x9d\x99\xe6\x80\x81\xe3\x80\x82",
         "\xe6\xb5\x81\xe7\x95\x85,\xe9\x9d\x99\xe6\x80\x81\xe3\x80\x82"},
        {"\xef\xbd\xb6\xef\xbe\x9e\xef\xbf\xa5\xef\xbf\xa3", "\xe3\x82\xac\xc2\xa5 \xcc\x84"},
        {"\xef\xbe\xa1\xef\xbf\xad", "\xe1\x84\x80\xe2\x96\xa0"},
        /* quotes */
        {"\xe2\x80\x98"
         "a\xe2\x80\x99 \xe2\x80\x9c"
         "b\xe2\x80\x9d \xe2\x80\x9a"
         "c\xe2\x80\x9b \xe2\x80\x9e"
         "d\xe2\x80\x9f e\xca\xbc"
         "f",
         "'a' \"b\" 'c' \"d\" e'f"},
        {"\xc2\xabg\xc2\xbb", "\xc2\xabg\xc2\xbb"},
        {"\xef\xbc\x82h\xef\xbc\x87", "\"h'"},
        /* ligatures */
        {"o\xef\xac\x83"
         "ce \xef\xac\x81\xef\xac\x82 \xef\xac\x85\xef\xac\x86",
         "office fifl \xc5\xbftst"},
        {"\xc4\xb2ssel \xc4\xb3 \xc5\x89 \xc7\x84 \xc7\x88 \xc7\x8c \xc7\xb1", "IJssel ij 'n D\xc5\xbd Lj nj DZ"},
        {"\xc5\x92uvre \xc3\xa6", "\xc5\x92uvre \xc3\xa6"},
        /* control */
        {"a\x01"
         "b\x08"
         "c\x0b"
         "d\x1f"
         "e\x7f"
         "f",
         "abcdef"},
        {"\xef\xbb\xbfg\xe2\x81\xaah\xef\xbf\xbci", "ghi"},
        {"\x1b[31mred\x1b[0m \x1b[1;31mx \x1b[k", "red x"},
        {"\x1b[\x1b[3", "[[3"},
        {"\xc2\x80\xc2\x85\xc2\x91\xc2\x94\xc2\x9d", "\xe2\x82\xac\xe2\x80\xa6'\"\xc2\x9d"},
        /* NFC */
        {"e\xcc\x81 A\xcc\x8a \xe2\x84\xab \xe2\x84\xa6", "\xc3\xa9 \xc3\x85 \xc3\x85 \xce\xa9"},
        {"\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81"},
        {"d\xcc\xa3\xcc\x87 d\xcc\x87\xcc\xa3", "\xe1\xb8\x8d\xcc\x87 \xe1\xb8\x8d\xcc\x87"},
        {"\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc"},
        /* entities */
        {"&lt;b&gt; &amp; &quot;&apos;", "<b> & \"'"},
        {"&eacute;t&eacute &copy2 &notit; &times", "\xc3\xa9t\xc3\xa9 \xc2\xa9"
                                                   "2 \xc2\xacit; \xc3\x97"},
        {"&#233;&#xe9;&#XE9; &#233 &#x1F600;", "\xc3\xa9\xc3\xa9\xc3\xa9 \xc3\xa9 \xf0\x9f\x98\x80"},
        {"&#0; &#128; &#x96; &#xD800; &#1114112; &#99999999999999999999;",
         "\xef\xbf\xbd \xe2\x82\xac \xe2\x80\x93 \xef\xbf\xbd \xef\xbf\xbd \xef\xbf\xbd"},
        {"&#1; &#127; &#xFFFE; &#x;&#;&;& &", "&#x;&#;&;& &"},
        {"&amp;amp;amp;lt;", "<"},
        {"a&nbsp;b&thinsp;c", "a b c"},
        {"&rsquo;&ldquo;", "'\""},
        {"&unknown; &Eacut &thetasym;&alefsym;&lang;", "&unknown; &Eacut \xcf\x91\xe2\x84\xb5\xe2\x9f\xa8"},
        {"&#38;amp;#38;lt;", "<"},
        {"&#59; &#12abc;", "; abc;"},
        {"&lt&#59; &amp;eacute", "<; \xc3\xa9"},
        {"&GT;&COPY;&Auml;&auml;", ">\xc2\xa9\xc3\x84\xc3\xa4"},
        {"&#27;[31mx", "[31mx"},
        {"AT&T &trade", "AT&T &trade"},
        /* markup */
        {"<p> &rsquo;&amp;amp;lt;", "<p> \xe2\x80\x99&lt;"},
        {"&rsquo;\x0a<p>\x0a&rsquo; &amp;amp;amp;gt;", "' <p> \xe2\x80\x99 &amp;gt;"},
        {"a < b &ldquo;c&rdquo;", "a < b \xe2\x80\x9c"
                                  "c\xe2\x80\x9d"},
        {"<p> &#128;&#150;&#133;", "<p> \xe2\x82\xac\xe2\x80\x93\xe2\x80\xa6"},
        /* left alone */
        {"\xe2\x80\xa6 \xe2\x80\x94 \xe2\x84\xa2 \xe2\x91\xa0 \xe3\x80\x81\xe3\x80\x90\xe3\x80\x91",
         "\xe2\x80\xa6 \xe2\x80\x94 \xe2\x84\xa2 \xe2\x91\xa0 \xe3\x80\x81\xe3\x80\x90\xe3\x80\x91"},
        {"\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x9a\x80 \xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d",
         "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x9a\x80 \xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d"},
        {"plain text, nothing to do.", "plain text, nothing to do."},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char *r = clean(cases[i][0]);
        cr_assert_str_eq(r, cases[i][1], "\"%s\" became \"%s\", expected \"%s\"", cases[i][0], r, cases[i][1]);
        hs_free(r);
    }
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(clean, unlike_the_reference) {          /* what the file comment says is left out */
    char *r = clean("sch\xc3\x83\xc2\xb6n"); /* mojibake */
    cr_assert_str_eq(r, "sch\xc3\x83\xc2\xb6n");
    hs_free(r);
    r = clean("&checkmark; &NotEqualTilde;"); /* names of HTML 5 alone */
    cr_assert_str_eq(r, "&checkmark; &NotEqualTilde;");
    hs_free(r);
}

Test(clean, invalid_utf8_is_refused_with_its_place) {
    static const struct {
        const char *s;
        const char *at;
    } cases[] = {
        {"abc\xff", "byte 3 (0xff)"},
        {"\x80", "byte 0 (0x80)"},
        {"a\xc3", "byte 1 (0xc3)"},
        {"a\xc3(", "byte 1"},
        {"\xc0\x80", "byte 0"},
        {"ab\xed\xa0\x80", "byte 2 (0xed)"},
        {"\xf4\x90\x80\x80", "byte 0 (0xf4)"},
        {"\xe5\x9c\x86\xe5\x9c", "byte 3"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char *r = NULL;
        hs_err e;
        cr_assert_eq(hs_prompt_clean(cases[i].s, &r, &e), HS_EINVAL);
        cr_assert(strstr(e.msg, "not valid UTF-8") && strstr(e.msg, cases[i].at), "%s", e.msg);
        cr_assert_null(r);
    }
}

Test(clean, long_prompts) {
    enum { N = 1000000 };
    char *s = malloc(N + 2);
    memset(s, '&', N);
    s[N] = '\0';
    double t = hs_seconds();
    char *r = clean(s);
    cr_assert_eq(strlen(r), N);
    hs_free(r);
    for (int i = 0; i + 4 <= N; i += 4) memcpy(s + i, i ? "amp;" : "&amp", 4); /* reduces one step a pass */
    memcpy(s, "&", 1);
    r = clean(s);
    hs_free(r);
    cr_assert_lt(hs_seconds() - t, 20, "bounded work on the worst input");
    memset(s, 'a', N + 1);
    s[N + 1] = '\0';
    hs_err e;
    cr_assert_eq(hs_prompt_clean(s, &r, &e), HS_EINVAL);
    cr_assert(strstr(e.msg, "1000001 bytes, expected at most 1000000"), "%s", e.msg);
    free(s);
}

static int clean_and_free(void *arg, hs_err *err) {
    char *r;
    int rc = hs_prompt_clean(arg, &r, err);
    if (!rc) hs_free(r);
    return rc;
}

Test(clean, every_allocation_may_fail) {
    char s[] = "a \xef\xbc\x8c &amp;lt; e\xcc\x81\nsecond <line> \xef\xac\x83";
    cr_assert_geq(fail_allocations(clean_and_free, s, "hs_prompt_clean"), 8);
}
