# Measuring comes to bad ends as a user meets them: kill -9, a full disk, two at once, a table of something else. Nothing
# that was measured is lost and the end is the table of an undisturbed run.
. "$(dirname "$0")/lib.sh"
need python3
model A
printf 'a red circle\na blue square\n' >cal.txt
tiny="-m A --device ref --size 32x32 --frames 5 --steps 4 --prompts cal.txt --intervals 2 --candidates 0.2,0.5,0.9
      --method svg2 --q-clusters 4 --k-clusters 4 --seed 3"

measure() { # TABLE ARGS...: stderr in err, exit status in $status
    table=$1
    shift
    "$HASTE_CALIBRATE" measure $tiny --table "$table" "$@" >out 2>err
    status=$?
}
lines() { # whole lines of a table that count
    grep -c '^{"probe".*}$' "$1" 2>/dev/null
}
same_tables() {
    python3 - "$1" "$2" <<'END' || fail "$1 and $2 hold different measurements"
import json, sys
def read(name):
    lines = [json.loads(l) for l in open(name)]
    for l in lines:
        for k in ("probe", "joint"):
            if k in l: del l[k]["seconds"]
    return lines[0], sorted(json.dumps(l, sort_keys=True) for l in lines[1:] if "writer" not in l)
a, b = read(sys.argv[1]), read(sys.argv[2])
assert a == b, (len(a[1]), len(b[1]))
assert len(set(a[1])) == len(a[1]), "measured twice"
END
}

measure want.jsonl
same "$status" 0 "status of measuring"
same "$(lines want.jsonl)" 24 "probes"

# weights that come and go change nothing
measure streamed.jsonl --max-vram 0.0171
same "$status" 0 "status of measuring with less memory"
says "0 of 2 blocks of the transformer on the device"
same_tables want.jsonl streamed.jsonl

# kill -9, again and again: the number of probes only grows, and the end is the same
kills=0
before=0
wait_ms=20
while [ "$kills" -lt "$KILLS" ]; do
    "$HASTE_CALIBRATE" measure $tiny --table k.jsonl >out 2>err &
    pid=$!
    sleep "0.$(printf %03d $wait_ms)"
    kill -9 "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
    status=$?
    pid=
    test "$status" = 137 && kills=$((kills + 1))
    test "$status" = 137 || test "$status" = 0 || fail "status $status"
    now=$(lines k.jsonl)
    test "${now:-0}" -ge "$before" || fail "$before probes became $now"
    before=${now:-0}
    wait_ms=$(((wait_ms * 7 + 13) % 600))
    if [ "$status" = 0 ]; then # complete
        same_tables k.jsonl want.jsonl
        rm -r k.jsonl k.jsonl.latents
        before=0
    fi
done
measure k.jsonl
same "$status" 0 "status after $KILLS kills"
same_tables k.jsonl want.jsonl

# the recorded latents are a cache
rm -r k.jsonl.latents
sed -i '$d' k.jsonl
measure k.jsonl
same "$status" 0 "status without recorded latents"
same_tables k.jsonl want.jsonl

# a full disk: files of at most 2, 4, ... blocks of 512 or 1024 bytes (with less the OpenMP of clang does not start)
for blocks in 2 4 6 9; do
    (ulimit -f $blocks && exec "$HASTE_CALIBRATE" measure $tiny --quiet --table d.jsonl) >out 2>err
    status=$?
    if [ "$status" != 0 ]; then
        same "$status" 1 "status with a full disk"
        says "File too large"
    fi
done
test "$(lines d.jsonl)" -gt 0 || fail "nothing was measured in the room there was"
measure d.jsonl
same "$status" 0 "status with room again"
same_tables d.jsonl want.jsonl
measure /dev/full
same "$status" 1 "status with a table that is no file"
says "/dev/full is not a regular file"

# two at once: the second one is told
"$HASTE_CALIBRATE" measure $tiny --table two.jsonl >first.out 2>first.err &
pid=$!
wait_for "recording" first.err
measure two.jsonl
if kill -0 "$pid" 2>/dev/null; then
    same "$status" 1 "status of the second"
    says "two.jsonl is being written by another process"
fi
wait "$pid"
same "$?" 0 "status of the first"
pid=
same_tables two.jsonl want.jsonl

# a table of something else says what differs first
foreign() { # TEXT ARGS...
    text=$1
    shift
    cp want.jsonl copy.jsonl
    measure copy.jsonl "$@"
    test "$status" != 0 || fail "a foreign table was continued: $*"
    says "$text"
    cmp -s want.jsonl copy.jsonl || fail "a refused table was changed"
}
foreign "its made_for.steps is 4, expected 5" --steps 5
foreign "its method.q_clusters is 4, expected 5" --q-clusters 5
foreign "its calibration.seed is 3, expected 4" --seed 4
foreign "its calibration.prompts_sha256 is" --max-prompts 1
foreign "its calibration.prompts_sha256 is" --negative blue
foreign "its candidates is [0.2,0.5,0.9], expected [0.3,0.5,0.9]" --candidates 0.3,0.5,0.9
"$GENMODEL" B B || fail "genmodel B"
cp want.jsonl copy.jsonl
"$HASTE_CALIBRATE" measure $tiny -m B --table copy.jsonl >out 2>err && fail "a table of another model was continued"
says "its model.sha256 is"
