# haste-eval on a tiny model: what it measures, that nothing measured is lost (kill -9, Ctrl-C, a full disk), that shards
# merge to the same table, and what it refuses.
. "$(dirname "$0")/lib.sh"
need python3
haste_run=$HASTE_RUN
HASTE_RUN=$HASTE_EVAL # run, good and bad of lib.sh
model A

cat >v.txt <<'END'
# two methods, and one that changes nothing
s30: --attention svg2 --q-clusters 4 --k-clusters 4 --top-p 0.3 --reuse none
s60/reuse: --attention svg2 --q-clusters 4 --k-clusters 4 --top-p 0.6 --reuse interval --reuse-interval 2 --dense-steps 1
all: --attention xattention --top-p 1 --reuse none   # dense in other words
END
printf 'a red dot\n# comment\na blue star\n' >p.txt
tiny="-m A --device ref --size 32x32 --frames 5 --steps 3 --prompts p.txt"

# check DIR TEXT: python over rows = table.json by variant, log = the lines of all journals
check() {
    python3 - "$@" <<'END' || fail "$2"
import glob, json, sys
d = sys.argv[1]
table = json.load(open(d + "/table.json"))
rows = {r["variant"]: r for r in table}
log = [json.loads(x) for f in sorted(glob.glob(d + "/*.jsonl")) for x in open(f).read().splitlines()[1:]]
measured = ["psnr", "ssim", "velocity_error", "seconds", "density", "reuse_rate"]
def near(x, y): return abs(x - y) <= 1e-5 * max(1, abs(y))
exec(sys.argv[2])
END
}

# values DIR FILE: everything that does not depend on time or process, in a fixed order
values() {
    python3 - "$1" >"$2" <<'END'
import glob, json, sys
rows = [json.loads(x) for f in glob.glob(sys.argv[1] + "/*.jsonl") for x in open(f).read().splitlines()[1:]]
for r in sorted(rows, key=lambda r: (r["prompt"], int(r["seed"]), r["variant"])):
    print({k: v for k, v in sorted(r.items()) if "seconds" not in k and k not in ("run", "warm")})
END
}

good $tiny --variants v.txt --seeds 2 -o whole
says "4 clips (2 prompts, seeds 0 to 1), 3 variants and dense"
says "to do: 4 clips, 16 videos, 84 steps"
for f in table.json table.md report.html clips.jsonl; do test -s "whole/$f" || fail "no whole/$f"; done
grep -q "s60/reuse  *4 " out || fail "the table on stdout: $(cat out)"
! grep -q "https*://" whole/report.html || fail "report.html asks the network"
check whole '
assert [r["variant"] for r in table] == ["dense", "s30", "s60/reuse", "all"] and len(log) == 16
for r in table:
    for k in measured: assert set(r[k]) >= {"mean", "low", "high"}, (r["variant"], k)
assert [r["n"] for r in table] == [4] * 4 and rows["s60/reuse"]["group"] == "s60" and rows["s30"]["group"] == "s"
assert rows["dense"]["psnr"]["mean"] is None and rows["dense"]["density"]["mean"] == 1
s, t, a = rows["s30"], rows["s60/reuse"], rows["all"]
assert 0 < s["psnr"]["low"] < s["psnr"]["mean"] < s["psnr"]["high"] < 100 and 0 < s["ssim"]["mean"] < 1
assert s["density"]["mean"] < 1 and s["density"] == s["density_sparse"] and s["reuse_rate"]["mean"] == 0
assert t["reuse_rate"]["mean"] == 0.5 and t["density_sparse"]["mean"] < t["density"]["mean"] < 1
assert t["velocity_error"]["mean"] > 0
# top-p 1 is dense to the bit on this device, and says so
assert a["identical"] == 4 and a["psnr"]["mean"] == 100 and a["ssim"]["mean"] == 1 and a["velocity_error"]["mean"] == 0
assert all(r["seconds"]["mean"] > 0 for r in table) and rows["dense"]["speedup"]["mean"] == 1
assert {(r["prompt"], r["seed"]) for r in log} == {(p, s) for p in ("a red dot", "a blue star") for s in "01"}
one = [r["psnr"] for r in log if r["variant"] == "s30"]
assert len(set(one)) == 4 and near(s["psnr"]["mean"], sum(one) / 4)
'
values whole whole.txt

# The velocity error is what it is said to be. One Euler step is x = noise - s v, so latents that haste-run saves tell the
# same: |x - x_d|^2 / |noise - x_d|^2. The noise is that of torch.manual_seed.
one="-m A --device ref --size 32x32 --frames 5 --steps 1 --solver euler --seed 3"
good $one --prompts p.txt --max-prompts 1 --variants v.txt -o one
HASTE_RUN=$haste_run
good $one -p "a red dot" -o null: --save-latents dense.st
good $one -p "a red dot" -o null: --save-latents s30.st $(sed -n 's/^s30: //p' v.txt)
HASTE_RUN=$HASTE_EVAL
check one '
import math, random, struct
def load(path):
    b = open(path, "rb").read()
    return struct.unpack("<512f", b[-2048:])
