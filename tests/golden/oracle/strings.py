"""The strings of the tokenizer tests, and the text that the small spiece.model is trained on."""
import itertools

NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)

COLOURS = "red green blue yellow orange purple white black gray brown pink cyan teal navy maroon golden silver".split()
SHAPES = "circle square triangle star ring cube sphere cat dog bird car boat house tree river mountain".split()
MOTIONS = ["moves to the left", "moves to the right", "bounces up and down", "spins slowly", "grows", "shrinks",
           "orbits the centre", "runs across a snowy field", "floats in the evening sky", "drives through the rain"]
PLACES = ["on a plain white background", "over a calm blue sea at sunset", "in a crowded market street",
          "under a starry sky, cinematic lighting", "in a cosy kitchen, shallow depth of field", "on a wooden table"]
STYLES = ["photorealistic, 4k, highly detailed", "watercolour painting", "hand-drawn animation", "35mm film grain",
          "camera pans slowly from left to right", "close-up shot; the subject's eyes are bright"]

OTHER = [
    NEGATIVE,
    "一只猫在雪地里奔跑，镜头缓慢推进。", "两只拟人化的猫穿着舒适的拳击装备，在聚光灯照亮的舞台上激烈地战斗。", "夕阳下的海边，一位老人牵着狗散步，电影质感。",
    "赤い風船が青い空へゆっくりと昇っていく。", "雪の降る夜、街灯の下で猫が眠っている。", "파란 하늘 아래에서 강아지가 달린다.", "비 오는 거리에서 우산을 쓴 사람.",
    "Рыжая кошка бежит по заснеженному полю.", "Красный шар медленно поднимается в небо.", "Ein roter Ball rollt über die Straße, während es regnet.",
    "Der Himmel färbt sich orange; die Möwen kreisen über dem Hafen.", "Un chat noir traverse la forêt enneigée à l'aube.",
    "L'été, des enfants jouent près de la rivière.", "Un barco pequeño cruza el océano al amanecer, ¡qué belleza!", "قطة سوداء تجري في الثلج", "कुत्ता मैदान में दौड़ता है",
    "Η γάτα κοιμάται στον ήλιο.", "คนเดินอยู่ริมทะเล", "Con mèo đen chạy trên tuyết trắng.",
    "A wide shot of a city at night: neon signs, wet asphalt, reflections; slow dolly-in, f/1.8, 24 fps.",
    "The quick brown fox jumps over the lazy dog while 1234567890 people watch from 42 windows.",
]


def corpus():
    for c, s, m, p in itertools.product(COLOURS, SHAPES, MOTIONS[::3], PLACES[::2]):
        yield f"A {c} {s} {m} {p}."
    for c, s, m, st in itertools.product(COLOURS[::2], SHAPES[::2], MOTIONS, STYLES):
        yield f"The small {c} {s} {m}, {st}"
    for text in OTHER * 40:
        yield text


