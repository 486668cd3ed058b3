# The page of haste-calibrate: self-contained, well-formed, nothing outside its frame, light and dark in a real browser.
. "$(dirname "$0")/lib.sh"
need python3
"$GENTABLE" t.jsonl layers=10 heads=3 joints=24 floor=2000 || fail gentable
"$HASTE_CALIBRATE" solve t.jsonl --sparsity 0.3,0.4,0.5 --match-top-p 0.9 -o p.json --report r.html -q 2>err || fail solve
"$HASTE_CALIBRATE" solve t.jsonl --sparsity 0.3,0.4 --per-interval -o i.json --report i.html -q 2>err || fail "solve --per-interval"
"$GENTABLE" big.jsonl layers=40 heads=40 || fail gentable
"$HASTE_CALIBRATE" solve big.jsonl --sparsity 0.4 -o big.json -q 2>err || fail "solve big"
"$HASTE_CALIBRATE" report big.json --table big.jsonl -o big.html -q 2>err || fail "report big"

# no address, no script, every element closed, every figure described, each head in each map
python3 - <<'END' || fail "the page as text"
import html.parser, re
void = {"meta", "link", "br", "img", "input", "hr"}
class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__(); self.open = []; self.svg = 0; self.cells = 0; self.titles = 0
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        assert tag not in ("script", "link", "iframe", "img"), tag
        assert not any(k.startswith("on") or k in ("src", "href") for k in a), (tag, a)
        if tag == "svg" and a.get("role") == "img": self.svg += 1; assert len(a["aria-label"]) > 10
        elif tag == "svg": assert a.get("aria-hidden") == "true"
        if tag == "rect" and "cell" in a.get("class", ""): self.cells += 1
        if tag == "title": self.titles += 1
        for k in ("x", "y", "cx", "cy", "width", "height", "d", "points"):
            assert "nan" not in a.get(k, "") and "inf" not in a.get(k, ""), (tag, a)
        if tag not in void: self.open.append(tag)
    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in void: self.open.pop()
    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag
for name, heads, maps in (("r.html", 30, 3), ("i.html", 30, 5), ("big.html", 1600, 3)):
    text = open(name, encoding="utf-8").read()
    assert not re.search(r"https?://|@import|url\(", text), name
    p = Page(); p.feed(text); p.close()
    assert not p.open, p.open
    assert p.cells == maps * heads, (name, p.cells)
    assert p.svg >= 5 and p.titles > maps * heads
    assert text.count("<h2>") >= 4
text = open("r.html", encoding="utf-8").read()
for part in ("budgets of the profile", "all heads at one p", "random thresholds", "rank correlation", "numeric floor",
             "prefers-color-scheme:dark", "calibration prompts", "0.3000"):
    assert part in text, part
END

browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
    echo "skipped: the page was read, but there is no Chromium to draw it"
    exit 77
}
need ffmpeg
# Elements that stick out of the window or of their figure are counted by a script that only this test adds.
measure='<script>
let w = document.documentElement.scrollWidth - window.innerWidth, out = 0;
for (const s of document.querySelectorAll("figure>svg")) {
  const f = s.getBoundingClientRect();
  for (const t of s.querySelectorAll("text,rect,circle")) {
    const b = t.getBoundingClientRect();
    if (b.width && (b.left < f.left - 1 || b.right > f.right + 1 || b.top < f.top - 1 || b.bottom > f.bottom + 1)) out++;
  }
}
document.body.dataset.result = "wide " + Math.max(0, w) + " out " + out;
</script>'
draw() { # draw PAGE PNG FLAGS...
    page=$1 png=$2
    shift 2
    HOME=$tmp timeout 90 "$browser" --headless=new --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$tmp/browser" \
        "$@" --screenshot="$png" "file://$tmp/$page" >browser.log 2>&1 || fail "the browser: $(tail -3 browser.log)"
    test -s "$png" || fail "no picture: $(tail -3 browser.log)"
}
brightness() {
    ffmpeg -v error -i "$1" -vf scale=1:1:flags=area -f rawvideo -pix_fmt gray - | od -An -tu1 | tr -d ' \n'
}
for page in r i big; do
    { cat $page.html; echo "$measure"; } >$page.test.html
    for width in 1280 420; do
        HOME=$tmp timeout 90 "$browser" --headless=new --no-sandbox --disable-gpu --user-data-dir="$tmp/browser" \
            --window-size=$width,900 --dump-dom "file://$tmp/$page.test.html" >dom 2>browser.log || fail "the browser: $(tail -3 browser.log)"
        grep -o 'data-result="[^"]*"' dom >result || fail "the page did not load"
        test "$(cat result)" = 'data-result="wide 0 out 0"' || fail "$page at $width pixels: $(cat result)"
    done
done
draw r.html light.png --window-size=1280,2400
draw r.html dark.png --window-size=1280,2400 --blink-settings=preferredColorScheme=0
light=$(brightness light.png) dark=$(brightness dark.png)
test "$light" -gt 200 || fail "the light page has brightness $light"
test "$dark" -lt 60 || fail "the dark page has brightness $dark"
