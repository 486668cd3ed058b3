#!/bin/sh
# Installs the Debian packages that are missing, after saying which. Usage: scripts/setup.sh build|test
# build: what haste-run needs.  test: build, and what the tests need.
set -eu

build="gcc g++ meson ninja-build pkg-config libdnnl-dev libcjson-dev libutf8proc-dev libsentencepiece-dev
       libavcodec-dev libavformat-dev libavutil-dev libswscale-dev libglpk-dev"
check="libcriterion-dev ffmpeg clang libclang-rt-14-dev libomp-dev clang-format"

case "${1:-build}" in
build) want=$build ;;
test) want="$build $check" ;;
*)
    echo "usage: $0 build|test" >&2
    exit 2
    ;;
esac

command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || {
    echo "This is not a Debian system. Install the equivalents of:" $want >&2
    echo "then run: meson setup build && ninja -C build" >&2
    exit 1
}

missing=
for p in $want; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

sudo=
if [ "$(id -u)" != 0 ]; then
    sudo=sudo
    command -v sudo >/dev/null || {
        echo "These packages are missing and neither root nor sudo is at hand:$missing" >&2
        exit 1
    }
fi
echo "Installing with ${sudo:+sudo }apt-get:$missing"
$sudo apt-get update -q
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -q -y --no-install-recommends $missing
