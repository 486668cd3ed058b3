"""Writes corpus/tokenizer: a model of a few pieces as it should be, and ones whose character map leads out of itself.

    python3 tests/fuzz/tokenizer_corpus.py
"""
import os
import struct


def varint(n):
    return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])


def block(number, data, key=None):
    return (key or varint(number << 3 | 2)) + varint(len(data)) + data


def number(number, value):
    return varint(number << 3) + varint(value)


def piece(text, score, kind):
    return block(1, block(1, text.encode()) + b"\x15" + struct.pack("<f", score) + number(3, kind))


def charsmap(root, others):
    """Units of a trie, then its strings; a unit of the highest bit alone is a value."""
    units = struct.pack("<256I", root, *[others] * 255)
    return struct.pack("<I", len(units)) + units + b"abc\0"


FAR = 0x1fffff << 10 | 512  # leads 2^29 units on
VALUE = 1 << 31
pieces = piece("<pad>", 0, 3) + piece("</s>", 0, 3) + piece("<unk>", 0, 2)
pieces += b"".join(piece(c, -1 - i, 1) for i, c in enumerate("\u2581 a re d ci r c l e".split(" ")))
trainer = block(2, number(3, 1) + number(40, 2) + number(41, 2**64 - 1) + number(42, 1) + number(43, 0))
sample = block(4, block(1, block(1, b"a red circle") + block(2, b"x")))


def model(chars, key=None, end=b""):
    return pieces + trainer + block(3, block(1, b"nmt_nfkc") + block(2, chars), key) + end


files = {
    "plain": model(b""),
    "empty_map": model(charsmap(0, VALUE)),
    "far": model(charsmap(FAR, FAR)),
    "far_self_test": model(charsmap(FAR, FAR), end=sample),
    "far_root": model(charsmap(FAR | VALUE, VALUE)),
    "far_long_key": model(charsmap(FAR, FAR), b"\x9a\x80\x80\x80\x10"),
    "far_long_key_high": model(charsmap(FAR, FAR), b"\x9a\x80\x80\x80\x70"),
}
folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus", "tokenizer")
for name, data in files.items():
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data)
