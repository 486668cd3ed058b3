#!/bin/sh
# What a reviewer should not have to say: formatting, tabs, trailing space, missing newline, odd Unicode in sources.
set -eu
cd "$(dirname "$0")/.."
fail=0
files=$(git ls-files 'engine/*.[ch]' 'engine/*.cpp' 'engine/*.cu' 'engine/*.cuh' 'calibrate/*.[ch]' 'ilp/*.[ch]' 'tests/*.[ch]')
for f in $files; do
    clang-format --dry-run -Werror "$f" >/dev/null 2>&1 || { echo "style: $f is not formatted: clang-format -i $f"; fail=1; }
    [ -z "$(tail -c 1 "$f")" ] || { echo "style: $f does not end in a newline"; fail=1; }
done
# shellcheck disable=SC2086
if grep -nP '\t|[ \t]+$' $files; then echo "style: tabs or trailing space"; fail=1; fi
if git grep -nE '\b(TODO|FIXME|XXX)\b' -- $files; then echo "style: left-overs"; fail=1; fi
if git grep -nE '^#\s*if.*CUDA' -- 'engine/*.c' 'engine/*.h' ':!engine/backend.c' ':!engine/cuda'; then echo "style: backend conditionals in model code"; fail=1; fi
exit $fail
