# haste-calibrate as a user meets it: usage, a made-up table solved and shown, a tiny model measured for real, interrupted,
# continued, split and merged, and the profile used by haste-run.
. "$(dirname "$0")/lib.sh"
need python3

# cal ARGS...: like run, with haste-calibrate
cal() {
    "$HASTE_CALIBRATE" "$@" >out 2>err
    status=$?
    test "$status" -lt 128 || test "$status" = 130 || fail "haste-calibrate $* died with status $status"
}
cal_good() {
    cal "$@"
    test "$status" = 0 || fail "haste-calibrate $* gave $status"
}
cal_bad() {
    want=$1 text=$2
    shift 2
    cal "$@"
    test "$status" = "$want" || fail "haste-calibrate $* gave $status, not $want"
    says "$text"
    test ! -s out || fail "haste-calibrate $*: a failure has output: $(head -3 out)"
}
shows() {
    grep -qF -e "$1" out || fail "stdout lacks: $1 in $(head -40 out)"
}

# ---- usage
cal_good --help
shows "haste-calibrate measure -m DIR --prompts FILE --table FILE"
shows "--candidates P,P,.."
cal_good --version
shows "GPL-3"
cal_bad 2 "-m DIR is missing"
says "--help shows the options"
cal_bad 2 'unknown verb "mesure"' mesure
cal_bad 2 "did you mean --sparsity?" solve t -o p.json --sparsty 0.5
cal_bad 1 "none.jsonl" solve none.jsonl -o p.json
cal_bad 1 "create it first: mkdir -p nowhere" solve none.jsonl -o nowhere/p.json
cal_bad 1 "none.json" show none.json

# ---- a made-up table: 12 heads
"$GENTABLE" t.jsonl layers=4 heads=3 joints=5 floor=1000 || fail gentable
cal_good solve t.jsonl --sparsity 0.2,0.35,0.1 --match-top-p 0.9 -o p.json --report r.html
says "table: 288 probes of 12 heads, 8 thresholds, 3 step intervals; no device, fp32"
says "numeric floor 1e-06: an error counts as far as it is above"
says "all heads at top-p 0.9: sparsity"
says "not checked: with -m DIR"
says "p.json: 4 budgets; r.html"
test ! -s out || fail "solve wrote to stdout"
grep -q "Calibration of made-up" r.html || fail "no report"
python3 - <<'END' || fail "the profile"
import json
p = json.load(open("p.json"))
b = p["budgets"]
assert [x["target"] for x in b[:3]] == [0.2, 0.35, 0.1], [x["target"] for x in b]
for x in b:
    assert x["sparsity"] >= x["target"] - 1e-9 and x["bound"] <= x["error"] and x["gap"] <= 1e-4 and x["joint_error"] is None
    assert len(x["top_p"]) == 4 and all(len(r) == 3 for r in x["top_p"])
    assert all(v in [.5, .6, .7, .8, .85, .9, .95, .99, 1] for r in x["top_p"] for v in r)
s = sorted(b, key=lambda x: x["target"])
assert all(s[i]["error"] <= s[i + 1]["error"] for i in range(3)), "errors fall with sparsity"
c = p["calibration"]
assert c["candidates"] == [.5, .6, .7, .8, .85, .9, .95, .99] and c["intervals"] == [[0, 3], [4, 7], [8, 11]]
assert c["error"] == "plain" and p["made"]["by"].startswith("haste-calibrate ") and p["reuse"]["kind"] == "drift"
END
cal_good solve t.jsonl --sparsity 0.2 --error band --reuse none -q -o band.json
test ! -s err || fail "-q says: $(cat err)"
grep -q '"band"' band.json || fail "no band"
python3 -c 'import json; assert json.load(open("band.json"))["reuse"] == {"kind": "none"}' || fail "reuse"
# what is written replaces nothing that is read
cp t.jsonl keep.jsonl && cp p.json keep.json && ln -s t.jsonl link.jsonl
cal_bad 2 "-o t.jsonl would overwrite the table t.jsonl: name another file" solve t.jsonl --sparsity 0.1 -o t.jsonl
cal_bad 2 "-o ./link.jsonl would overwrite the table t.jsonl" solve t.jsonl --sparsity 0.1 -o ./link.jsonl
cal_bad 2 "--report t.jsonl would overwrite the table t.jsonl" solve t.jsonl --sparsity 0.1 -o x.json --report t.jsonl
cal_bad 2 "--report ./x.json would overwrite the profile x.json" solve t.jsonl --sparsity 0.1 -o x.json --report ./x.json
cal_bad 2 "-o t.jsonl would overwrite the table t.jsonl" report p.json --table t.jsonl -o t.jsonl
cal_bad 2 "-o p.json would overwrite the profile p.json" report p.json --table t.jsonl -o p.json
cmp -s t.jsonl keep.jsonl && cmp -s p.json keep.json || fail "a refused line changed what it reads"
cal_bad 2 "a mean sparsity of 0.95 cannot be reached: these measurements allow 0 to 0." solve t.jsonl --sparsity 0.95 -o x.json
cal_bad 2 "--match-top-p 0.91: the table has 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99" solve t.jsonl --match-top-p 0.91 -o x.json
test ! -e x.json || fail "a refused budget left a profile"

