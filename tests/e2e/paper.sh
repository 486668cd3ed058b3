# scripts/paper.sh on a tiny model: every row of the paper's tables is there, and a second call measures nothing again.
. "$(dirname "$0")/lib.sh"
need python3
model A
printf 'a\nb\n' >calibrate.txt
printf 'c\nd\n' >evaluate.txt
PROGRAMS=$(dirname "$HASTE_CALIBRATE") CALIBRATE=calibrate.txt EVALUATE=evaluate.txt CALIBRATE_PROMPTS=1 CANDIDATES=0.5,0.9 INTERVALS=1
XATTENTION="--block 64 --stride 8" SVG2="--q-clusters 4 --k-clusters 6"
export PROGRAMS CALIBRATE EVALUATE CALIBRATE_PROMPTS CANDIDATES INTERVALS XATTENTION SVG2
paper() {
    "$SOURCE_ROOT/scripts/paper.sh" paper -m A --device ref --size 64x64 --frames 5 --steps 3 -n dull >out 2>err ||
        fail "scripts/paper.sh gave $?"
}
paper
python3 - <<'END' || fail "rows"
import json
rows = {r["variant"] for r in json.load(open("paper/eval/table.json"))}
want = {"dense", "2/xattention", "2/xattention+haste", "2/svg2", "2/svg2+haste", "4/reuse-only", "5/delta-0", "5/delta-5",
        "5/delta-10", "5/delta-100", "6/band"}
assert rows == want, rows ^ want
END
cp paper/xattention.jsonl before.jsonl
cp paper/eval/table.json before.json
paper
cmp before.jsonl paper/xattention.jsonl || fail "measured again"
cmp before.json paper/eval/table.json || fail "other rows"
