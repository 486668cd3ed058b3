# Sparse attention from the command line: flags and profiles reach the run, its report and --stats; what contradicts itself
# or belongs to another model is refused before any work.
. "$(dirname "$0")/lib.sh"
need python3
model A

# check TEXT: python over s = the JSON of the last --stats, f = flat list of (step, branch, layer, density, drift, mask)
check() {
    python3 - "$1" <<'END' || fail "$1: $(head -c 1500 s.json)"
import json, sys
s = json.load(open("s.json"))
f = [(c["step"], c["branch"], c["layer"], d, r, m) for c in s["calls"]
     for d, r, m in zip(c["density"], c["drift"], c["mask"])]
a = s["attention_settings"]
def mean(x): return sum(x) / len(x)
def near(x, y): return abs(x - y) < 2e-4
exec(sys.argv[1])
END
}

# dense is what it was: no table, no rows
good $small -p a -o dense.md5 --stats s.json
says "attention: dense (default)"
check 'assert s["attention"] == "dense" and a is None and s["profile"] is None and not f and s["density"] == 1'
! grep -q "reuse rate" err || fail "a table about dense attention"

# every flag arrives
good $small -p a -o x.md5 --stats s.json --attention xattention --top-p 0.5 --block 64 --stride 8 --reuse-delta 7 \
    --dense-steps 1 --compat
says "attention: xattention, block 64, stride 8, top-p 0.5 for all heads, reuse while drift <= 7, first 1 of 3 steps dense"
says "(flags)"
says "attention: density"
check '
assert s["attention"] == "xattention" and s["profile"] is None
want = {"block": 64, "stride": 8, "top_p": 0.5, "reuse": "drift", "reuse_delta": 7, "dense_steps": 1, "dense_layers": 0,
        "compat": True, "compensate": False, "gate_low": 0.4, "gate_high": 0.8}
for k, v in want.items(): assert a[k] == v, (k, a[k])
assert "q_clusters" not in a
assert len(s["calls"]) == 3 * 2 * 2 and len(f) == 3 * 2 * 2 * 2
for step, branch, layer, density, drift, mask in f:
    assert 0 < density <= 1 and drift >= 0
    assert (mask == "dense") == (step == 0), (step, mask)
    if step == 0: assert density == 1
    if step == 1: assert mask == "predicted", "the first sparse step has nothing to reuse"
assert near(s["density"], mean([x[3] for x in f]))
for i, row in enumerate(s["per_step"]): assert near(row["density"], mean([x[3] for x in f if x[0] == i]))
for i, row in enumerate(s["per_layer"]): assert near(row["density"], mean([x[3] for x in f if x[2] == i]))
sparse = [x for x in f if x[5] != "dense"]
assert near(s["reuse_rate"], mean([x[5] == "reused" for x in sparse]))
'

# svg2 drops something; the baselines of reuse have rates that are known beforehand; one branch without guidance
svg2="--attention svg2 --q-clusters 4 --k-clusters 4 --top-p 0.3"
good $small -p a -o null: --stats s.json $svg2 --reuse freeze
says "svg2, 4 query and 4 key clusters, top-p 0.3 for all heads, masks predicted once (flags)"
check '
assert s["attention"] == "svg2" and a["q_clusters"] == 4 and a["k_clusters"] == 4 and "block" not in a
assert near(s["reuse_rate"], 2 / 3) and [r["reuse_rate"] for r in s["per_step"]] == [0, 1, 1]
assert 0 < s["density"] < 1, s["density"]
'
good $small -p a -o null: --stats s.json $svg2 --reuse interval --reuse-interval 2 --guidance 1 -n ""
check '
assert {x[1] for x in f} == {"cond"} and len(f) == 3 * 2 * 2
assert near(s["reuse_rate"], 1 / 3) and [r["reuse_rate"] for r in s["per_step"]] == [0, 1, 0]
'
good $small -p a -o null: --stats s.json $svg2 --reuse stagger --reuse-interval 2 --guidance 1 -n ""
says "masks predicted every 2 steps, layers in turn"
check '
assert [(x[0], x[2]) for x in f if x[5] == "predicted"][::2] == [(0, 0), (0, 1), (1, 1), (2, 0)], f
assert [r["reuse_rate"] for r in s["per_step"]] == [0, 0.5, 0.5]
'
good $small -p a -o null: --stats s.json $svg2 --reuse none --dense-layers 1
says "first 1 of 2 layers dense"
check '
assert s["reuse_rate"] == 0 and s["per_layer"][0]["density"] == 1
assert s["per_layer"][1]["density"] < 1 and near(s["per_layer"][1]["density"], mean([x[3] for x in f if x[2] == 1]))
for x in f: assert (x[5] == "dense") == (x[2] == 0)
'
good $small -p a -o null: --stats s.json --attention pooled --compensate --dense-steps 3
says "but all steps are dense: nothing is sparse"
check 'assert a["compensate"] and s["density"] == 1 and s["reuse_rate"] == 0'