# a step of the made-up table takes 0.01 s + density x 0.01 s
cal_good solve t.jsonl --seconds 0.0175 -o sec.json
says "a step takes 0.01 s + density x 0.01 s (R squared 1.000 over 9 points)"
says "0.0175 s a step: sparsity 0.25"
cal_bad 2 "dense attention takes 0.02 s here" solve t.jsonl --seconds 0.03 -o x.json

cal_good show p.json
shows "made-up, 4 layers x 3 heads, xattention"
shows "budget 0.35"
shows " layer   0  1  2   mean"
test "$(grep -c 'budget' out)" = 4 || fail "four budgets, $(grep -c budget out) shown"
! grep -q "$(printf '\033')" out || fail "colours in a file"
cal_good show p.json --budget 0.35
test "$(grep -c '^budget' out)" = 1 || fail "one budget was asked for"
cal_bad 2 "no budget of sparsity 0.5" show p.json --budget 0.5
if command -v script >/dev/null; then
    TERM=xterm-256color COLORTERM= COLUMNS=80 script -qec "$HASTE_CALIBRATE show p.json" /dev/null >out 2>&1
    grep -q "$(printf '\033')\[48;5;" out || fail "no colours on a terminal"
    TERM=xterm-256color COLORTERM=truecolor script -qec "$HASTE_CALIBRATE show p.json" /dev/null >out 2>&1
    grep -q "$(printf '\033')\[48;2;" out || fail "no true colours"
    NO_COLOR=1 TERM=xterm-256color script -qec "$HASTE_CALIBRATE show p.json" /dev/null >out 2>&1
    ! grep -q "$(printf '\033')" out || fail "NO_COLOR"
fi
"$GENTABLE" wide.jsonl layers=2 heads=40 || fail gentable
cal_good solve wide.jsonl --sparsity 0.3 -o wide.json
says "numeric floor not measured"
COLUMNS=80 cal_good show wide.json
test "$(awk '{ if (length > m) m = length } END { print m }' out)" -le 125 || fail "budget lines too long"
test "$(grep -A3 '^budget' out | awk '{ if (length > m) m = length } END { print m }')" -le 80 || fail "the map is wider than 80"

# thresholds of their own in every step interval
cal_good solve t.jsonl --sparsity 0.2,0.35 --per-interval -o steps.json --report steps.html
says "warning: --per-interval chooses by 1 probe a number"
cal_good solve t.jsonl --sparsity 0.2,0.35 -o heads.json
! grep -q warning err || fail "a warning without --per-interval"
python3 - <<'END' || fail "thresholds per step interval"
import json
a, b = json.load(open("heads.json")), json.load(open("steps.json"))
assert a["version"] == 1 and b["version"] == 2
for x, y in zip(a["budgets"], b["budgets"]):
    assert y["until"] == [1 / 3, 2 / 3, 1] and len(y["top_p"]) == 3 and y["top_p"][0] != y["top_p"][2]
    assert all(len(t) == 4 and all(len(r) == 3 for r in t) for t in y["top_p"])
    assert y["error"] < x["error"] and y["sparsity"] >= y["target"] - 1e-9 and y["gap"] <= 1e-4
END
sed '1s/"sigmas":-1/"sigmas":1/' t.jsonl >sigmas.jsonl
cal_good solve sigmas.jsonl --sparsity 0.2 -o sigmas.json
python3 -c 'import json; p = json.load(open("sigmas.json")); assert p["version"] == 3 and p["made_for"]["sigmas"] == "B"' || fail "sigmas"
if python3 -c 'import jsonschema' 2>/dev/null; then
    python3 - "$SOURCE_ROOT" <<'END' || fail "profiles and their schema disagree"
