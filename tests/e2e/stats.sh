# --stats: valid JSON with the fields of the contract, and numbers that can be true.
. "$(dirname "$0")/lib.sh"
need python3
model A
good $small -p 'a "red" circle \ ü' -o null: --stats s.json --seed 18446744073709551615
python3 - <<'END' || fail "s.json: $(cat s.json)"
import json
s = json.load(open("s.json", encoding="utf-8"))
want = {"attention": "dense", "seed": 18446744073709551615, "width": 32, "height": 32, "frames": 5, "steps": 3,
        "fps": 16, "solver": "unipc", "density": 1, "reuse_rate": 0, "profile": None, "prompt": 'a "red" circle \\ ü',
        "truncated": False, "output": "null:"}
for k, v in want.items():
    assert s[k] == v, (k, s[k])
assert s["device"].startswith("ref"), s["device"]
assert len(s["model"]) == 64
sec = s["seconds"]
assert set(sec) == {"load", "text", "denoise", "decode", "encode", "total"}, sec
assert all(v >= 0 for v in sec.values()) and sec["denoise"] > 0 and sec["decode"] > 0
assert abs(sum(sec.values()) - 2 * sec["total"]) < 0.2 * sec["total"] + 0.05, sec
assert s["peak_bytes"]["host"] > 1e6 and s["peak_bytes"]["device"] > 1e5
by = s["device_bytes_by_stage"]
assert set(by) == {"load", "text", "denoise", "decode"} and all(v > 1e5 for v in by.values()), by
assert max(by.values()) == s["peak_bytes"]["device"] and by["text"] != by["denoise"], by
assert [r["step"] for r in s["per_step"]] == [0, 1, 2]
assert abs(sum(r["seconds"] for r in s["per_step"]) - sec["denoise"]) < 0.05
assert [r["layer"] for r in s["per_layer"]] == [0, 1]
for r in s["per_step"] + s["per_layer"]:
    assert r["density"] == 1 and r["reuse_rate"] == 0
END
bad 1 "--stats" $small -p a -o null: --stats no/folder/s.json
