# What the end-to-end scripts share. They are read by a plain POSIX shell, run in a folder of their own, stop at the first
# check that fails and say which. Exit status 77 = skipped.
set -u
LC_ALL=C
OMP_WAIT_POLICY=passive # tests share the cores with other tests; spinning threads would make them ten times slower
: "${KILLS:=20}"
export LC_ALL OMP_WAIT_POLICY
tmp=$(mktemp -d "${TMPDIR:-/tmp}/haste-e2e-XXXXXX") || exit 1
pid=
trap 'test -z "$pid" || kill -9 "$pid" 2>/dev/null; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
cd "$tmp" || exit 1
TMPDIR=$tmp/tmpdir
export TMPDIR
mkdir "$TMPDIR"

fail() {
    echo "FAILED: $*"
    test ! -s err || sed 's/^/  stderr: /' err
    exit 1
}

need() {
    command -v "$1" >/dev/null || { echo "skipped: no $1"; exit 77; }
}

need_video() {
    test "$HAVE_VIDEO" = 1 || { echo "skipped: built without FFmpeg"; exit 77; }
}

# model NAME [FOLDER]: a tiny random model of tests/golden
model() {
    "$GENMODEL" "$1" "${2:-$1}" || fail "genmodel $1"
}

# Most tests: two latent frames of 2x2 tokens, three steps, less than a second on the plain backend.
small="-m A --device ref --size 32x32 --frames 5 --steps 3 --seed 7 -n dull"

# run ARGS...: stdout in out, stderr in err, exit status in $status
run() {
    "$HASTE_RUN" "$@" >out 2>err
    status=$?
    test "$status" -lt 128 || test "$status" = 130 || fail "haste-run $* died with status $status"
}

# good ARGS...: must succeed
good() {
    run "$@"
    test "$status" = 0 || fail "haste-run $* gave $status"
}

# says TEXT: the last run's stderr holds it
says() {
    grep -qF -e "$1" err || fail "stderr lacks: $1"
}

# bad STATUS TEXT ARGS...: must fail like this
bad() {
    want=$1 text=$2
    shift 2
    run "$@"
    test "$status" = "$want" || fail "haste-run $* gave $status, not $want"
    says "$text"
}

same() {
    test "$1" = "$2" || fail "$3: $1, expected $2"
}

# frames_of FILE: how many frames ffprobe can decode
frames_of() {
    ffprobe -v error -count_frames -select_streams v:0 -show_entries stream=nb_read_frames -of csv=p=0 "$1" | head -1
}

# rgb_md5 INPUT: md5 of the frames as the md5 sink counts it
rgb_md5() {
    ffmpeg -v error -i "$1" -f rawvideo -pix_fmt rgb24 - | md5sum | cut -c 1-32
}

# wait_for TEXT FILE: until the background run $pid has written it, at most 60 s
wait_for() {
    n=0
    while ! grep -qF -e "$1" "$2" 2>/dev/null; do
        kill -0 "$pid" 2>/dev/null || fail "haste-run ended before it said: $1"
        n=$((n + 1))
        test $n -lt 1200 || fail "haste-run did not say in 60 s: $1"
        sleep 0.05
    done
}