import glob, json, sys, jsonschema
root = sys.argv[1]
check = jsonschema.Draft202012Validator(json.load(open(root + "/data/profile.schema.json"))).validate
for f in ["heads.json", "steps.json", "sigmas.json"] + glob.glob(root + "/data/profiles/*.json") + glob.glob(root + "/tests/unit/profiles/*.json"):
    check(json.load(open(f)))
p = json.load(open("steps.json"))
for wrong in ({"version": 1}, {"version": 3}, {"budgets": [{**p["budgets"][0], "until": [0.5, 1.5]}]}, {"budgets": [{"target": 0.5, "top_p": p["budgets"][0]["top_p"]}]}):
    try: check({**p, **wrong})
    except jsonschema.ValidationError: continue
    raise SystemExit("accepted: %s" % str(wrong)[:100])
END
fi
cal_good show steps.json --budget 0.35
test "$(grep '^steps [0-9]' out | tr '\n' ';')" = "steps 0 to 3 of 12;steps 4 to 7 of 12;steps 8 to 11 of 12;" || fail "intervals: $(cat out)"
test "$(grep -c 'two digits of top-p' out)" = 1 || fail "one legend is enough"
grep -q "Threshold p, budget 0.2, steps 4 to 7" steps.html || fail "no map of an interval"
grep -q "p per head and step interval" steps.html || fail "no curve of intervals"
cal_good compare heads.json steps.json --table t.jsonl
shows "target A  target B  thresholds    equal  or next  A: sparsity  error  B: sparsity  error   B / A"
test "$(awk 'NR > 3 && $3 == 36 && $NF < 1' out | wc -l)" = 2 || fail "compare: $(cat out)"
cal_good compare heads.json heads.json
test "$(awk 'NR > 3 && $3 == 12 && $4 == 100' out | wc -l)" = 2 || fail "compare with itself: $(cat out)"
cal_good compare heads.json p.json
test "$(awk 'NR > 3 && $1 == $2 && $4 == 100' out | wc -l)" = 2 || fail "compare by target: $(cat out)"
"$GENTABLE" third.jsonl layers=4 heads=3 sha=6 || fail gentable
cal_good solve third.jsonl --sparsity 0.2,0.35 -o third.json
cal_bad 2 "profiles of two models" compare heads.json third.json

# ---- tables that are not what they should be
{ cat t.jsonl && sed -n 's/"prompt":0,\(.*"layer":0,"head":0,\)/"prompt":1,\1/p' t.jsonl; } >more.jsonl
cal_good solve more.jsonl --sparsity 0.2 -o more.json
says "warning: some heads have 1 probe at each threshold and step interval, others 2: measuring is not finished"
cal_good solve t.jsonl --sparsity 0.2 -o more.json
! grep -q "not finished" err || fail "a complete table is said not to be"
"$GENTABLE" cut.jsonl layers=4 heads=3 miss=1 || fail gentable
cal_bad 2 "the table is not complete: 1 of 36 pairs of head and step interval lack probes" solve cut.jsonl --sparsity 0.2 -o x.json
"$GENTABLE" other.jsonl layers=4 heads=3 sha=8 || fail gentable
cal solve t.jsonl other.jsonl --sparsity 0.2 -o x.json
test "$status" != 0 || fail "tables of two models were merged"
says "sha256"
cal_bad 2 "was not made with this table" report p.json --table other.jsonl -o x.html
sed '1s/"width":64/"width":80/' t.jsonl >wider.jsonl
cal_bad 2 "was not made with this table: its made_for.width is 64, that of the table 80" report p.json --table wider.jsonl -o x.html
cal_good compare heads.json steps.json --table wider.jsonl
sed '1s/"stride":16/"stride":8/' t.jsonl >stride.jsonl
cal_bad 2 "was not made with this table: its method.stride is 16, that of the table 8" compare heads.json steps.json --table stride.jsonl
cal_bad 2 "was not made with this table" compare heads.json steps.json --table wide.jsonl
echo "not a table" >bad.jsonl
cal solve bad.jsonl --sparsity 0.2 -o x.json
test "$status" != 0 || fail "text was taken for a table"
cal_bad 1 "/dev/full" report p.json --table t.jsonl -o /dev/full
test -c /dev/full || fail "/dev/full is gone"
test ! -e x.json && test ! -e x.html || fail "a failure left files"

# ---- a tiny model for real
model A
printf 'a red circle\na blue square\n' >cal.txt
printf 'a green ring\n# none\na star\n' >held.txt
tiny="-m A --device ref --size 32x32 --frames 5 --steps 4 --prompts cal.txt --intervals 2 --candidates 0.2,0.5,0.9
      --method svg2 --q-clusters 4 --k-clusters 4 --seed 3"
