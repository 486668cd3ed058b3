#!/bin/bash
# Everything that is checked and measured on a machine with a GPU, in stages that can be chosen:
#     tests/kernels/gpu.sh PROGRAMS OUT STAGE...       from the root of a checkout
# PROGRAMS: a folder made by scripts/bundle.sh (or a build folder's programs beside each other); OUT: logs and results.
# stages: kernels  every operation against ref, in the three precisions, each operation in a process of its own
#         golden   parity with the reference implementation (golden files)
#         sanitize compute-sanitizer's four tools on small cases
#         demo     the demo model: frames of fp32, fp16 and bf16 against the CPU's, seconds
#         shapes   forwards of Wan2.1 1.3B and 14B at 480p and 720p, VAE decoding, random weights
#         cpu      what this machine's CPU does: attention kernels, the demo model
# A stage that fails says so and the next one runs; the exit status is 1 if any failed.
set -u
[ $# -ge 3 ] || { sed -n '2,13s/^# *//p' "$0" >&2; exit 2; }
bin=$1 out=$2
shift 2
mkdir -p "$out"
failed=0
limit=${LIMIT:-60} # seconds for one process

# one operation in one precision: what a failing kernel breaks is its own process
kernels_one() {
    log=$out/kernelcheck-$1-$2.log
    timeout "$limit" "$bin/kernelcheck" --device cuda --precision "$1" --filter "$2 " >"$log" 2>&1
    rc=$?
    [ $rc = 0 ] && echo "kernelcheck $1 $2: ok" ||
        echo "kernelcheck $1 $2: exit $rc: $(grep -c FAIL "$log") cases fail; $(tail -n 1 "$log" | cut -c1-160)"
}

kernels() {
    for precision in fp32 bf16 fp16; do
        for op in $("$bin/kernelcheck" --list | cut -d' ' -f1 | sort -u); do
            kernels_one $precision "$op" &
            while [ "$(jobs -r | wc -l)" -ge 8 ]; do sleep 0.1; done
        done
    done >"$out/kernels.lines"
    wait
    cat "$out"/kernelcheck-*-*.log >"$out/kernelcheck.log"
    rm -f "$out"/kernelcheck-*-*.log
    grep -v ': ok$' "$out/kernels.lines"
    echo "kernelcheck: $(grep -c ': ok$' "$out/kernels.lines") operations pass, $(grep -vc ': ok$' "$out/kernels.lines") fail"
    ! grep -qv ': ok$' "$out/kernels.lines"
}

golden() {
    timeout 300 "$bin/golden" --jobs 4 --filter '*/cuda*' >"$out/golden.log" 2>&1
    rc=$?
    grep -E 'FAIL|Synthesis|error' "$out/golden.log" | cut -c1-220 | head -n 40
    return $rc
}

sanitize_one() {
    log=$out/sanitize-$1-$2.log
    LD_LIBRARY_PATH="$bin/lib:${LD_LIBRARY_PATH:-}" timeout "$limit" compute-sanitizer --tool "$1" --error-exitcode 9 \
        --print-limit 5 "$bin/bin/kernelcheck" --device cuda --precision bf16 --filter "$2 " >"$log" 2>&1
    rc=$?
    case $rc in
    0) echo "$1 $2: ok" ;;
    124) echo "$1 $2: clean as far as $limit s went, $(grep -c ' ok$' "$log") cases: ok" ;;
    *) echo "$1 $2: exit $rc: $(grep -m 2 '=========' "$log" | tail -n 1 | cut -c1-160)" ;;
    esac
}

sanitize() {
    for tool in memcheck racecheck initcheck synccheck; do
        for op in $("$bin/kernelcheck" --list | cut -d' ' -f1 | sort -u); do
            sanitize_one $tool "$op" &
            while [ "$(jobs -r | wc -l)" -ge 10 ]; do sleep 0.1; done
        done
    done >"$out/sanitize.lines"
    wait
    cat "$out"/sanitize-*-*.log >"$out/sanitize.log"
    rm -f "$out"/sanitize-*-*.log
    grep -v ': ok$' "$out/sanitize.lines"
    echo "compute-sanitizer: $(grep -c ': ok$' "$out/sanitize.lines") runs clean ($(grep -c 'as far as' "$out/sanitize.lines") of them cut short)," \
        "$(grep -vc ': ok$' "$out/sanitize.lines") complain"
    ! grep -qv ': ok$' "$out/sanitize.lines"
}

demo() {
    prompt="a red circle moves to the right on a white background" rc=0
    for precision in fp32 fp16 bf16; do
        for n in 1 2; do # the second one says whether runs are bit-equal
            timeout "$limit" "$bin/haste-run" -m data/demo -p "$prompt" --seed 5 --device cuda --precision $precision \
                -o "$out/demo-$precision-$n.y4m" --stats "$out/demo-$precision.json" --quiet 2>"$out/demo.err" ||
                { rc=1; echo "demo $precision: $(tail -n 1 "$out/demo.err")"; }
        done
        cmp "$out/demo-$precision-1.y4m" "$out/demo-$precision-2.y4m" || rc=1
        rm -f "$out/demo-$precision-2.y4m"
        grep -m 1 '"seconds"' -A 7 "$out/demo-$precision.json" | tr -d '\n' | sed "s/^/demo $precision/; s/  */ /g"
        echo
    done
    return $rc
}

shapes() {
    rc=0
    for model in 1.3b 14b; do
        "$bin/genmodel" --sparse wan_$model /tmp/wan_$model || return 1
        for size in 832x480 1280x720; do
            [ "$model $size" = "14b 832x480" ] && continue
            timeout 200 "$bin/wan_shapes" -m /tmp/wan_$model --size $size --frames 81 --device cuda --precision bf16 \
                --repeat 3 --part dit ${SHAPES_FLAGS:-} || rc=1
            [ $model = 14b ] || timeout 100 "$bin/wan_shapes" -m /tmp/wan_$model --size $size --frames 81 --device cuda \
                --precision bf16 --part vae || rc=1
        done
    done
    return $rc
}

cpu() {
    lscpu | grep -E 'Model name|^CPU\(s\)|Thread|amx' | cut -c1-120
    OMP_WAIT_POLICY=passive timeout "$limit" "$bin/attention_bench" --bench --threads 2
    for threads in 2 8; do
        OMP_WAIT_POLICY=passive timeout "$limit" "$bin/haste-run" -m data/demo --device cpu --threads $threads --seed 5 \
            -p "a red circle moves to the right on a white background" -o null: 2>&1 | grep -E 'load|^cpu|device' | tail -n 2
    done
}

for stage; do
    echo "== $stage"
    start=$(date +%s)
    "$stage" >"$out/$stage.txt" 2>&1 || { failed=1; echo "$stage FAILED" >>"$out/$stage.txt"; }
    cat "$out/$stage.txt"
    echo "== $stage: $(($(date +%s) - start)) s"
done
exit $failed
