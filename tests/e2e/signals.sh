# Ctrl-C: the first one stops at a safe point and leaves a whole file, the second one stops at once. Status 130.
. "$(dirname "$0")/lib.sh"
model A

start() { # ARGS...: in the background, stderr in err
    : >err
    "$HASTE_RUN" "$@" >out 2>err &
    pid=$!
}
finish() {
    wait "$pid"
    same "$?" "${1:-130}" "status after a signal"
    pid=
}

# while denoising: nothing to show, so no file, and an older one of that name stays; unfinished latents only if asked for
echo old >old.y4m
for signal in INT TERM; do
    for out in x.y4m old.y4m; do
        start $small -p a --steps 1000 -o $out
        wait_for "step 1/1000" err
        kill -$signal "$pid"
        finish
        says interrupted
    done
done
same "$(cat old.y4m)" old "an older video of that name"
same "$(ls)" "$(printf 'A\nerr\nold.y4m\nout\ntmpdir')" "files after runs without frames"
start $small -p a --steps 1000 -o x.y4m --save-latents l.safetensors
wait_for "step 1/1000" err
kill -INT "$pid"
finish
says "unfinished latents are in l.safetensors"
good -m A --device ref --decode-latents l.safetensors -o null:

# while decoding and encoding: what was written can be played, and the finished latents are there
good -m A --device ref -p a --size 16x16 --frames 801 --steps 1 --guidance 1 --seed 3 -o null: --save-latents long.safetensors
formats=x.y4m
if [ "$HAVE_VIDEO" = 1 ] && command -v ffprobe >/dev/null; then formats="x.y4m x.mp4 x.mkv x.webm"; fi
for out in $formats; do
    start -m A --device ref --decode-latents long.safetensors -o $out
    wait_for "decoding frame" err
    sleep 0.3
    kill -INT "$pid"
    finish
    says "$out is partial"
    said=$(sed -n 's/.*is partial: \([0-9]*\) of 801 frames/\1/p' err)
    test "$said" -ge 1 && test "$said" -lt 801 || fail "$said frames of 801"
    if [ "$formats" != x.y4m ]; then same "$(frames_of $out)" "$said" "frames that play in $out"; fi
done
start -m A --device ref -p a --size 16x16 --frames 801 --steps 1 --guidance 1 --seed 3 -o x.y4m --save-latents l2.safetensors
wait_for "decoding frame" err
kill -INT "$pid"
finish
says "--decode-latents 'l2.safetensors'"
cmp long.safetensors l2.safetensors || fail "the latents of the interrupted run are not the finished ones"
# nobody asked for latents: finished ones are kept all the same; where they cannot be, the checkpoint is named
long="-m A --device ref -p a --size 16x16 --frames 801 --steps 1 --guidance 1 --seed 3"
start $long -o kept.y4m
wait_for "decoding frame" err
kill -INT "$pid"
finish
says "--decode-latents 'kept.y4m.latents.safetensors'"
for file in long.safetensors kept.y4m.latents.safetensors; do tail -c $((16 * 201 * 2 * 2 * 4)) $file | md5sum; done >sums
same "$(uniq sums | wc -l)" 1 "kinds of latents among the finished and the kept ones"
TMPDIR=$tmp/none start $long -o null: --checkpoint state
wait_for "decoding frame" err
kill -INT "$pid"
finish
says "--resume 'state'"
start -m A --device ref --resume state --save-latents resumed.safetensors -o x.y4m # all steps are in it
wait_for "decoding frame" err
kill -INT "$pid"
finish
says "--decode-latents 'resumed.safetensors'"
good -m A --device ref --resume state -o null:

# with a list the rest is not begun
printf 'one\ntwo\n' >list
start $small --prompts list --steps 1000 -o x.y4m
wait_for "step 1/1000" err
kill -INT "$pid"
finish
if grep -qF "2 of 2" err; then fail "the second video was begun"; fi

# twice: at once, whatever is going on
start -m A --device ref -p a --size 256x256 --frames 81 --steps 1000 -o x.y4m
wait_for "time about" err # hours, so it is said beforehand
kill -INT "$pid"
wait_for "once more stops at once" err
kill -INT "$pid"
finish
if grep -qF "interrupted" err; then fail "the second signal waited for a safe point"; fi
