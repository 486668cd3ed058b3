# --max-vram: less memory gives the same frames and is really kept to; what cannot fit is refused before any work.
# --random-weights: a model without files.
. "$(dirname "$0")/lib.sh"
model B
base="-m B --device ref --size 48x48 --frames 9 --steps 2 --seed 7 -n dull -p a"

peak() { sed -n 's/.*"device":[^0-9]*\([0-9]*\)$/\1/p' "$1" | tail -1; }

good $base -o want.md5 --stats all.json
all=$(peak all.json)
test "$all" -gt 1000000 || fail "no peak in the statistics"
seen=
for share in 95 91 88 84 83 70; do
    limit=$((all * share / 100))
    run $base -o got.md5 --stats some.json --max-vram 0.$(printf %09d $limit)
    if [ "$status" != 0 ]; then
        says "allowed"
        if grep -q '^step' err; then fail "refused after the work"; fi
        break
    fi
    same "$(cat got.md5)" "$(cat want.md5)" "frames under $share % of the memory"
    test "$(peak some.json)" -le $limit || fail "$(peak some.json) bytes used, $limit allowed"
    seen="$seen $share: $(grep '^memory:' err)"
done
for what in "blocks of the transformer on the device" "VAE 2 frames" "VAE 1 frame at"; do
    echo "$seen" | grep -qF "$what" || fail "no limit led to: $what ($seen)"
done
same "$status" 1 "status under the lowest limit"
says "allowed"

# sparse attention over streamed blocks, two videos in a row
printf 'one\ntwo\n' >list
sparse="-m B --device ref --size 48x48 --frames 9 --steps 3 --seed 7 -n dull --prompts list --attention svg2 --q-clusters 3 --k-clusters 4 --top-p 0.5"
good $sparse -o a.md5
good $sparse -o b.md5 --max-vram 0.$(printf %09d $((all * 84 / 100)))
cmp a_000.md5 b_000.md5 && cmp a_001.md5 b_001.md5 || fail "sparse frames differ where weights are streamed"

# the plan shows where memory goes
good $base --dry-run --max-vram 0.$(printf %09d $((all * 84 / 100)))
for what in "text encoder" "slots for streaming" "activations, in turn" "VAE decoder" "host, streamed weights" "allowed (--max-vram)"; do
    grep -qF "$what" out || fail "the plan lacks: $what"
done
bad 2 "--max-vram" $base --max-vram none -o x.md5
bad 2 "--max-vram" $base --max-vram 0 -o x.md5

# the last resort: the VAE in tiles. Frames differ from whole ones, but as little as borders make them
if command -v python3 >/dev/null; then
    model A
    wide="-m A --device ref --size 448x64 --frames 5 --steps 1 --guidance 1 --seed 7 -p a"
    good $wide -o whole.y4m --stats whole.json
    grep -q '"vae_tiled":.*false' whole.json || fail "the statistics do not say that the VAE worked as a whole"
    good $wide -o tiles.y4m --max-vram 0.041 --stats some.json
    says "VAE in tiles"
    grep -q '"vae_tiled":.*true' some.json || fail "the statistics do not say that the VAE worked in tiles"
    good $wide -o tiles.md5 --max-vram 0.041 -q
    says "fall-back: memory is short, so the VAE decodes in tiles"
    bad 1 "--error-on-fallback" $wide -o refused.y4m --max-vram 0.041 --error-on-fallback
    test ! -e refused.y4m || fail "a file was made for a refused fall-back"
    if [ "$HAVE_VIDEO" = 1 ] && command -v ffprobe >/dev/null; then
        good $wide -o tiles.mkv --max-vram 0.041
        ffprobe -v error -show_entries format_tags tiles.mkv | grep -qi '^TAG:vae=in tiles' || fail "the video does not say tiles"
    fi
    test "$(peak some.json)" -le 41000000 || fail "$(peak some.json) bytes used by tiles, 41000000 allowed"
    python3 - whole.y4m tiles.y4m <<'P' || fail "frames of tiles"
import sys
a, b = (open(p, "rb").read() for p in sys.argv[1:])
assert len(a) == len(b)
start = a.index(b"\n") + 1
diff = [abs(x - y) for x, y in zip(a[start:], b[start:])]
print(sum(diff) / len(diff), max(diff))
assert 0 < sum(diff) / len(diff) < 3 and max(diff) < 80
P
fi

# random weights need the configs alone
find B -name '*.safetensors*' -delete
random="--random-weights B --device ref --size 32x32 --frames 5 --steps 2 --seed 7 -p hello"
good $random -o a.md5 --stats r.json
good $random -o b.md5
cmp a.md5 b.md5 || fail "random weights are not the same twice"
good --random-weights wan2.1-1.3b --device ref --dry-run -p hello --size 64x64 --frames 5 --max-vram 7
bad 2 "wan2.1-14b" --random-weights wan2.1-2b -p hello
bad 2 "give one of the two" -m B --random-weights B -p hello