cal_good $tiny --table one.jsonl -o one.json --match-top-p 0.5 --dry-run
shows "work     24 probes (0 of them are in one.jsonl), 2 dense generations"
shows "times fewer than a dense and a sparse one for each probe"
shows "sparse   svg2, 4 query and 4 key clusters"
test ! -e one.jsonl && test ! -e one.json || fail "--dry-run wrote"
cal_good $tiny --held-out held.txt --table one.jsonl -o one.json --match-top-p 0.5 --sparsity 0.3 --random 2 --report one.html
says "probing 24/24"
says "measuring jointly"
says "joint error   predicted  calibration  held-out"
says "one.json: 2 budgets; one.html"
python3 - <<'END' || fail "joint errors"
import json
for b in json.load(open("one.json"))["budgets"]: assert b["joint_error"] > 0, b
END
grep -q "random thresholds" one.html || fail "random configurations are not in the report"
cp one.json first.json
cal_good $tiny --held-out held.txt --table one.jsonl -o one.json --match-top-p 0.5 --sparsity 0.3 --random 2
says "work     24 probes (24 of them are in one.jsonl), 0 dense generations"
python3 - <<'END' || fail "a rerun chose something else"
import json
a, b = json.load(open("first.json")), json.load(open("one.json"))
assert a["budgets"] == b["budgets"] and a["calibration"] == b["calibration"]
END
# held-out prompts in another order are the same ones, and those left out do not count
grep -v '#' held.txt | sort -r >turned.txt
cp one.jsonl before.jsonl
cal_good solve one.jsonl -m A --prompts cal.txt --held-out turned.txt --device ref --match-top-p 0.5 --sparsity 0.3 -o turned.json
cmp -s one.jsonl before.jsonl || fail "prompts in another order were measured again"
cal_good solve one.jsonl -m A --prompts cal.txt --held-out turned.txt --max-held-out 1 --device ref --match-top-p 0.5 --sparsity 0.3 -o star.json
python3 - <<'END' || fail "joint errors of other held-out prompts"
import hashlib, json
def joint(f): return [b["joint_error"] for b in json.load(open(f))["budgets"]]
assert all(abs(x - y) < 1e-9 * y for x, y in zip(joint("turned.json"), joint("one.json")))
text = hashlib.sha256(b"a star\n").hexdigest()[:16]
seen = {}
for l in open("one.jsonl").read().splitlines()[1:]:
    j = json.loads(l).get("joint")
    if j and j["text"] == text and j["config"]: seen.setdefault(j["config"], []).append(j["error"])
means = [sum(v) / len(v) for v in seen.values()]
assert all(any(abs(x - m) < 1e-6 * m for m in means) for x in joint("star.json")), (joint("star.json"), means)
END
# a profile that was measured on calibration prompts only, in a table with held-out ones of another
cal_good solve one.jsonl -m A --prompts cal.txt --device ref --sparsity 0.1 -o seen.json --report seen.html
python3 - <<'END' || fail "the page hides what was measured"
import re
text = open("seen.html").read()
row = [re.sub("<[^>]*>", "", c) for c in re.findall("<t[hd][^>]*>(.*?)</t[hd]>", re.search("<tr><t[hd][^>]*>0.1</.*?</tr>", text).group())]
assert float(row[6]) > 0 and float(row[8]) > 0, row
assert "on calibration prompts" in text and "on held-out prompts" not in text
assert "on held-out prompts" in open("one.html").read()
END
cal_good $tiny --held-out held.txt --table one.jsonl -o fine.json --match-top-p 0.5 --sparsity 0.3 --random 2 --refine 2
says "round 1"
says "configurations: measured / predicted"
python3 - <<'END' || fail "refining made a budget worse on held-out prompts"
import json
for a, b in zip(json.load(open("one.json"))["budgets"], json.load(open("fine.json"))["budgets"]):
    assert b["joint_error"] <= a["joint_error"] and b["sparsity"] >= a["target"] - 1e-6 and b["target"] == a["target"]
