#!/bin/sh
# The rows of the paper's tables 2 to 6 (arXiv 2605.14513) for any model and size: calibrates, then compares.
#     scripts/paper.sh OUT -m MODEL [--size WxH --frames N --steps N ... as haste-eval takes them]
# OUT gets profiles and their measurements, OUT/eval table.json, table.md and report.html; what was measured is kept there
# and not measured again. Environment:
#     PROGRAMS=build     CALIBRATE=prompts/calibrate.txt     EVALUATE=prompts/evaluate.txt
#     CALIBRATE_PROMPTS=10     EVALUATE_PROMPTS=             how many of them (EVALUATE: all)
#     TOP_P=0.9          of the base methods, and what profiles are as sparse as
#     CANDIDATES=0.85,0.9,0.95   INTERVALS=4   DENSE_STEPS=0
#     XATTENTION=""      "--block 64 --stride 8"     SVG2=""     "--q-clusters 36 --k-clusters 72"
# Other than in the paper: LPIPS and VBench are not computed; the velocity error is, and everything has an interval.
set -eu
[ $# -ge 3 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
: "${PROGRAMS:=build}" "${CALIBRATE:=prompts/calibrate.txt}" "${EVALUATE:=prompts/evaluate.txt}"
: "${CALIBRATE_PROMPTS:=10}" "${EVALUATE_PROMPTS:=}" "${TOP_P:=0.9}" "${CANDIDATES:=0.85,0.9,0.95}" "${INTERVALS:=4}"
: "${DENSE_STEPS:=0}" "${XATTENTION:=}" "${SVG2:=}"
out=$1
shift
mkdir -p "$out"

# profile METHOD ERROR FLAGS...: thresholds per head, from one table of measurements for each method
profile() {
    method=$1 error=$2
    shift 2
    # shellcheck disable=SC2086
    "$PROGRAMS/haste-calibrate" "$@" --prompts "$CALIBRATE" --max-prompts "$CALIBRATE_PROMPTS" --method "$method" \
        --candidates "$CANDIDATES" --intervals "$INTERVALS" --dense-steps "$DENSE_STEPS" --match-top-p "$TOP_P" --error "$error" \
        --no-check --table "$out/$method.jsonl" -o "$out/$method-$error.json" $flags
}
flags=$XATTENTION
profile xattention plain "$@"
profile xattention band "$@"
flags=$SVG2
profile svg2 plain "$@"

x="--attention xattention $XATTENTION --top-p $TOP_P --dense-steps $DENSE_STEPS"
s="--attention svg2 $SVG2 --top-p $TOP_P --dense-steps $DENSE_STEPS"
p="--profile $out/xattention-plain.json"
cat >"$out/paper.variants" <<END
# tables 2 and 3: the methods, and what HASTE adds
2/xattention: $x --reuse none
2/xattention+haste: $p --reuse drift --reuse-delta 30
2/svg2: $s --reuse none
2/svg2+haste: --profile $out/svg2-plain.json --reuse drift --reuse-delta 8
# table 4: the parts; thresholds per head alone and both are "5/delta-0" and "2/xattention+haste"
4/reuse-only: $x --reuse drift --reuse-delta 30
# table 5: the limit of drift
5/delta-0: $p --reuse none
5/delta-5: $p --reuse drift --reuse-delta 5
5/delta-10: $p --reuse drift --reuse-delta 10
5/delta-100: $p --reuse drift --reuse-delta 100
# table 6: the other objective
6/band: --profile $out/xattention-band.json --reuse drift --reuse-delta 30
END
"$PROGRAMS/haste-eval" "$@" --prompts "$EVALUATE" --variants "$out/paper.variants" \
    ${EVALUATE_PROMPTS:+--max-prompts "$EVALUATE_PROMPTS"} -o "$out/eval"
