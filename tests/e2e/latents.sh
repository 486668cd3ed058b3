# --noise, --save-latents, --decode-latents: what is saved is what was decoded, and sizes are checked.
. "$(dirname "$0")/lib.sh"
model A

good $small -p "a red circle" -o full.md5 --save-latents l.safetensors
test -s l.safetensors || fail "no latents"
good -m A --device ref --decode-latents l.safetensors -o decoded.md5
same "$(cat decoded.md5)" "$(cat full.md5)" "frames decoded from saved latents"
good -m A --device ref --decode-latents l.safetensors --size 32x32 --frames 5 --fps 9 -o decoded.md5 --stats s.json
same "$(cat decoded.md5)" "$(cat full.md5)" "frames decoded with sizes given"
grep -q '"seed":.*null' s.json || fail "decoded latents have no seed"
if [ "$HAVE_VIDEO" = 1 ]; then
    good -m A --device ref --decode-latents l.safetensors
    test -s haste-decoded.mp4 || fail "no default name: $(ls)"
fi

# decoding needs no memory for what it does not do, and plans no work for it
good $small -p a --dry-run -o x.md5
grep -q "^  transformer " out || fail "a run without a transformer: $(cat out)"
good -m A --device ref --decode-latents l.safetensors --dry-run -o x.md5
if grep -q "transformer\|text\|sampling\|steps" out; then fail "the plan of a decoding: $(cat out)"; fi
grep -q "^work     decoding [0-9.]* [MGT]FLOP" out || fail "the work of a decoding: $(cat out)"
little=$(awk '/highest stage/ { print $3 / 1000 }' out) # MB; rounded, so a little more
good -m A --device ref --decode-latents l.safetensors --max-vram "$(awk "BEGIN { print $little + 0.001 }")" -o decoded.md5
same "$(cat decoded.md5)" "$(cat full.md5)" "frames decoded with little memory"
bad 1 "allowed" $small -p a --max-vram "$(awk "BEGIN { print $little + 0.001 }")" -o x.md5

# any latents can be the noise; sizes follow the file; a seed beside it is refused
good -m A --device ref --steps 3 -p "a red circle" --noise l.safetensors -o n1.md5
good -m A --device ref --steps 3 -p "a red circle" --noise l.safetensors -o n2.md5 --size 32x32 --frames 5
same "$(cat n1.md5)" "$(cat n2.md5)" "noise from a file, twice"
test "$(cat n1.md5)" != "$(cat full.md5)" || fail "--noise is ignored"

bad 2 "--noise and --seed" $small -p a --noise l.safetensors -o x.md5
from_file="-m A --device ref --size 32x32 --frames 5 --steps 3 -p a --noise"
bad 2 "holds latents of 32x32 with 5 frames, not of 48x32" $from_file l.safetensors --size 48x32 -o x.md5

# gone on with, such a run is still of no seed
good -m A --device ref --steps 3 -p "a red circle" --noise l.safetensors -o null: --checkpoint state
if [ "$HAVE_VIDEO" = 1 ]; then
    good -m A --device ref --resume state
    test -s haste-noise.mp4 || fail "no default name after a noise file: $(ls)"
fi
bad 2 "not of 32x32 with 9: leave" -m A --device ref --decode-latents l.safetensors --frames 9 -o x.md5
bad 1 "none.safetensors" $from_file none.safetensors -o x.md5
bad 1 latents $from_file A/vae/diffusion_pytorch_model.safetensors -o x.md5 2>/dev/null || :
head -c 300 l.safetensors >cut.safetensors
bad 1 "cut.safetensors" -m A --device ref --decode-latents cut.safetensors -o x.md5
bad 1 "--save-latents" $small -p a --save-latents no/folder/l.safetensors -o x.md5
test ! -e x.md5 || fail "a file was made for refused latents"