END
cal_good solve one.jsonl -m A --prompts cal.txt --held-out held.txt --sparsity 0.3 --random 2 --refine 1 --per-interval --device ref -o steps.json
says "configurations: measured / predicted"
python3 - <<'END' || fail "thresholds per step interval"
import json
b, = json.load(open("steps.json"))["budgets"]
assert b["joint_error"] > 0 and b["until"] == [0.5, 1] and b["top_p"][0] != b["top_p"][1], b
END
# a prompt that is there twice counts once
printf 'a red circle\na blue square\n  a red circle\n' >twice.txt
printf 'a star\na green ring\na star\n' >held2.txt
cp one.jsonl before.jsonl
cal_good $tiny --prompts twice.txt --held-out held2.txt --table one.jsonl -o twice.json --match-top-p 0.5 --sparsity 0.3
says "warning: twice.txt: 1 of 3 prompts are there before and left out"
says "warning: held2.txt: 1 of 3 prompts are there before and left out"
cmp -s one.jsonl before.jsonl || fail "a repeated prompt was measured"
# a table with a negative prompt of its own is checked with the same
cal_good measure $tiny -n dull --table dull.jsonl
cal_bad 2 "dull.jsonl was measured with other prompts: give --prompts, --max-prompts and --negative as they were" \
    solve dull.jsonl -m A --prompts cal.txt --device ref --match-top-p 0.5 -q -o dull.json
cal_good solve dull.jsonl -m A --prompts cal.txt -n dull --device ref --match-top-p 0.5 -o dull.json
says "joint error   predicted  calibration"
cal measure $tiny --table one.jsonl --dense-steps 1
test "$status" != 0 || fail "a table of other settings was continued"
cal_bad 2 "holds a calibration prompt" $tiny --held-out cal.txt --table new.jsonl -o x.json

# two shards, as two machines would, are the same table
cal_good measure $tiny --table s0.jsonl --shard 0/2
cal_good measure $tiny --table s1.jsonl --shard 1/2
cal_good measure $tiny --table s.jsonl
cal_good solve s.jsonl --match-top-p 0.5 -o whole.json
cal_bad 2 "the table is not complete" solve s0.jsonl --match-top-p 0.5 -o x.json
cal_good solve s0.jsonl s1.jsonl --match-top-p 0.5 -o merged.json
python3 - <<'END' || fail "merged shards differ from one table"
import json
a, b = json.load(open("whole.json")), json.load(open("merged.json"))
assert a["budgets"] == b["budgets"] and a["calibration"] == b["calibration"], (a["calibration"], b["calibration"])
END

# Ctrl-C: 130, and the same command ends as if nothing had been
"$HASTE_CALIBRATE" measure $tiny --table int.jsonl >out 2>err &
pid=$!
wait_for "probing" err
kill -INT "$pid"
wait "$pid"
status=$?
pid=
if [ "$status" = 0 ]; then # it was faster than the signal
    echo "note: Ctrl-C came too late"
else
    test "$status" = 130 || fail "Ctrl-C gave $status"
    says "interrupted"
fi
cal_good measure $tiny --table int.jsonl
cal_good solve int.jsonl --match-top-p 0.5 -o int.json
python3 - <<'END' || fail "after Ctrl-C and a rerun the table differs"
import json
a, b = json.load(open("whole.json")), json.load(open("int.json"))
assert a["calibration"]["table_sha256"] == b["calibration"]["table_sha256"]
END

# haste-run uses it
good -m A --device ref --size 32x32 --frames 5 --steps 4 --seed 7 -p a -o null: --profile one.json --budget 0.3 --reuse none --stats s.json
python3 - <<'END' || fail "haste-run did not use the thresholds"
import json
s, p = json.load(open("s.json")), json.load(open("one.json"))
b = [x for x in p["budgets"] if x["target"] == 0.3][0]
assert s["profile"]["budget"] == 0.3
got = 1 - s["density"]
assert abs(got - b["sparsity"]) < 0.2, (got, b["sparsity"])
END
good -m A --device ref --size 32x32 --frames 5 --steps 4 --seed 7 -p a -o null: --profile steps.json --reuse freeze --stats s.json
says "per head and in 2 step intervals"
python3 - <<'END' || fail "haste-run did not change thresholds with the step"
import json
s, b = json.load(open("s.json")), json.load(open("steps.json"))["budgets"][0]
a = s["attention_settings"]
assert a["top_p"] == "per head and step interval" and a["interval_starts"] == [0, 2], a
for c in s["calls"]:
    p = b["top_p"][c["step"] // 2][c["layer"]]
    new = c["step"] == 0 or (c["step"] == 2 and b["top_p"][0][c["layer"]] != b["top_p"][1][c["layer"]])
    assert all(m == ("predicted" if new else "reused") for m in c["mask"]), c
    assert all((d == 1) == (q == 1) or q > 0.8 for d, q in zip(c["density"], p)), (c, p)
END
good -m A --device ref --size 32x32 --frames 5 --steps 2 --seed 7 -p a -o null: --profile steps.json
says "thresholds change at step 1"
