#!/bin/sh
# Builds and runs every test: style, release build, sanitizer build (asserts and the allocation guard on).
set -eu
cd "$(dirname "$0")/.."

# Tests run side by side: threads that spin while they wait would take each other's cores.
export OMP_WAIT_POLICY=passive

scripts/style.sh

# A build folder that "make demo" made does not know of the test packages installed since.
again=
[ ! -f build/build.ninja ] || again=--reconfigure
meson setup build $again -Dtests=enabled
ninja -C build
meson test -C build --print-errorlogs

[ -f build-asan/build.ninja ] || CC=clang CXX=clang++ meson setup build-asan --buildtype=debugoptimized \
    -Db_sanitize=address,undefined -Db_lundef=false -Dwerror=true -Dfuzz=true -Dtests=enabled -Dcuda=disabled
ninja -C build-asan
LSAN_OPTIONS="suppressions=$PWD/tests/lsan.supp:print_suppressions=0"
UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1 # by itself it prints and goes on
export LSAN_OPTIONS UBSAN_OPTIONS
meson test -C build-asan --print-errorlogs --no-suite slow -t 4
