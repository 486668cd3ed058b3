#!/bin/sh
# Thresholds per head and step interval against thresholds per head and one threshold for all, on the demo model: from
# the first probe to tables at equal density, with and without dense steps. Then: is a profile that this device made the
# one that the CPU made?
#     tests/bench/interval_eval.sh PROGRAMS OUT
# PROGRAMS: the folder of haste-calibrate and haste-eval. OUT gets profiles, tables and summary.txt, about 1 MB.
# Environment, with what is taken otherwise:
#     DEVICES="cuda"    one or more: "cuda:0 cuda:1"       PRECISION=fp16    of probes and of the dense reference
#     SHARDS=16         processes at a time                WARM="3 0"        dense steps
#     PROMPTS=24        of prompts/calibrate.txt           PER_HEAD=12       of them
#     INTERVALS=4       parts of the trajectory            CANDIDATES=0.5,0.6,0.7,0.8,0.85,0.9,0.95,0.99
#     CLIPS=32          of prompts/evaluate.txt            POINTS="0.8 0.9 0.95"   budgets: as sparse as one such p
#     CURVE="0.7 0.8 0.9 0.95 0.99"   budgets of the profile per head, with which the others are compared
#     VIDEO=""          "--size 128x128 --steps 8"         WORK=             keeps tables and clips there: goes on
#     SAME="cuda cpu"   devices of the last question; for two machines, first SAME=cuda, then WARM= SAME=cpu with that OUT
set -eu
[ $# = 2 ] || { sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$2"
programs=$(cd "$1" && pwd) out=$(cd "$2" && pwd)
cd "$(dirname "$0")/../.."
: "${DEVICES:=cuda}" "${PRECISION:=fp16}" "${SHARDS:=16}" "${WARM=3 0}" "${PROMPTS:=24}" "${PER_HEAD:=12}"
: "${INTERVALS:=4}" "${CANDIDATES:=0.5,0.6,0.7,0.8,0.85,0.9,0.95,0.99}" "${CLIPS:=32}" "${POINTS:=0.8 0.9 0.95}"
: "${CURVE:=0.7 0.8 0.9 0.95 0.99}" "${VIDEO:=}" "${WORK:=}"
export OMP_WAIT_POLICY=passive
if [ -n "$WORK" ]; then
    mkdir -p "$WORK"
    work=$(cd "$WORK" && pwd)
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
calibrate="$programs/haste-calibrate" eval="$programs/haste-eval" start=$(date +%s)
method="--method xattention --block 64 --stride 8"

note() { echo "$(($(date +%s) - start)) s: $*" | tee -a "$out/summary.txt"; }
listed() { echo "$*" | tr ' ' ','; }
device_of() { # device_of I
    set -- "$1" $DEVICES
    shift $(($1 % ($# - 1) + 1))
    echo "$1"
}
each() { # each FUNCTION: with every shard at the same time; all must succeed
    pids= i=0 bad=
    while [ "$i" -lt "$SHARDS" ]; do
        "$1" "$i" >"$work/$1.$i.log" 2>&1 &
        pids="$pids $!" i=$((i + 1))
    done
    i=0
    for pid in $pids; do
        wait "$pid" || bad="$bad $i"
        i=$((i + 1))
    done
    [ -z "$bad" ] || {
        for i in $bad; do tail -n 3 "$work/$1.$i.log" >&2; done
        echo "$1 failed in shards$bad" >&2
        exit 1
    }
}

measure() {
    "$calibrate" measure -m data/demo --prompts prompts/calibrate.txt --max-prompts "$PROMPTS" $method --dense-steps "$warm" \
        --intervals "$INTERVALS" --candidates "$CANDIDATES" --prompts-per-head "$PER_HEAD" --device "$(device_of "$1")" \
        --precision "$PRECISION" --table "$work/w$warm.$1.jsonl" --shard "$1/$SHARDS" $VIDEO
}
solve() { # solve NAME POINTS FLAGS...
    name=$1 points=$2
    shift 2
    "$calibrate" solve "$work/w$warm".*.jsonl --match-top-p "$(listed $points)" --reuse drift --reuse-delta 8 "$@" \
        -o "$out/w$warm.$name.json" 2>"$work/solve.log" || { cat "$work/solve.log" >&2; exit 1; }
}
budget() { sed -n "s/^all heads at top-p $1: sparsity \([0-9.e-]*\),.*/\1/p" "$work/solve.log"; }
clips() {
    "$eval" -m data/demo --prompts prompts/evaluate.txt --max-prompts "$CLIPS" --variants "$work/w$warm.variants" \
        --device "$(device_of "$1")" --precision "$PRECISION" --shard "$1/$SHARDS" $VIDEO -q -o "$work/w$warm"
}
report() { # report NAME BASELINE
    "$eval" --report -o "$work/w$warm" --baseline "$2" >/dev/null
    for kind in json md; do cp "$work/w$warm/table.$kind" "$out/w$warm.$1.$kind"; done
}

case " $DEVICES " in *" cpu "*) : "${SAME=}" ;; esac # nothing to compare with
: "${SAME=$(device_of 0) cpu}"
[ -z "$WARM" ] || : >"$out/summary.txt"
for warm in $WARM; do
    each measure
    note "$warm dense steps: probes measured"
    solve heads "$CURVE"
    : >"$work/w$warm.variants"
    sparse="--attention xattention --block 64 --stride 8 --dense-steps $warm --reuse none"
    for p in $CURVE; do
        echo "heads/$p: --profile $out/w$warm.heads.json --budget $(budget "$p") --reuse none" >>"$work/w$warm.variants"
    done
    solve steps "$POINTS" --per-interval
    for p in $POINTS; do
        echo "one/$p: $sparse --top-p $p"
        echo "steps/$p: --profile $out/w$warm.steps.json --budget $(budget "$p") --reuse none"
    done >>"$work/w$warm.variants"
    for kind in heads steps; do # the middle budget as it is used, with mask reuse
        set -- $POINTS
        shift $(($# / 2))
        echo "$kind-reuse/$1: --profile $out/w$warm.$kind.json --budget $(budget "$1")"
    done >>"$work/w$warm.variants"
    { # predictions of both kinds by all probes
        cat "$work/solve.log"
        "$calibrate" compare "$out/w$warm.steps.json" "$out/w$warm.heads.json" --table "$work/w$warm.0.jsonl" \
            $(i=1; while [ "$i" -lt "$SHARDS" ]; do echo "--table $work/w$warm.$i.jsonl"; i=$((i + 1)); done)
        # the shipped profile was made by a GPU from the same prompts
        [ "$warm" != 3 ] || "$calibrate" compare data/profiles/demo-xattention.json "$out/w3.heads.json"
    } >>"$out/summary.txt" 2>&1
    note "$warm dense steps: thresholds chosen"
    each clips
    report vs-heads heads
    report vs-one one
    cat "$out/w$warm.vs-heads.md" >>"$out/summary.txt"
    note "$warm dense steps: $CLIPS clips measured"
done

# A few probes in fp32 on a device and on a CPU: do both choose the same, up to ties? The costs are of both choices by the
# device's table.
for where in $SAME; do
    "$calibrate" measure -m data/demo --prompts prompts/calibrate.txt --max-prompts 2 --candidates 0.7,0.8,0.9,0.95 $method \
        --dense-steps 3 --device "$where" --precision fp32 --table "$work/same.$where.jsonl" $VIDEO -q
    cp "$work/same.$where.jsonl" "$out"
    note "the same 384 probes in fp32, by one process: $where"
done
for table in "$out"/same.*.jsonl; do
    where=${table#"$out/same."}
    where=${where%.jsonl}
    [ "$where" != cpu ] && [ -f "$table" ] && [ -f "$out/same.cpu.jsonl" ] || continue
    for kind in heads steps; do
        flag=
        [ "$kind" = heads ] || flag=--per-interval
        for which in "$where" cpu; do
            "$calibrate" solve "$out/same.$which.jsonl" --match-top-p 0.8,0.9,0.95 $flag -q -o "$out/same.$kind.$which.json"
        done
        "$calibrate" compare "$out/same.$kind.cpu.json" "$out/same.$kind.$where.json" --table "$table"
    done >>"$out/summary.txt"
done
note "done"
cat "$out/summary.txt"