state = [3]
for i in range(1, 624): state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) & 0xffffffff)
random.setstate((3, tuple(state) + (624,), None))
u = [(random.getrandbits(32) & 0xffffff) / 2 ** 24 for i in range(512)]
noise = []
for g in range(0, 512, 16):
    pairs = [(math.sqrt(-2 * math.log(1 - a)), 2 * math.pi * b) for a, b in zip(u[g:g + 8], u[g + 8:g + 16])]
    noise += [r * math.cos(t) for r, t in pairs] + [r * math.sin(t) for r, t in pairs]
d, s = load("dense.st"), load("s30.st")
want = sum((x - y) ** 2 for x, y in zip(s, d)) / sum((x - y) ** 2 for x, y in zip(noise, d))
got = rows["s30"]["velocity_error"]["mean"]
assert abs(got / want - 1) < 1e-3, (got, want)
assert rows["all"]["velocity_error"]["mean"] == 0
'

# nothing left to do; another variant is measured against a dense run made again
good $tiny --variants v.txt --seeds 2 -o whole
says "to do: 0 clips"
values whole again.txt
cmp -s whole.txt again.txt || fail "a rerun changed results"
good $tiny --variants v.txt --seeds 2 -o streamed --max-vram 0.0171
says "memory: 0 of 2 blocks of the transformer on the device"
values streamed again.txt
cmp -s whole.txt again.txt || fail "weights that come and go changed results"
printf 's50: --attention svg2 --q-clusters 4 --k-clusters 4 --top-p 0.5\n' >v2.txt
cp -r whole more
good $tiny --variants v2.txt --seeds 2 --baseline s30 -o more
check more '
assert len(log) == 20 and [r["variant"] for r in table][-1] == "s50" and rows["s50"]["n"] == 4
assert rows["s50"]["against"]["baseline"] == "s30" and rows["s50"]["against"]["psnr_gain"]["n"] == 4
assert "against" not in rows["s30"]
assert rows["s50"]["speedup"]["n"] == 0, "dense and s50 ran in different processes"
gain = [x["psnr"] - y["psnr"] for x in log for y in log if (x["prompt"], x["seed"]) == (y["prompt"], y["seed"])
        and x["variant"] == "s50" and y["variant"] == "s30"]
assert near(rows["s50"]["against"]["psnr_gain"]["mean"], sum(gain) / 4)
assert not rows["s50"]["against"]["at_same_density"]
'
good --report --baseline s -o more
check more '
assert "against" not in rows["s30"] and "against" not in rows["s50"]
assert rows["s60/reuse"]["against"]["at_same_density"] and rows["s60/reuse"]["against"]["psnr_gain"]["n"] <= 4
'

# shards: each does its own clips; together they are the whole
good $tiny --variants v.txt --seeds 2 --shard 0/3 -o parts
says "shard 0 of 3"
says "to do: 2 clips"
says "when all are: haste-eval --report -o parts"
test ! -e parts/table.json || fail "a shard wrote a table"
good $tiny --variants v.txt --seeds 2 --shard 2/3 -o parts
says "to do: 1 clip,"
good $tiny --variants v.txt --seeds 2 --shard 1/3 -o parts
good --report -o parts
values parts parts.txt
cmp -s whole.txt parts.txt || fail "shards differ from the whole"
python3 - <<'END' || fail "the merged table differs"
import json
def rows(d): return {r["variant"]: {k: v for k, v in r.items() if "second" not in k and k not in ("speedup", "warm")}
                     for r in json.load(open(d + "/table.json"))}
a, b = rows("whole"), rows("parts")
for v in a:
    for k in a[v]: # the order of clips, and so what is drawn, differs; means do not
        if isinstance(a[v][k], dict): assert a[v][k]["n"] == b[v][k]["n"] and (a[v][k]["mean"] is None or
                                      abs(a[v][k]["mean"] - b[v][k]["mean"]) < 1e-5 * abs(a[v][k]["mean"]) + 1e-9), (v, k)
        else: assert a[v][k] == b[v][k], (v, k)
END

