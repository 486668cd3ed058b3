# --prompts: one model, numbered outputs, each video as if it had been made alone.
. "$(dirname "$0")/lib.sh"
model A

printf '\357\273\277# first line of comments\n\n  a red circle  \r\n# another\na blue star\n\ta #3 square' >list.txt
bad 1 "cannot write into folder v" $small --prompts list.txt -o v/x.md5
mkdir v
good $small --prompts list.txt -o v/x.md5 --stats v/s.json --save-latents v/l.safetensors
same "$(cd v && echo *)" "l_000.safetensors l_001.safetensors l_002.safetensors s_000.json s_001.json s_002.json x_000.md5 x_001.md5 x_002.md5" outputs
says "3 of 3: a #3 square"
i=0
for p in "a red circle" "a blue star" "a #3 square"; do
    good $small -p "$p" -o alone.md5
    same "$(cat v/x_00$i.md5)" "$(cat alone.md5)" "video $i of the list"
    i=$((i + 1))
done
good $small --prompts list.txt -o v/y_%02d.md5
same "$(cat v/y_02.md5)" "$(cat v/x_002.md5)" "pattern in the name"
good $small --prompts list.txt -o null:
bad 2 "--frames 1" $small --prompts list.txt -o v/p.png
if [ "$HAVE_VIDEO" = 1 ]; then
    good $small --frames 1 --prompts list.txt -o v/p.png
    good $small --frames 1 --prompts list.txt -o v/p_%d.png
    same "$(cd v && echo p*)" "p_0.png p_000.png p_001.png p_002.png p_1.png p_2.png" "pictures"
fi

# several videos of every prompt: each as if it had been made alone with its seed (small says 7)
good $small --prompts list.txt --num-videos 2 -o v/m.md5 --stats v/t.json
same "$(cd v && echo m*)" "m_000.md5 m_001.md5 m_002.md5 m_003.md5 m_004.md5 m_005.md5" "two videos of three prompts"
says "4 of 6, seed 8: a blue star"
says "v/m_003.md5: 5 frames of 32x32, 16 fps, seed 8"
good $small -p "a blue star" --seed 8 -o alone.md5
same "$(cat v/m_003.md5)" "$(cat alone.md5)" "the second video of the second prompt"
same "$(cat v/m_002.md5)" "$(cat v/x_001.md5)" "the first video of the second prompt"
grep -q '"seed":.*8,' v/t_003.json || fail "t_003.json: $(cat v/t_003.json)"
good $small -p "a blue star" --num-videos 2 -o one.md5
same "$(cat one_001.md5)" "$(cat alone.md5)" "the second video of one prompt"

# escape sequences in a list do not reach the terminal
printf 'a \033[31mred\nb\n' >list2.txt
good $small --prompts list2.txt -o null:
says "1 of 2: a ?[31mred"
if grep -q "$(printf '\033')" err; then fail "an escape sequence reached stderr"; fi

# a JSON file is not as many prompts as it has lines; brackets alone are no JSON
printf '\n{\n  "prompt": "a cat"\n}\n' >list.json
bad 2 "list.json line 2 looks like JSON" $small --prompts list.json -o x.md5
printf '[{"prompt": "a cat"}]\n' >list.json
bad 2 "list.json line 1 looks like JSON" $small --prompts list.json -o x.md5
printf '[a close-up] of a cat\na dog\n{\n' >brackets.txt
good $small --prompts brackets.txt -o null: --dry-run

bad 1 "nothere.txt" $small --prompts nothere.txt -o x.md5
printf '# only\n\n' >empty.txt
bad 2 "no prompts" $small --prompts empty.txt -o x.md5
printf 'good\n\377bad\n' >latin.txt
bad 2 "latin.txt line 2" $small --prompts latin.txt -o x.md5
printf 'a\0b\n' >nul.txt
bad 2 "NUL" $small --prompts nul.txt -o x.md5
bad 2 "stdout" $small --prompts list.txt -o -
if [ "$HAVE_VIDEO" = 1 ]; then
    bad 2 "for several videos name a folder" $small --prompts list.txt -o x.png
    bad 2 "number them (out_%04d.png) or name a folder" $small -p a -o x.png
fi
same "$(ls x*.md5 2>/dev/null)" "" "files left behind"