# the first masks come from the last dense step: all later ones may reuse them
good $small -p a -o null: --stats s.json --attention xattention --dense-steps 1 --reuse freeze --seed-exact
says "first masks from exact block mass"
check 'assert a["seed_exact"] and [r["reuse_rate"] for r in s["per_step"]] == [0, 1, 1]'

# top-p 1 is dense attention, to the bit on this device
good $small -p a -o one.md5 --attention xattention --top-p 1
same "$(cat one.md5)" "$(cat dense.md5)" "frames at top-p 1"

good $small -p a -o null: --attention xattention --top-p 1e-6 # the least that is allowed

# contradictions
bad 2 "--top-p says how sparse attention works" $small -p a -o null: --top-p 0.9
bad 2 "--top-p says how" $small -p a -o null: --attention dense --top-p 0.9
bad 2 "--stride has no meaning with svg2" $small -p a -o null: --attention svg2 --stride 8
bad 2 "--q-clusters has no meaning with xattention" $small -p a -o null: --attention xattention --q-clusters 8
bad 2 "--budget chooses in a profile" $small -p a -o null: --attention xattention --budget 0.7
bad 2 "--reuse-delta is a limit" $small -p a -o null: --attention xattention --reuse none --reuse-delta 3
bad 2 "dense, xattention, svg2 or pooled" $small -p a -o null: --attention sparse
bad 2 "--seed-exact has no meaning with svg2" $small -p a -o null: --attention svg2 --seed-exact
bad 2 "need a dense step to come from" $small -p a -o null: --attention xattention --seed-exact
bad 2 "dense layers is 3" $small -p a -o null: --attention xattention --dense-layers 3

# profiles
good $small -p a -o null: --stats s.json
python3 - <<'END' || fail "writing the profiles"
import json
s = json.load(open("s.json"))
p = {"format": "haste-profile", "version": 1, "made": {"by": "sparse.sh", "at": "today"},
     "model": {"name": "A", "sha256": s["model"], "layers": 2, "heads": 2},
     "made_for": {"width": 32, "height": 32, "frames": 5, "steps": 6, "shift": 3, "guidance": 5, "solver": "unipc"},
     "method": {"name": "svg2", "q_clusters": 4, "k_clusters": 4, "iters_first": 3, "iters_next": 1, "min_share": 0.1},
     "reuse": {"kind": "none"}, "dense": {"steps": 1, "layers": 0},
     "budgets": [{"target": 0.5, "sparsity": 0.52, "top_p": [[1, 1], [0.3, 1]]},
                 {"target": 0.2, "top_p": [[1, 1], [0.9, 1]]}]}
def write(name, **changes):
    q = json.loads(json.dumps(p))
    for path, v in changes.items():
        o = q
        for k in path.split("__")[:-1]: o = o[k]
        o[path.split("__")[-1]] = v
    json.dump(q, open(name, "w"))
