"""The demo's small language: what a clip may show, and how a caption says it.

A clip is a Spec: one or two objects (colour, shape, motion) over a background (pattern, colour).
`caption` writes a Spec down in one of several ways, `parse` reads a caption back. Some Specs are
never trained on (`held_out`); the prompt files are drawn from those only.

    python3 grammar.py ../../prompts      writes the prompt files
"""
import argparse
import random
import zlib
from dataclasses import dataclass
from pathlib import Path

OBJECT_COLORS = {
    "red": (228, 32, 38), "orange": (255, 140, 20), "yellow": (250, 225, 40), "green": (30, 160, 60),
    "blue": (35, 75, 230), "purple": (150, 45, 190), "white": (250, 250, 250), "black": (15, 15, 15),
}
# Background colours that no object can have. "Easy" prompts use only these.
NEUTRAL_COLORS = {
    "gray": (128, 128, 128), "brown": (120, 80, 50), "navy": (25, 30, 90),
    "teal": (0, 125, 125), "beige": (225, 205, 165), "pink": (245, 170, 190),
}
COLORS = {**OBJECT_COLORS, **NEUTRAL_COLORS}
SHAPES = ["circle", "square", "triangle", "star", "ring", "cross"]
PATTERNS = ["plain", "striped", "checkered", "gradient"]
# motion -> [(progressive, finite), ...]
MOTIONS = {
    "right": [("moving from left to right", "moves from left to right"), ("moving to the right", "moves to the right"), ("sliding right", "slides right")],
    "left": [("moving from right to left", "moves from right to left"), ("moving to the left", "moves to the left"), ("sliding left", "slides left")],
    "up": [("moving up", "moves up"), ("rising", "rises")],
    "down": [("moving down", "moves down"), ("falling", "falls")],
    "grow": [("growing", "grows"), ("getting bigger", "gets bigger")],
    "shrink": [("shrinking", "shrinks"), ("getting smaller", "gets smaller")],
    "spin": [("spinning", "spins"), ("rotating", "rotates")],
    "orbit": [("orbiting", "orbits"), ("moving around in a loop", "moves around in a loop")],
    "bounce": [("bouncing", "bounces"), ("bouncing up and down", "bounces up and down")],
}
MOTION_NAMES = list(MOTIONS)
PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
PLACE_NAMES = list(PLACES)
ROUND = {"circle", "ring"}                                  # these cannot be seen spinning
HELD_PAIRS = {("green", "star"), ("red", "ring"), ("white", "circle")}   # never in training
FRAMES, SIZE, FPS = 33, 256, 16


@dataclass(frozen=True)
class Obj:
    color: str
    shape: str
    motion: str
    place: str = ""        # "" for a lone object; otherwise the half of the picture it lives in


@dataclass(frozen=True)
class Spec:
    objects: tuple
    pattern: str
    bg: str


def shade(name):
    """The second tone of a patterned background."""
    rgb = COLORS[name]
    if sum(rgb) > 300:
        return tuple(v * 0.76 for v in rgb)
    return tuple(v * 0.76 + 255 * 0.24 for v in rgb)


def visible(color, bg):
    """An object must stand out against both tones of its background."""
    c = COLORS[color]
    return all(sum((a - b) ** 2 for a, b in zip(c, t)) ** 0.5 > 100 for t in (COLORS[bg], shade(bg)))


def held_out(spec):
    if any((o.color, o.shape) in HELD_PAIRS for o in spec.objects):
        return True
    key = " ".join(f"{o.color} {o.shape} {o.motion} {o.place}" for o in spec.objects) + f" {spec.pattern} {spec.bg}"
    return zlib.crc32(key.encode()) % 8 == 0