# kill -9 in the middle, twice; then it is finished
for n in 3 8; do
    "$HASTE_EVAL" $tiny --variants v.txt --seeds 2 -o killed >out 2>err &
    pid=$!
    i=0
    until [ "$(cat killed/clips.jsonl 2>/dev/null | wc -l)" -ge $n ]; do
        kill -0 $pid 2>/dev/null || break
        i=$((i + 1))
        test $i -lt 6000 || fail "nothing was measured in 60 s"
        sleep 0.01
    done
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    pid=
done
printf '{"prompt":"torn' >>killed/clips.jsonl
good $tiny --variants v.txt --seeds 2 -o killed
values killed killed.txt
cmp -s whole.txt killed.txt || fail "after kill -9: $(diff whole.txt killed.txt)"

# Ctrl-C: says so, exits with 130, goes on later
"$HASTE_EVAL" $tiny --variants v.txt --seeds 2 -o stopped >out 2>err &
pid=$!
i=0
until [ "$(cat stopped/clips.jsonl 2>/dev/null | wc -l)" -ge 2 ]; do
    i=$((i + 1))
    test $i -lt 6000 || fail "nothing was measured in 60 s"
    sleep 0.01
done
kill -TERM $pid # INT is ignored in the background of a shell
wait $pid
same $? 130 "exit status after a signal"
pid=
says "stopping after this step"
test ! -e stopped/table.json || fail "a table of a run that was stopped"
good $tiny --variants v.txt --seeds 2 -o stopped
values stopped stopped.txt
cmp -s whole.txt stopped.txt || fail "after a signal"

# the file cannot grow: what is there stays good
(ulimit -f 3 && "$HASTE_EVAL" $tiny --variants v.txt --seeds 2 -o full) >out 2>err
same $? 1 "exit status with a full disk"
says "full/clips.jsonl"
good $tiny --variants v.txt --seeds 2 -o full
values full full.txt
cmp -s whole.txt full.txt || fail "after a full disk"

# parts of the measurement can be left out
good $tiny --variants v.txt --velocity-clips 1 --quiet -o partly
test ! -s err || fail "--quiet: $(cat err)"
check partly 'assert rows["s30"]["velocity_error"]["n"] == 1 and rows["s30"]["psnr"]["n"] == 2'

# what clips lack that were measured before stays so, and that is said
good $tiny --variants v.txt --side-by-side 1 -o partly
says "warning: partly: 3 results were measured before without velocity error and stay so: measure into another folder"
says "warning: partly: 3 results were measured before without video side by side"
good $tiny --variants v.txt --drift lack.csv -o whole
says "warning: whole: 2 results were measured before without drift"
! grep -q velocity err || fail "velocity errors that are there are missed"

# precision of its own, masks against drift, videos
cat >v3.txt <<'END'
x: --attention xattention --block 64 --stride 8 --top-p 0.5 --reuse none
same: --attention dense --precision fp32
END
good -m A --device ref --size 128x96 --frames 5 --steps 6 --prompts p.txt --max-prompts 1 --variants v3.txt \
    --drift d.csv --side-by-side 1 -o drift
check drift '
assert rows["same"]["identical"] == 1 and rows["same"]["what"] == "dense, fp32"
csv = [x.split(",") for x in open("d.csv").read().splitlines()]
assert csv[0] == "clip,variant,step,branch,layer,head,lag,drift,drift_before_rope,overlap".split(",")
# 2 branches x 2 layers x 2 heads, 5 pairs of neighbours and 2 pairs 4 steps apart
assert len(csv) == 1 + 8 * (5 + 2) and {x[6] for x in csv[1:]} == {"1", "4"}, len(csv)
assert all(float(x[7]) > 0 and float(x[8]) > 0 and 0 < float(x[9]) <= 1 for x in csv[1:])
assert any(x[7] != x[8] for x in csv[1:]), "the rotation changes the means"
assert "warning" not in open("err").read()
r = rows["x"]
assert r["rank_post_8"]["mean"] is None if "rank_post_8" in r else True
'
# killed between the rows and the result: they are not there twice
cp d.csv once.csv
sed -i '3,$d' drift/clips.jsonl
good -m A --device ref --size 128x96 --frames 5 --steps 6 --prompts p.txt --max-prompts 1 --variants v3.txt --drift d.csv -o drift
cmp -s d.csv once.csv || fail "rows of drift are there twice"
if [ "$HAVE_VIDEO" = 1 ] && command -v ffprobe >/dev/null; then
    same "$(frames_of drift/clip_000_x.mp4)" 5 "frames side by side"
    same "$(ffprobe -v error -show_entries stream=width -of csv=p=0 drift/clip_000_x.mp4 | head -1)" 260 "width"
    grep -q 'src="clip_000_x.mp4"' drift/report.html || fail "the page lacks the video"
else
    test -s drift/clip_000_x.y4m || fail "no y4m instead"
fi

