# Prompts nobody expects: empty, far too long, not UTF-8, hostile.
. "$(dirname "$0")/lib.sh"
model A

good $small -p "" -o x.md5
says "the prompt is empty"
good $small -p "  	 " -o y.md5
says "the prompt is empty"
same "$(cat x.md5)" "$(cat y.md5)" "white space is an empty prompt"

# 5,000 words: cut, said so, and what was cut has no influence
long=$(i=0; while [ $i -lt 1000 ]; do printf 'a red circle moves around '; i=$((i + 1)); done)
good $small -p "$long" -o x.md5 --stats x.json
grep -q 'the prompt has [0-9]* tokens; the model reads the first 512' err || fail "nobody said that the prompt is cut"
grep -q '"truncated":.*true' x.json || fail "the statistics do not say truncated"
good $small -p "$long and a star" -o y.md5
same "$(cat x.md5)" "$(cat y.md5)" "words behind the 512th token"
good $small -p "short" -o y.md5 --stats x.json
grep -q '"truncated":.*false' x.json || fail "a short prompt is called truncated"

bad 2 "not valid UTF-8 (byte 3)" $small -p "$(printf 'ab\377c')" -o z.md5
bad 2 "the negative prompt is not valid UTF-8" $small -p a -n "$(printf '\300\200')" -o z.md5
test ! -e z.md5 || fail "a file was made for a refused prompt"
# control characters do not reach the terminal through a message
good $small -p "$(printf 'a\033[31mb')" -o x.md5
if grep -q "$(printf '\033')" err; then fail "an escape sequence of the prompt reached stderr"; fi
# emoji, CJK, mixed direction: just text
good $small -p "$(printf '\360\237\230\200 \347\272\242\350\211\262 \327\251\327\234')" -o x.md5