def draw_spec(rng, pair=None, collide=None):
    """A random Spec. collide: is the background colour also the name of an object colour?"""
    pair = rng.random() < 0.55 if pair is None else pair
    collide = rng.random() < 0.5 if collide is None else collide
    bg = rng.choice(list(OBJECT_COLORS if collide else NEUTRAL_COLORS))
    pattern = rng.choice(PATTERNS)
    colors = rng.sample([c for c in OBJECT_COLORS if visible(c, bg)], 2)
    shapes = rng.sample(SHAPES, 2)
    places = ("", "")
    barred = set()
    if pair:
        # Halves side by side leave room to move vertically, halves above each other horizontally.
        sideways = rng.random() < 0.5
        places = ("left", "right") if sideways else ("top", "bottom")
        barred = {"left", "right"} if sideways else {"up", "down", "bounce"}
    objects = []
    for color, shape, place in zip(colors, shapes, places):
        allowed = [m for m in MOTION_NAMES if m not in barred and not (m == "spin" and shape in ROUND)]
        motion = rng.choice(allowed)
        if objects and motion == objects[0].motion:      # mostly, but not always, two different motions
            motion = rng.choice(allowed)
        objects.append(Obj(color, shape, motion, place))
    return Spec(tuple(objects[:2 if pair else 1]), pattern, bg)


def caption(spec, rng, stated=None):
    """One wording of a Spec as a list of (text, owner): owner 0 nobody, 1/2 an object, 3 the background.

    Two objects normally have their places stated. If not, the first named one is left or on top.
    """
    pattern = "" if spec.pattern == "plain" and rng.random() < 0.5 else spec.pattern + " "
    bg = (f"{pattern}{spec.bg} background", 3)
    objs = list(zip(spec.objects, (1, 2)))

    def art(text):
        return ("an " if text[0] in "aeiou" else "a ") + text

    if len(objs) == 1:
        o, n = spec.objects[0], 1
        prog, fin = rng.choice(MOTIONS[o.motion])
        name = art(f"{o.color} {o.shape}")
        parts = rng.choice([
            [(f"{name} {prog}", n), (" on a ", 0), bg],
            [("on a ", 0), bg, (", ", 0), (f"{name} {fin}", n)],
            [(f"{name} {fin}", n), (" over a ", 0), bg],
            [("a video of ", 0), (f"{name} {prog}", n), (" in front of a ", 0), bg],
            [("a ", 0), bg, (" with ", 0), (f"{name} {prog}", n)],
        ])
    else:
        stated = rng.random() < 0.85 if stated is None else stated
        if stated and rng.random() < 0.5:
            objs.reverse()
        (a, na), (b, nb) = objs
        (pa, fa), (pb, fb) = rng.choice(MOTIONS[a.motion]), rng.choice(MOTIONS[b.motion])
        ca, cb = art(f"{a.color} {a.shape}"), art(f"{b.color} {b.shape}")
        la, lb = (f" {PLACES[a.place]}", f" {PLACES[b.place]}") if stated else ("", "")
        forms = [
            [(f"{ca} {pa}{la}", na), (" and ", 0), (f"{cb} {pb}{lb}", nb), (" on a ", 0), bg],
            [("on a ", 0), bg, (", ", 0), (f"{ca}{la} {fa}", na), (" while ", 0), (f"{cb}{lb} {fb}", nb)],
            [(f"{ca}{la} {fa}", na), (" and ", 0), (f"{cb}{lb} {fb}", nb), (" over a ", 0), bg],
            [("a video of ", 0), (f"{ca} {pa}{la}", na), (" and ", 0), (f"{cb} {pb}{lb}", nb), (" in front of a ", 0), bg],
        ]
        if stated:
            forms.append([("a ", 0), bg, ("; ", 0), (f"{la[1:]}, {ca} {pa}", na), ("; ", 0), (f"{lb[1:]}, {cb} {pb}", nb)])
        parts = rng.choice(forms)
    first = parts[0][0]
    parts[0] = (first[0].upper() + first[1:], parts[0][1])
    if rng.random() < 0.5:
        parts.append((".", 0))
    return parts


