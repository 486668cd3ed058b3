# Bad requests: refused before any work, with the right exit status, a message that names the cause, and no file left.
. "$(dirname "$0")/lib.sh"
model A

bad 2 "width 33" $small -p a -o x.md5 --width 33
bad 2 "height 40" $small -p a -o x.md5 --height 40
bad 2 "8 frames" $small -p a -o x.md5 --frames 8
bad 2 "4k+1" $small -p a -o x.md5 --frames 2
bad 2 "width" $small -p a -o x.md5 --width 1000000
bad 2 "frames" $small -p a -o x.md5 --frames 999997
bad 2 "--steps \"0\"" $small -p a -o x.md5 --steps 0
bad 2 "--steps \"1e3\"" $small -p a -o x.md5 --steps 1e3
bad 2 "did you mean --steps" $small -p a -o x.md5 --step5 3
bad 2 "-p TEXT" -m A
bad 2 "-m DIR" -p a
bad 2 "" 
bad 1 "p.json" $small -p a -o x.md5 --profile p.json
bad 2 "dense, xattention, svg2 or pooled" $small -p a -o x.md5 --attention svg3
bad 2 "device 'tpu'" -m A -p a -o x.md5 --device tpu
bad 2 "precision 'int8'" $small -p a -o x.md5 --precision int8
bad 2 "unknown format .xyz" $small -p a -o x.xyz
bad 2 "one frame" $small -p a -o x.png
if [ "$HAVE_VIDEO" = 1 ]; then
    bad 2 "%d" $small -p a -o x_%s.png
else
    bad 1 "libavcodec-dev" $small -p a -o x.mp4
fi
bad 1 "create it first: mkdir -p no/folder" $small -p a -o no/folder/x.md5

# places for files that are none are known before the work
for option in --checkpoint --save-latents --stats; do
    bad 2 "$option: the path is empty" $small -p a -o x.md5 $option ""
    bad 2 "$option tmpdir: is a folder" $small -p a -o x.md5 $option tmpdir
    bad 2 "$option new/: is a folder" $small -p a -o x.md5 $option new/
    bad 1 "create it first: mkdir -p no" $small -p a -o x.md5 $option no/s
done
bad 2 "--checkpoint /dev/null: exists and is no regular file" $small -p a -o x.md5 --checkpoint /dev/null
good $small -p a -o null: --stats /dev/stdout
grep -q '"seconds"' out || fail "no statistics on stdout"
if [ "$HAVE_VIDEO" = 1 ]; then
    bad 2 "out/: out is a file" $small -p a -o out/ --dry-run
fi
bad 2 "no extension" $small -p a -o tmpdir

# one file for two things, however it is spelled; a checkpoint may go on in its own file
bad 2 "--output and --stats are both ./same.md5" $small -p a -o same.md5 --stats ./same.md5
bad 2 "--save-latents and --checkpoint are both" $small -p a -o x.md5 --checkpoint s.st --save-latents "$tmp/s.st"
good $small -p a -o null: --save-latents l.st --checkpoint s.st
cp l.st s.st tmpdir
bad 2 "--save-latents and --noise are both" -m A --device ref --size 32x32 --frames 5 --steps 3 -p a -o x.md5 --noise l.st --save-latents tmpdir/../l.st
ln s.st hard.st
bad 2 "--save-latents and --resume are both" -m A --device ref --resume hard.st --save-latents s.st -o x.md5 --checkpoint new.st
bad 2 "--stats and --decode-latents are both" -m A --device ref --decode-latents l.st --stats l.st -o x.md5
cmp l.st tmpdir/l.st && cmp s.st tmpdir/s.st || fail "a refused run changed its input"
good -m A --device ref --resume s.st --checkpoint ./s.st -o null:
rm -f l.st s.st hard.st tmpdir/*.st

# a y4m stream is not for a terminal
if script -qec true /dev/null >/dev/null 2>&1; then
    script -qec "'$HASTE_RUN' $small -p a -o -" /dev/null >out
    same "$?" 2 "status of y4m on a terminal"
    grep -qF "stdout is a terminal" out || fail "y4m on a terminal: $(head -c 300 out)"
fi

# absurd sizes are refused by the estimate: at once, and not by the kernel
start=$(date +%s)
bad 1 "GB" -m A --device ref -p a -o x.md5 --size 16384x16384 --frames 4093
bad 1 "tokens" -m A --device ref -p a -o x.md5 --size 8192x8192 --frames 1001
test $(($(date +%s) - start)) -lt 20 || fail "the refusal of absurd sizes took long"

bad 1 "the model folder nomodel" -m nomodel -p a -o x.md5
bad 1 "out/" -m out/ -p a -o x.md5
same "$(ls)" "$(printf 'A\nerr\nout\ntmpdir')" "files after refusals"

good --version
grep -q "^haste-run [0-9]" out || fail "--version: $(cat out)"
good --help
test ! -s err || fail "--help wrote to stderr"
grep -qF -e "--save-latents" out || fail "--help: $(cat out)"