# Groups name a rule, so that a failure says which one. The last two are what the engine leaves out on purpose: entity
# names beyond HTML 4 (and ftfy's upper-case ones), and the repair of mojibake.
GROUPS = {
    "plain": [
        "", " ", "a", "A", ".", "a red circle", "A red circle moves to the right on a white background.",
        "two   spaces", " leading", "trailing ", "\ttab\tseparated\t", "line\nbreak", "two\n\nlines\n", "x" * 40,
        "1234567890 3.14159 -1e-6", "C:\\path\\to\\file", "https://example.org/?q=1&r=2#top", "e-mail: someone@example.org",
        "snake_case CamelCase kebab-case", "(parentheses) [brackets] {braces} <angles>", "50% off!!! ### $100 ^caret^ ~tilde~ `tick`",
        "A wide shot of a city at night: neon signs, wet asphalt; slow dolly-in, f/1.8, 24 fps.", "don't won't can't it's",
        "\"quoted\" and 'single'", "A/B\\C|D", "a,b;c:d", "zzzzqqqqxxxxjjjj", "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz",
    ],
    "languages": [t for t in OTHER if t != NEGATIVE] + [
        "混合 English 和 中文 and 日本語 テキスト", "ελληνικά", "עברית", "ไทย", "ქართული", "አማርኛ", "རྒྱ་མཚོ", "Ελλάδα Россия 中国 日本 한국",
        "ﺍﻟﻌﺮﺑﻴﺔ", "naïve café résumé Ångström øre ß ŒŠŽ", "Zażółć gęślą jaźń", "Pčlařův tučňák ďábelské ódy", "ıİiI ǅ ǆ",
    ],
    "negative": [NEGATIVE, "镜头晃动，" + NEGATIVE, "镜头切换，" + NEGATIVE, NEGATIVE[:20], "，，，", "。、【】《》「」"],
    "full_width": [
        "ＡＢＣ ａｂｃ １２３", "！＂＃＄％＆＇（）＊＋，－．／", "：；＜＝＞？＠［＼］＾＿｀｛｜｝～", "full　width　space", "　　", "ｶﾀｶﾅ ﾊﾝｶｸ", "ｶﾞｷﾞﾊﾟ", "￠￡￥￦￢￣￤",
        "￨￩￪￫￬￭￮", "ￜﾡﾾ", "ｆｕｌｌ，ｗｉｄｔｈ．", "｟brackets｠", "a　b", "１＋１＝２",
    ],
    "quotes": [
        "“double” ‘single’", "‚low‘ „low“", "‛reversed’", "‟reversed”", "it’s", "‹angle› «angle»", "5′ 11″", "``tick''", "´acute´ `grave`",
        "“nested ‘quotes’”", "ʼn ʼ ʻ", "＂full＂ ＇full＇", "rock ’n’ roll",
    ],
    "ligatures": ["ﬁ ﬂ ﬀ ﬃ ﬄ ﬅ ﬆ", "eﬃcient ﬁlm ﬂow", "ĳ Ĳ", "Ǆ ǅ ǆ Ǉ ǈ ǉ Ǌ ǋ ǌ Ǳ ǲ ǳ", "ŉ", "æ œ Æ Œ", "ﬓ ﬔ", "ﷺ"],
    "entities": [
        "&amp;", "&amp;amp;", "&amp;amp;amp;", "&lt;b&gt;", "a &lt; b &amp;&amp; c &gt; d", "&quot;x&quot;", "&#39;x&#39;", "&#x27;", "&#65;&#x42;", "&nbsp;x&nbsp;",
        "&copy; &reg; &trade;", "&hellip;", "&eacute;&Eacute;", "&euro;5", "&notanentity;", "&amp", "&lt", "&copy 2020", "&notin;", "&#0;",
        "&#128;", "&#x110000;", "&#xD800;", "&#150;", "&#x1F600;", "&;", "&#;", "&#x;", "& amp;", "AT&T", "R&D; x", "&rarr;&larr;", "<p>&amp;</p>", "<b>bold</b> &lt;",
        "&ldquo;x&rdquo;", "&#9;tab", "&#10;line", "&#13;", "&#65292;", "&thinsp;&zwj;", "&lang;x&rang;", "&amp;lt;", "&Scaron;&scaron;",
        "&#8220;x&#8221;", "&#00065;", "&#X41;", "&lt;&lt;", "&apos;", "&hearts", "&gtx", "&ampx",
    ],
    "line_breaks": ["a\r\nb", "a\rb", "a\n\rb", "a\u2028b", "a\u2029b", "a\vb", "a\fb", "a\x1cb\x1db\x1eb\x1fb", "\r\n", "a\r\n\r\nb"],
    "spaces": [
        "a\u00a0b", "a\u2003b\u2009c", "a\u200ab\u202fc\u205fd", "a\u3000b", "a\u1680b", "a\u180eb", "a\u200bb", "a\u2060b", "\ufeffbom", "a\ufeffb", "\u00a0", "\u2002x\u2002",
        "a \u00a0 b", "a\u00adb",
    ],
    "controls": [
        "a\x01\x02b", "a\x07b", "a\x08b", "a\x0eb", "a\x1b[31mred\x1b[0m", "a\x1b[1;32;40mx\x1b[K", "a\x7fb", "a\u200eb\u200fc", "a\u202ab\u202cc", "a\u206ab\u206fc",
        "a\ufff9b\ufffac\ufffb", "a\ufffcb", "a\ufffdb", "a\ue000b", "a\U000f0000b", "\x1b", "a\x1bb", "a\u2066b\u2069c", "a\ufffeb", "a\U000e0001b",
    ],
    "c1": ["a\x85b", "a\x80b", "\x93quoted\x94", "a\x96b", "a\x9fb", "a\x81b"],
    "combining": [
        "e\u0301", "o\u0308 a\u030a", "n\u0303", "\u1100\u1161\u11a8", "가각", "q\u0307\u0323", "q\u0323\u0307", "a\u0315\u0300\u05ae\u0062", "\u0344", "\u212b \u2126 \u212a", "\u0958", "\u2adc",
        "\u1e9b\u0323", "x\u0338", "\u0301", " \u0301a", "か\u3099", "ハ\u309a", "\u0f73", "D\u0307\u0323", "\uf900", "e\u0301\u0302\u0303\u0304\u0305",
    ],
    "symbols": [
        "…", "a — b – c", "™ ® ©", "① ② ㈱ ㎏", "½ ⅓ x² H₂O", "№ ℃ ℉ ℓ", "→ ← ↑", "♥ ★ ☆", "€ £ ¥", "√2 ≠ ∞ ± × ÷", "𝐁𝐨𝐥𝐝 𝒮𝒸𝓇", "ℋello", "Ⅳ ⅻ", "㍿ ㋿", "‼ ⁇", "·•‧", "¿ ¡", "§ ¶ †",
    ],
    "emoji": [
        "😀", "a 😀 b", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪🇯🇵", "❤️", "☃︎", "1️⃣", "🏳️‍🌈", "🧑🏿‍🚀 in space 🚀", "🫠🪿", "😀😀😀",
    ],
    "special_tokens": ["</s>", "<pad>", "<unk>", "<s>", "a </s> b", "<extra_id_0>", "<0x41>", "<0xE4>", "▁", "a▁b", "▁▁a", "[CLS] <mask>", "<|endoftext|>"],
    "unseen": ["龘靐齉", "𠀀𠮷", "ꙮ", "ᚠᚢᚦ", "𓀀", "a龘b", "龘 a 靐", "\u0378"],
    "long": [
        "red " * 600, "色" * 700, "a red circle moves to the right " * 90, "x" * 3000, "😀" * 200, " ".join(str(i) for i in range(400)), NEGATIVE * 8, "龘" * 171,
    ],
    "rare_entities": ["&EACUTE;", "&fflig;", "&NotEqualTilde;", "&Zopf;"],
    "mojibake": ["schÃ¶n", "Ã©tÃ©", "itâ€™s", "â€œquotedâ€\x9d", "ä¸­æ–‡", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "Â©", "naÃ¯ve cafÃ©", "âœ” done"],
}


def cases():
    for group, texts in GROUPS.items():
        for text in texts:
            yield group, text
