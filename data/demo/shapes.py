"""The outlines of the shapes and the background patterns, for numpy and torch alike (xp is either)."""
import math

from grammar import SIZE

TAU = 2 * math.pi
PERIOD = {"circle": 0.0, "ring": 0.0, "square": TAU / 4, "cross": TAU / 4, "triangle": TAU / 3, "star": TAU / 5}


def distance(xp, shape, x, y):
    """Signed distance (about; negative inside) to shapes of radius 1. shape: index into SHAPES, broadcast."""
    ax, ay = xp.abs(x), xp.abs(y)
    length = xp.sqrt(x * x + y * y + 1e-9)
    circle = length - 0.95
    square = xp.maximum(ax, ay) - 0.84
    triangle = xp.maximum(y, 0.8660254 * ax - 0.5 * y) - 0.56
    # Star: fold the plane into half of one point; the edge runs from the tip (1.1) to the notch (0.48).
    a = xp.arctan2(x, -y)
    a = xp.abs(a - TAU / 5 * xp.round(a / (TAU / 5)))
    sx, sy = length * xp.sin(a), length * xp.cos(a)
    ex, ey = 0.48 * math.sin(TAU / 10), 0.48 * math.cos(TAU / 10) - 1.1
    star = (-ey * sx + ex * (sy - 1.1)) / math.hypot(ex, ey)
    ring = xp.abs(length - 0.74) - 0.27
    cross = xp.minimum(xp.maximum(ax - 1.0, ay - 0.34), xp.maximum(ax - 0.34, ay - 1.0))
    d = circle
    for k, other in ((1, square), (2, triangle), (3, star), (4, ring), (5, cross)):
        d = xp.where(shape == k, other, d)
    return d


def pattern_weights(xp, x, y):
    """How much of the second tone each pixel has, [4, H, W] in the order of PATTERNS. x, y in pixels of 256."""
    def odd(n):
        return n - 2 * xp.floor(n / 2)
    return xp.stack([
        0 * y,                                                  # plain
        odd(xp.floor(y / 32)),                                  # striped, horizontal
        odd(xp.floor(x / 64) + xp.floor(y / 64)),               # checkered
        y / SIZE,                                               # gradient, top to bottom
    ])
