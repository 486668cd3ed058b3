# --device and --precision: the fast CPU backend shows the same video as the plain one; what is used is said; a device that
# is not there is an error and never silently another one.
. "$(dirname "$0")/lib.sh"
model A
same_but_device="-m A --size 32x32 --frames 5 --steps 3 --seed 7 -n dull"

good $same_but_device -p "a red circle" --device ref -o ref.y4m --stats s.json
says "on ref"
grep -q '"device":.*"ref' s.json || fail "s.json does not name the device: $(cat s.json)"
od -An -v -t u1 -w1 ref.y4m >ref.txt

# close WORST FILE: no byte of the y4m is more than WORST levels from the plain backend's
close() {
    worst=$(od -An -v -t u1 -w1 "$2" | paste - ref.txt | awk '{ d = $1 > $2 ? $1 - $2 : $2 - $1; if (d > m) m = d } END { print m + 0 }')
    test "$worst" -le "$1" || fail "$2 is $worst levels from ref, allowed are $1"
}
if [ "$HAVE_CPU" = 1 ]; then
    good $same_but_device -p "a red circle" --device cpu --precision fp32 -o fp32.y4m
    says "on cpu"
    says "fp32"
    close 2 fp32.y4m
    good $same_but_device -p "a red circle" --device cpu --precision fp32 --threads 1 -o one.y4m
    says "1 thread"
    close 2 one.y4m
    run $same_but_device -p "a red circle" --device cpu --precision bf16 -o bf16.y4m
    if [ "$status" = 0 ]; then
        says "bf16"
        close 12 bf16.y4m # 8 bits of mantissa through random weights and three steps
    fi
    good $same_but_device -p "a red circle" --error-on-fallback -o auto.md5
else
    bad 1 "cpu" $same_but_device -p a --device cpu -o x.md5
    bad 1 "error-on-fallback" $same_but_device -p a --error-on-fallback -o x.md5
fi
run $same_but_device -p "a red circle" --device cuda --precision fp32 -o cuda.y4m
if [ "$status" = 0 ]; then
    says "on cuda"
    close 2 cuda.y4m
else
    says "device 'cuda' asked for"
    test ! -e cuda.y4m || fail "cuda.y4m was written without a GPU"
fi
bad 1 "fp16 needs a GPU" $same_but_device -p a --device ref --precision fp16 -o x.md5
good $same_but_device -p "a red circle" --device ref --error-on-fallback -o x.md5
if [ "$HAVE_VIDEO" = 0 ]; then
    bad 1 "error-on-fallback" $same_but_device -p a --device ref --error-on-fallback
    good $same_but_device -p a --device ref
    says "fall-back"
    test -s haste-7.y4m || fail "no haste-7.y4m: $(ls)"
fi