def text_of(parts):
    return "".join(t for t, _ in parts)


def words(text):
    return text.lower().replace(",", " ").replace(";", " ").replace(".", " ").split()


def parse(text):
    """The Spec a caption asks for. Raises ValueError if it is not of this grammar.

    Every wording names the objects, their motions and their places in one and the same order.
    """
    w = words(text)
    found, motions, places, bg = [], [], [], None
    phrases = sorted(((p.split(), m) for m, forms in MOTIONS.items() for pair in forms for p in pair), key=lambda x: -len(x[0]))
    i = 0
    while i < len(w):
        if w[i] in OBJECT_COLORS and i + 1 < len(w) and w[i + 1] in SHAPES:
            found.append((w[i], w[i + 1]))
            i += 2
            continue
        if i + 1 < len(w) and w[i] in COLORS and w[i + 1] == "background":
            bg = (w[i - 1] if i and w[i - 1] in PATTERNS else "plain", w[i])
            i += 2
            continue
        hit = next(((len(p), m) for p, m in phrases if w[i:i + len(p)] == p), None)
        if hit:
            motions.append(hit[1])
            i += hit[0]
            continue
        place = next((k for k, v in PLACES.items() if w[i:i + 3] == v.split()), None)
        if place:
            places.append(place)
            i += 3
            continue
        i += 1
    if bg is None or not found or len(found) > 2 or len(motions) != len(found) or len(places) not in (0, len(found)):
        raise ValueError(f"not of the demo grammar: {text!r}")
    places = places or [""] * len(found)
    objects = tuple(Obj(c, s, m, p) for (c, s), m, p in zip(found, motions, places))
    return Spec(objects, *bg)


def training_spec(rng):
    while True:
        spec = draw_spec(rng)
        if not held_out(spec):
            return spec


def held_out_prompts(rng, plan):
    """plan: [(count, pair, collide, held_pair), ...] -> captions of distinct held-out Specs."""
    seen, lines = set(), []
    for count, pair, collide, held_pair in plan:
        n = 0
        while n < count:
            spec = draw_spec(rng, pair, collide)
            has = any((o.color, o.shape) in HELD_PAIRS for o in spec.objects)
            if not held_out(spec) or has != held_pair or spec in seen:
                continue
            seen.add(spec)
            lines.append(text_of(caption(spec, rng, stated=True)))
            n += 1
    rng.shuffle(lines)
    return lines


def read_prompts(path):
    return [s.strip() for s in Path(path).read_text().splitlines() if s.strip() and not s.lstrip().startswith("#")]


def write_prompt_files(folder):
    rng = random.Random(20261122)
    sets = {
        "demo_easy": ([(48, False, False, False), (16, False, False, True)],
                      "One object; the background colour is never an object colour."),
        "demo_hard": ([(18, False, True, False), (6, False, True, True), (15, True, False, False), (15, True, True, False), (10, True, True, True)],
                      "One object on a background that is also an object colour, and two objects."),
        "calibrate": ([(6, False, False, False), (6, False, True, False), (6, True, False, False), (6, True, True, False)],
                      "For calibration (profiles, budgets)."),
        "evaluate": ([(8, False, False, False), (8, False, True, False), (8, True, False, False), (8, True, True, False)],
                     "For evaluation; disjoint from the calibration prompts."),
    }
    used = set()
    for name, (plan, note) in sets.items():
        while True:
            lines = held_out_prompts(rng, plan)
            if len(set(lines)) == len(lines) and not used & set(lines):
                break
        used |= set(lines)
        body = f"# {note}\n# Held out: the demo model was not trained on any of these scenes.\n" + "\n".join(lines) + "\n"
        (Path(folder) / f"{name}.txt").write_text(body)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description="Write the demo's prompt files.")
    ap.add_argument("folder")
    write_prompt_files(ap.parse_args().folder)