write("p.json")
write("other.json", model__sha256="0" * 64)
write("layers.json", model__layers=1, budgets=[{"target": 0.5, "top_p": [[1, 1]]}])
write("version.json", version=4)
write("above.json", budgets=[{"target": 0.5, "top_p": [[1, 1], [1.5, 1]]}])
open("cut.json", "w").write(json.dumps(p)[:-20])
END
good $small -p a -o null: --stats s.json --profile p.json
says "attention: svg2, 4 query and 4 key clusters, 3 and 1 rounds of k-means, top-p 0.3 to 1 per head (mean 0.825), masks predicted every step"
says "first 1 of 3 steps dense (profile p.json, budget 0.5)"
says "1 dense steps of 6 become 1 of 3"
check '
assert s["profile"]["file"] == "p.json" and s["profile"]["budget"] == 0.5 and s["profile"]["sparsity"] == 0.52
assert s["attention"] == "svg2" and a["top_p"] == "per head" and a["iters_first"] == 3 and not s["profile"]["changed_by_flags"]
for c in s["calls"]:
    if c["step"] == 0: assert c["density"] == [1, 1] and c["mask"] == ["dense", "dense"]
    if c["step"] > 0 and c["layer"] == 0: assert c["density"] == [1, 1], "heads with top-p 1 keep all"
    if c["step"] > 0 and c["layer"] == 1: assert c["density"][0] < 1 and c["density"][1] == 1, c
'
good $small -p a -o null: --stats s.json --profile p.json --budget 0.2
says "(profile p.json, budget 0.2)"
check 'assert s["profile"]["budget"] == 0.2 and s["profile"]["sparsity"] is None'
good $small -p a -o null: --stats s.json --profile p.json --top-p 0.4 --dense-steps 0
says "top-p 0.4 for all heads"
says "(profile p.json, changed by flags)"
check 'assert s["profile"]["budget"] is None and a["top_p"] == 0.4 and all(x[5] == "predicted" for x in f)'

bad 2 "other.json: made for A with sha256 0000000000000000" $small -p a -o null: --profile other.json
bad 2 "layers.json: made for A with 1 layers x 2 heads, this model has 2 layers x 2 heads" $small -p a -o null: --profile layers.json
bad 2 "p.json: no budget of sparsity 0.3; it has 0.5, 0.2" $small -p a -o null: --profile p.json --budget 0.3
bad 2 "--attention xattention, but p.json was made for svg2" $small -p a -o null: --profile p.json --attention xattention
bad 2 "--block has no meaning with svg2" $small -p a -o null: --profile p.json --block 64
bad 1 "version.json: 'version' is 4" $small -p a -o null: --profile version.json
bad 1 "above.json: 'budgets[0].top_p[1][0]' is 1.5" $small -p a -o null: --profile above.json
bad 1 "cut.json: " $small -p a -o null: --profile cut.json
bad 1 "none.json" $small -p a -o null: --profile none.json

rm -f s.json
good $small -p a -o x2.md5 --stats s.json --profile p.json --dry-run
grep -qF "attention svg2, 4 query" out || fail "--dry-run: $(cat out)"
grep -qF "(profile p.json, budget 0.5)" out || fail "--dry-run: $(cat out)"
test ! -e s.json && test ! -e x2.md5 || fail "a dry run made files"
bad 2 "made for A" $small -p a -o null: --profile other.json --dry-run

if [ "$HAVE_VIDEO" = 1 ] && command -v ffprobe >/dev/null; then
    good $small -p a -o x.mkv --profile p.json
    ffprobe -v error -show_entries format_tags x.mkv >tags
    grep -qi "attention=svg2, 4 query" tags || fail "metadata: $(cat tags)"
    grep -qi "budget=0.5" tags || fail "metadata: $(cat tags)"
    good $small -p a -o x.mkv --profile p.json --top-p 0.4
    ffprobe -v error -show_entries format_tags x.mkv >tags
    if grep -qi "budget=" tags; then fail "a budget whose thresholds were replaced: $(cat tags)"; fi
fi
