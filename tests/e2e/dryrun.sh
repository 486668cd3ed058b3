# --dry-run: says what would happen, makes nothing, does nothing slow.
. "$(dirname "$0")/lib.sh"
model A
good -m A --device ref -p "a red circle" --dry-run -o x.md5 --stats s.json --save-latents l.safetensors
for part in "2 layers, 2 heads of 128" "832x480, 81 frames" "tokens   32760" "50 steps, unipc" "text encoder" transformer \
    "VAE decoder" "highest stage" "50 x 4.55 TFLOP" "time     about" "output   x.md5"; do
    grep -qF -e "$part" out || fail "--dry-run lacks \"$part\": $(cat out)"
done
same "$(ls)" "$(printf 'A\nerr\nout\ntmpdir')" "files after a dry run"
good $small -p "a red circle" --dry-run -o -
grep -qF "32x32, 5 frames" out || fail "sizes: $(cat out)"
bad 2 ".xyz" $small -p "a red circle" --dry-run -o x.xyz
bad 1 "no/such" $small -p "a red circle" --dry-run -o no/such/x.md5
printf 'one\ntwo\n' >list
good $small --prompts list --dry-run -o x.md5
same "$(grep -c '^output' out)" 2 "outputs of two prompts"
