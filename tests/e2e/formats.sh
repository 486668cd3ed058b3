# Every format of -o holds the same video: exact ones bit by bit, mp4 and webm by size, count, rate and settings.
. "$(dirname "$0")/lib.sh"
need_video
need ffmpeg
need ffprobe
model A

want=$(good $small -p "a red circle" -o x.md5 && cat x.md5)
for out in x.mkv frame_%03d.png folder/; do
    good $small -p "a red circle" -o "$out"
    case $out in */) out=${out}frame_%04d.png ;; esac
    same "$(rgb_md5 "$out")" "$want" "frames in $out"
done
same "$(ls folder | tr '\n' ' ')" "frame_0000.png frame_0001.png frame_0002.png frame_0003.png frame_0004.png " "png folder"

good $small -p "a red circle" -o 50%/
same "$(rgb_md5 50%%/frame_%04d.png)" "$want" "frames in a folder with a percent sign"
good $small -p "a red circle" -o 50%/f_%d.png
test -s 50%/f_4.png || fail "no 50%/f_4.png: $(ls 50%)"
bad 2 "one png holds one frame" $small -p "a red circle" -o 50%/f.png

# y4m: within three levels of the exact frames
good $small -p "a red circle" -o x.y4m
ffmpeg -v error -i x.y4m -f rawvideo -pix_fmt rgb24 y4m.rgb
ffmpeg -v error -i x.mkv -f rawvideo -pix_fmt rgb24 - | od -An -v -t u1 -w1 >mkv.txt
same "$(wc -c <y4m.rgb)" $((5 * 32 * 32 * 3)) "bytes of the y4m frames"
worst=$(od -An -v -t u1 -w1 y4m.rgb | paste - mkv.txt | awk '{ d = $1 > $2 ? $1 - $2 : $2 - $1; if (d > m) m = d } END { print m + 0 }')
test "$worst" -le 3 || fail "y4m is $worst levels from the exact frames"

# what a stranger finds in the file
good $small -p "a \"red\" circle" -n "blue; dull" --fps 12 --guidance 4.5 -o x.mp4
probe=$(ffprobe -v error -count_frames -of default=noprint_wrappers=1 -show_entries \
    stream=codec_name,width,height,avg_frame_rate,nb_read_frames,pix_fmt:format_tags x.mp4)
for part in codec_name=h264 width=32 height=32 avg_frame_rate=12/1 nb_read_frames=5 pix_fmt=yuv420p \
    'TAG:prompt=a "red" circle' 'TAG:title=a "red" circle' 'TAG:negative_prompt=blue; dull' TAG:seed=7 TAG:steps=3 \
    TAG:solver=unipc TAG:sigmas=A TAG:guidance=4.5 TAG:shift=3 TAG:width=32 TAG:height=32 TAG:frames=5 TAG:fps=12 \
    TAG:attention=dense TAG:device=ref TAG:model_sha256= TAG:haste_version=; do
    echo "$probe" | grep -qF -e "$part" || fail "x.mp4 lacks $part: $probe"
done
good -m A --device ref --size 32x32 --frames 5 --steps 3 --seed 7 -p "a red circle" --guidance 1 -o x.mp4
ffprobe -v error -show_entries format_tags x.mp4 >tags
grep -q "prompt=a red circle" tags && ! grep -q negative tags || fail "a negative prompt that was not used: $(cat tags)"
for kind in mp4 webm; do
    good $small -p "a red circle" --crf 0 -o best.$kind
    good $small -p "a red circle" --crf 51 -o worst.$kind
    test "$(wc -c <best.$kind)" -gt "$(($(wc -c <worst.$kind) + 1000))" || fail "--crf: $(wc -c best.$kind worst.$kind)"
done
bad 2 "x.mkv is neither" $small -p a --crf 20 -o x.mkv
good $small -p "a red circle" -o x.webm
same "$(frames_of x.webm)" 5 "frames in x.webm"
ffprobe -v error -show_entries format_tags x.webm | grep -q '^TAG:SEED=7' || fail "x.webm lacks the seed"

# no -o: a name that says the seed; the seed is printed
good $small -p "a red circle" --frames 1
test -s haste-7.mp4 || fail "no haste-7.mp4: $(ls)"
says "seed 7"
good -m A --device ref --size 32x32 --frames 1 --steps 1 -p x
seed=$(sed -n 's/.*seed \([0-9]*\)$/\1/p' err | head -1)
test -s "haste-$seed.mp4" || fail "random seed $seed, but: $(ls)"
good -m A --device ref --size 32x32 --frames 1 --steps 1 -p x --seed "$seed" -o again.mp4
cmp "haste-$seed.mp4" again.mp4 || fail "the printed seed does not make the video again"

# stdout: y4m only
"$HASTE_RUN" $small -p "a red circle" -o - >stream 2>err || fail "-o -"
cmp stream x.y4m || fail "-o - is not the y4m"
