# The place for the video fails: said early where it can be known, and otherwise nothing computed is lost.
. "$(dirname "$0")/lib.sh"
model A
good $small -p "a red circle" -o want.md5

# known before the work: no step is done
ln -s /dev/full full.y4m
bad 1 "No space left" $small -p "a red circle" -o full.y4m
if grep -q '^step' err; then fail "a full place was found after the work"; fi
bad 1 "/proc/" $small -p "a red circle" -o /proc/haste.y4m
rm full.y4m

# a finished video replaces an older one, a link stays one, and what is left of killed runs goes
good $small -p "a red circle" -o old.y4m
cp old.y4m before.y4m
ln -s old.y4m link.y4m
: >old.y4m.tmp.999999999.0
good $small --seed 8 -p "a red circle" -o link.y4m
test -h link.y4m || fail "the link was replaced"
if cmp -s before.y4m old.y4m; then fail "the finished video did not replace the older one"; fi
same "$(echo old.y4m*) $(echo link.y4m*)" "old.y4m link.y4m" "files of videos"

# full while the frames are written: latents beside the video, and the printed command makes the video of them
limited() { # BLOCKS ARGS...: files of at most BLOCKS x 512 bytes (x 1024 in some shells)
    blocks=$1
    shift
    (ulimit -f "$blocks" && exec "$HASTE_RUN" "$@") >out 2>err
    status=$?
}
use_latents() { # FILE: named in the message and good
    says "--decode-latents '$1'"
    "$HASTE_RUN" -m A --device ref --decode-latents "$1" -o again.md5 2>again.err || fail "latents: $(cat again.err)"
    same "$(cat again.md5)" "$(cat want.md5)" "frames from the kept latents $1"
}
limited 8 $small -p "a red circle" -o x.y4m
same "$status" 1 "status with a full disk"
says "File too large"
says "x.y4m is partial"
use_latents x.y4m.latents.safetensors
limited 8 $small -p "a red circle" -o x.y4m --save-latents mine.safetensors
use_latents mine.safetensors
if [ "$HAVE_VIDEO" = 1 ]; then
    limited 8 $small -p "a red circle" -o x_%d.png --size 64x64
    same "$status" 1 "status with a full disk, png"
    says "x_0.png"
    (trap '' XFSZ && ulimit -f 1 && head -c 2000 /dev/zero >block) 2>/dev/null
    block=$(wc -c <block)
    for out in x.mp4 x.mkv x.webm; do
        blocks=5
        test $out != x.mp4 || blocks=$((6144 / block)) # the room for its index is taken at once
        limited $blocks $small -p "a red circle" -o $out
        same "$status" 1 "status with a full disk, $out"
        says "$out: cannot"
        use_latents $out.latents.safetensors
    done
fi

# what was written of an mp4 before the disk was full plays
if [ "$HAVE_VIDEO" = 1 ] && command -v ffprobe >/dev/null; then
    limited $((40960 / block)) $small --size 64x64 --frames 33 --steps 1 -p "a red circle" -o part.mp4
    same "$status" 1 "status with a full disk, mp4"
    played=$(frames_of part.mp4 2>probe.err)
    test "${played:-0}" -ge 5 || fail "${played:-no} frames play: $(cat probe.err)"
fi

# stdout closed by the reader: there is no folder beside it, so the temporary one is taken
{ "$HASTE_RUN" $small -p "a red circle" -o - 2>err; echo $? >code; } | head -c 1 >part
same "$(cat code)" 1 "status with a closed pipe"
says "Broken pipe"
use_latents "$TMPDIR/haste-7.latents.safetensors"

# a video that is finished needs no rescue, even if the statistics fail
ln -s /dev/full s.json
bad 1 "s.json" $small -p "a red circle" -o fine.md5 --stats s.json
same "$(cat fine.md5)" "$(cat want.md5)" "video beside failed statistics"
test ! -e fine.md5.latents.safetensors || fail "latents of a finished video were kept"

# no room anywhere: every attempt is reported
limited 4 $small -p "a red circle" --size 48x48 -o x.y4m --save-latents other.safetensors
same "$status" 1 "status with no room at all"
says other.safetensors
says "$TMPDIR"
test ! -e other.safetensors || fail "a partial latents file was left"
