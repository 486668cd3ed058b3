# A long run is never lost: kill -9 at 20 random moments (fewer under sanitizers), going on from the checkpoint every time, gives the frames of an
# uninterrupted run to the bit; Ctrl-C leaves something to go on with; a full disk and wrong files do no harm.
. "$(dirname "$0")/lib.sh"
model A
device=ref
[ "$HAVE_CPU" = 1 ] && device=cpu
base="-m A --device $device --threads 1 --size 128x96 --frames 9 --steps 40 --seed 11 -n dull"

# random MOST: a number of milliseconds below it, as seconds
random() {
    n=$(od -An -N2 -tu2 /dev/urandom)
    n=$((n % $1))
    printf '%d.%03d' $((n / 1000)) $((n % 1000))
}

# killed NAME ARGS...: so many kills, then to the end
killed() {
    name=$1
    shift
    good $base "$@" -p "a red circle" -o want.y4m --stats want.json
    [ "$name" = dense ] || grep -m1 reuse_rate want.json | grep -q '0\.[0-9]*[1-9]' || fail "$name: no mask was reused"
    rm -f state
    kills=0
    moments=
    while [ $kills -lt "$KILLS" ]; do
        if [ -e state ]; then
            "$HASTE_RUN" -m A --device $device --threads 1 --resume state --checkpoint-every 1 -o got.y4m >out 2>err &
        else
            "$HASTE_RUN" $base "$@" -p "a red circle" --checkpoint state --checkpoint-every 1 -o got.y4m >out 2>err &
        fi
        pid=$!
        moment=$(random 500)
        moments="$moments $moment"
        sleep "$moment"
        kill -9 "$pid" 2>/dev/null || rm -f state # it had finished: from the start again
        wait "$pid" 2>/dev/null
        pid=
        kills=$((kills + 1))
    done
    [ -e state ] || good $base "$@" -p "a red circle" --checkpoint state -o got.y4m
    good -m A --device $device --threads 1 --resume state -o got.y4m
    cmp want.y4m got.y4m || fail "$name: frames differ after kills at$moments"
    [ "$(echo state.tmp.*)" = "state.tmp.*" ] || fail "$name: temporary files of killed runs are left"
}
killed dense
killed xattention --attention xattention --block 64 --stride 4 --top-p 0.7 --reuse relative --reuse-delta 0.35 --dense-steps 2
killed svg2 --attention svg2 --q-clusters 6 --k-clusters 9 --top-p 0.6 --reuse relative --reuse-delta 0.35 --dense-layers 1

# Ctrl-C: the state of the last whole step is there, and how to go on is said. Many steps: all of them must not be over before the
# signal is there, however busy the machine is
small="-m A --device ref --size 32x32 --frames 5 --seed 7 -n dull"
good $small --steps 240 -p a -o want.y4m
"$HASTE_RUN" $small --steps 240 -p a --checkpoint state --checkpoint-every 240 -o got.y4m >out 2>err &
pid=$!
wait_for "step 24/240" err
kill -INT "$pid"
wait "$pid"
same "$?" 130 "status after Ctrl-C"
pid=
says "--resume 'state'"
good -m A --device ref --resume state -o got.y4m --stats got.json
cmp want.y4m got.y4m || fail "frames differ after Ctrl-C"
grep -q '"resumed_after_step":.*[1-9]' got.json || fail "the statistics do not say where the run went on"

# the printed command goes on, whatever is in the names, with the device and precision of that run
[ "$HAVE_CPU" = 1 ] && small="-m A --device cpu --precision fp32 --threads 1 --max-vram 1.5 --size 32x32 --frames 5 --seed 7"
mkdir "it's"
"$HASTE_RUN" $small --steps 240 -p a --checkpoint "it's/c.st" -o "it's/x.y4m" >out 2>err &
pid=$!
wait_for "step 24/240" err
kill -INT "$pid"
wait "$pid"
pid=
sed -n "s|^  haste-run |'$HASTE_RUN' |p" err >go-on
sh ./go-on 2>err || fail "the printed command is refused: $(cat go-on)"
says "going on after step"
test -s "it's/x.y4m" || fail "the printed command made no video"
if [ "$HAVE_CPU" = 1 ]; then
    grep -q -- "--device 'cpu' --precision 'fp32' --threads 1 --max-vram 1.5" go-on || fail "flags are missing: $(cat go-on)"
    bad 2 "Add --precision fp32" -m A --device cpu --precision bf16 --resume "it's/c.st" -o x.y4m
fi
small="-m A --device ref --size 32x32 --frames 5 --seed 7 -n dull"

# the time that is left follows from the steps of this run, not from those that the checkpoint brought along
slow="-m A --device ref --size 64x64 --frames 17 --seed 7 --guidance 1 -p a"
"$HASTE_RUN" $slow --steps 40 --checkpoint slow -o null: >out 2>err &
pid=$!
wait_for "step 20/40" err
kill -INT "$pid"
wait "$pid"
pid=
good -m A --device ref --resume slow -o null:
first=$(sed -n 's/^going on after step //p' err)
sed -n 's|^step \([0-9]*\)/40  \([0-9.]*\) s, about \([0-9.]*\) s left|\1 \2 \3|p' err |
    awk -v first="$first" '$1 > first + 1 { n++; if ($3 < $2 / ($1 - first) * (40 - $1) / 2) bad = 1; exit }
        END { exit !n || bad }' || fail "the time left of a resumed run"

