#!/bin/sh
# Compiles each header alone: what it uses it must include, in C and in C++.
# Usage: headers.sh LANGUAGE STANDARD FOLDER COMPILER...
set -u
lang=$1 std=$2 dir=$3
shift 3
failed=0 n=0
for h in "$dir"/*.h; do
    n=$((n + 1))
    "$@" -x "$lang" -std="$std" -D_GNU_SOURCE -Wall -Wextra -Wpedantic -Werror -I"$dir" -include "$h" -fsyntax-only /dev/null ||
        { echo "not self-contained as $std: $h"; failed=1; }
done
echo "$n headers as $std"
[ "$n" -gt 0 ] && exit $failed