# profiles: a variant for every budget
python3 - <<'END' || fail "writing a profile"
import json
sha = json.loads(open("whole/clips.jsonl").readline())["model"]
p = {"format": "haste-profile", "version": 1, "made": {"by": "eval.sh", "at": "today"},
     "model": {"name": "A", "sha256": sha, "layers": 2, "heads": 2},
     "made_for": {"width": 32, "height": 32, "frames": 5, "steps": 3, "shift": 3, "guidance": 5, "solver": "unipc"},
     "method": {"name": "svg2", "q_clusters": 4, "k_clusters": 4, "iters_first": 3, "iters_next": 1, "min_share": 0.1},
     "reuse": {"kind": "none"}, "dense": {"steps": 0, "layers": 0},
     "budgets": [{"target": 0.5, "top_p": [[0.3, 0.4], [0.3, 1]]}, {"target": 0.2, "top_p": [[1, 1], [0.9, 1]]}]}
json.dump(p, open("prof.json", "w"))
p["budgets"][0]["top_p"][0][0] = 0.35
json.dump(p, open("changed.json", "w"))
p["model"]["sha256"] = "0" * 64
json.dump(p, open("other.json", "w"))
END
good $tiny --max-prompts 1 --profile prof.json -o prof
check prof '
assert [r["variant"] for r in table] == ["dense", "prof/0.5", "prof/0.2"] and rows["prof/0.5"]["group"] == "prof"
assert rows["prof/0.5"]["density"]["mean"] < rows["prof/0.2"]["density"]["mean"] <= 1
'
cp prof.json whole.prof.json
cp changed.json prof.json
bad 2 "prof: prof/0.5 was measured as" $tiny --max-prompts 1 --profile prof.json -o prof
# settings that have no flag tell variants apart too; at their defaults they are not named, as ever
python3 - <<'END' || fail "writing profiles"
import json
p = json.load(open("whole.prof.json"))
p["method"].update(iters_first=50, iters_next=2)
p["reuse"] = {"kind": "drift", "delta": 8, "gate_low": 0.4, "gate_high": 0.8}
json.dump(p, open("usual.json", "w"))
for section, key, value in ("reuse", "gate_low", 0.3), ("reuse", "gate_high", 0.7), ("method", "min_share", 0.2), ("method", "iters_first", 3), ("method", "iters_next", 1):
    q = json.loads(json.dumps(p))
    q[section][key] = value
    json.dump(q, open(key + ".json", "w"))
END
cp usual.json prof.json
good $tiny --max-prompts 1 --profile prof.json -o usual
check usual 'assert not any(w in r["what"] for r in table for w in ("gates", "k-means", "share")), table'
for key in gate_low gate_high min_share iters_first iters_next; do
    cp $key.json prof.json
    bad 2 "usual: prof/0.5 was measured as" $tiny --max-prompts 1 --profile prof.json -o usual
done
bad 2 "other.json: made for A with sha256 0000000000000000" $tiny --profile other.json -o new

# refusals, before any work
bad 2 "steps" $tiny --variants v.txt --steps 2 -o whole
sed 's/0.3/0.35/' v.txt >changed.txt
bad 2 "whole: s30 was measured as" $tiny --variants changed.txt -o whole
echo '{"format":"haste-table","version":1}' >whole/a.table.jsonl # of haste-calibrate
good --report -o whole
rm whole/a.table.jsonl
bad 2 "--baseline s31: no variant" --report --baseline s31 -o whole
bad 2 "--baseline s31: no variant" $tiny --variants v.txt --seeds 2 --baseline s31 -o whole
bad 1 "nowhere" --report -o nowhere
mkdir empty
bad 2 "nothing was measured" --report -o empty
printf 'x --attention svg2\n' >v4.txt
bad 2 'v4.txt line 1: "x --attention svg2" should be' $tiny --variants v4.txt -o new
printf 'x: --attention svg2 --stride 8\n' >v4.txt
bad 2 "v4.txt line 1: x: --stride has no meaning" $tiny --variants v4.txt -o new
printf 'x: --attention xattention --dense-layers 3\n' >v4.txt
bad 2 "x: " $tiny --variants v4.txt -o new
printf 'x: --profile none.json\n' >v4.txt
bad 1 "none.json" $tiny --variants v4.txt -o new
printf 'x: --attention dense --precision bf17\n' >v4.txt
bad 2 "x: unknown precision 'bf17'" $tiny --variants v4.txt -o new
bad 1 "v9.txt: cannot read the variants" $tiny --variants v9.txt -o new
bad 2 "width 40: must be a multiple of 16" $tiny --variants v.txt --size 40x32 -o new
test ! -e new || fail "a refused run made a folder"
: >afile
bad 1 "afile" $tiny --variants v.txt -o afile
good --version
good --help
grep -q "A file of variants" out || fail "--help"