# without --checkpoint it is said how it would have been
"$HASTE_RUN" $small --steps 240 -p a -o x.y4m >out 2>err &
pid=$!
wait_for "step 24/240" err
kill -INT "$pid"
wait "$pid"
pid=
says "with --checkpoint FILE"

# a disk that is full: the run goes on, and the checkpoint before stays whole
small="-m A --device ref --size 32x32 --frames 5 --steps 6 --seed 7 -n dull"
good $small -p a -o want.md5
good $small -p a -o null: --checkpoint state --checkpoint-every 4
cp state before
(ulimit -f 8 && exec "$HASTE_RUN" $small -p a -o got.md5 --checkpoint state --checkpoint-every 2) >out 2>err ||
    fail "a full disk stopped the run"
says "no checkpoint after step 2"
cmp before state || fail "the checkpoint before is damaged"
cmp want.md5 got.md5 || fail "frames differ where no checkpoint could be written"

# another run than the one that was saved is refused by name, before anything is computed
bad 2 "belongs to a run with seed 7, this one has 8. Leave the option out" -m A --device ref --resume state --seed 8 -o x.y4m
bad 2 "a run with prompt a, this one has b" -m A --device ref --resume state -p b -o x.y4m
bad 2 "a run with width 32, this one has 48" -m A --device ref --resume state --width 48 -o x.y4m
bad 2 "a run with steps 6, this one has 7" -m A --device ref --resume state --steps 7 -o x.y4m
bad 2 "a run with attention.method 0, this one has 2" -m A --device ref --resume state --attention svg2 --q-clusters 2 --k-clusters 2 -o x.y4m
model B
bad 2 "Name that model, of sha256 " -m B --device ref --resume state -o x.y4m
good -m A --device ref --resume state --seed 7 --steps 6 -p a -o got.md5 # saying the same again is fine
cmp want.md5 got.md5 || fail "frames differ after saying the settings again"

# no checkpoint, or a damaged one
bad 1 "needs a file that --checkpoint wrote" -m A --device ref --resume A/vae/diffusion_pytorch_model.safetensors -o x.y4m
head -c 5000 state >short
bad 1 "short" -m A --device ref --resume short -o x.y4m
bad 1 "nothing" -m A --device ref --resume nothing -o x.y4m

# what contradicts itself
bad 2 "--resume goes on with one video" -m A --resume state --prompts list -o x.y4m
bad 2 "--checkpoint-every says how often" $small -p a --checkpoint-every 2 -o x.y4m

# a damaged file is refused or goes on with other numbers, but does nothing worse
command -v python3 >/dev/null || exit 0
svg2="--attention svg2 --q-clusters 3 --k-clusters 4 --top-p 0.5"
good $small $svg2 -p a -o null: --checkpoint sparse --checkpoint-every 1
"$HASTE_RUN" $small $svg2 --size 64x64 --steps 14 -p a --checkpoint sparse --checkpoint-every 1 -o null: >out 2>err &
pid=$! # the kill comes a moment after the step; behind the last one there are no masks to damage
wait_for "step 3/14" err
kill -9 "$pid"
wait "$pid" 2>/dev/null
pid=
sed 's/"attention.reuse.kind":"1"/"attention.reuse.kind":"9"/' sparse >damaged
cmp -s sparse damaged && fail "no kind of reuse to damage"
bad 1 "reuse is none that exists" -m A --device ref --resume damaged -o null:
refused=0
for word in 0 1 2 3 4 5 6 7 8 9 10 11; do
    python3 - sparse damaged $word <<'P' || fail "python"
import json, struct, sys
data = bytearray(open(sys.argv[1], "rb").read())
n = struct.unpack("<Q", data[:8])[0]
head = json.loads(data[8:8 + n])
kept = sorted(k for k in head if k.startswith("attention.") and k[-3:] != "top")
a, b = head[kept[int(sys.argv[3]) * 7919 % len(kept)]]["data_offsets"]
data[8 + n + b - 4:8 + n + b] = b"\xff\xff\xff\x7f"
open(sys.argv[2], "wb").write(data)
P
    run -m A --device ref --resume damaged -o null:
    if [ "$status" = 1 ] && grep -q "impossible values" err; then refused=$((refused + 1)); fi
done
test $refused -ge 3 || fail "only $refused of 12 damaged files were refused"

# NaN stops at once, by name of step, block and operation: here in the second product of block 1
cp -r A nan
python3 - nan/transformer/*.safetensors <<'P' || fail "python"
import json, struct, sys
for path in sys.argv[1:]:
    with open(path, "r+b") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        t = json.loads(f.read(n)).get("blocks.1.ffn.net.2.weight")
        if t:
            f.seek(8 + n + t["data_offsets"][0])
            f.write(struct.pack("<f", float("nan")))
P
bad 1 "step 0, prompt:" -m nan --device ref --size 32x32 --frames 5 --steps 6 --seed 7 -p a -o x.y4m
says "dit.block.1, feed forward, second product"

# frames of one colour are reported: here the last convolution of the VAE has no weights
python3 - A/vae/diffusion_pytorch_model*.safetensors <<'P' || fail "python"
import json, struct, sys
for path in sys.argv[1:]:
    with open(path, "r+b") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        t = json.loads(f.read(n)).get("decoder.conv_out.weight")
        if t:
            a, b = t["data_offsets"]
            f.seek(8 + n + a)
            f.write(bytes(b - a))
P
good $small -p a -o x.y4m --stats flat.json
says "5 of 5 frames are one colour"
grep -q '"flat_frames":.*5' flat.json || fail "the statistics do not count frames of one colour"
