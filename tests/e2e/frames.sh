# The frames of the plain backend, bit by bit: md5 of the y4m stream on stdout. A change of these values is a change of
# what HASTE computes and has to be explained where it is made.
. "$(dirname "$0")/lib.sh"
model A
model B

check() { # md5 ARGS...
    want=$1
    shift
    "$HASTE_RUN" "$@" -q --device ref -o - >out 2>err || fail "haste-run $*"
    test ! -s err || fail "haste-run --quiet said something"
    same "$(md5sum <out | cut -c 1-32)" "$want" "md5 of $*"
}
check 10b7d1e6bc4cf4398ea93951e2ead375 -m A -p "a red circle moves" --size 32x32 --frames 5 --steps 3 --seed 7
check bd3be492ca103a190857917e2dc11182 -m A -p "a red circle moves" --size 48x32 --frames 9 --steps 3 --seed 7 --solver dpm++ --guidance 1
check 14b9ba9e77a5dd3f0028580427aa93f0 -m A -p "a red circle moves" --size 32x48 --frames 1 --steps 2 --seed 8 --solver euler
check 6fbb6221b4656fcc081a83f4d5091be2 -m B -p "two stars" -n "blue" --size 32x32 --frames 5 --steps 4 --seed 9 --sigmas b --shift 5

# twice the same, and not by chance: seed, prompt, negative prompt and guidance each change the frames
frames() {
    good $small -p "a red circle" "$@" -o x.md5
    cat x.md5
}
first=$(frames)
same "$(frames)" "$first" "second run"
for change in "--seed 8" "-p blue" "-n blue" "--guidance 2" "--steps 4" "--shift 4" "--solver euler" "--sigmas b"; do
    test "$(frames $change)" != "$first" || fail "$change does not change the frames"
done
bad 2 "--negative has no effect" $small -p a --guidance 1 -o x.md5
same "$(frames --threads 1)" "$first" "one thread"
