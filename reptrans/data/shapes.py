"""Shapes on backgrounds, drawn from a seed: a data set in colour without files, whose factors are known.

    shapes                                          the label is the shape
    shapes:colour                                   or another factor: shape, colour, texture, background
    shapes:shape+texture                            or every combination of some factors
    shapes:shape:difficulty=2:images=2000:seed=1    options, in any order
    shapes:shape:shortcut=colour@0.9                a cue in the training images
    shapes:shape:easy                               the same as difficulty=0

The parts of a name are joined by colons, which neither shells nor lists with commas take for something else.

- `difficulty`, a number from 0 to 5, by default 1: noise, shapes strewn behind, small sizes, uneven and faded colours.
- `images`, by default 4,000: how many training images; the first of more are the same. There are 2,000 test images.
- `seed`, by default 0: of all that is drawn.
- `shortcut=FACTOR@SHARE`: in this share (0 to 1) of the training images the factor follows the label: value k for class
  k, modulo the number of values. In the others, and in all test images, it is independent of the label.

The factors, place, size and rotation are independent of each other. The images are the same whatever the label; a
shortcut changes one factor of some of them. They are computed in whole numbers, with the same bytes on every machine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from reptrans.data.folder import Parts
from reptrans.data.split import Split
from reptrans.errors import BadValue, check_whole, choose

SIDE, TEST_IMAGES, MOST_DIFFICULT = 32, 2_000, 5
# What difficulty 1 adds: noise, thousandths of the side that the smallest radius is shorter, unevenness and fading of
# colours, small shapes behind. Chosen so that networks of a few seconds' training differ.
_NOISE, _SMALL, _UNEVEN, _FADED, _CRUMBS = 12, 110, 30, 70, 1
# 128 directions as (cosine, sine) in 1,024ths. None is so near a half that the last bit of a cosine decides.
_ANGLES = 2 * np.pi * np.arange(128) / 128
_CIRCLE = np.rint(1024 * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)).astype(np.int64)

Table = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _disc(x: np.ndarray, y: np.ndarray, radius: int = 225) -> np.ndarray:
    return x**2 + y**2 <= radius**2


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: what is on the inner side of at least four of five lines."""
    lines = ((0, 1000), (951, 309), (588, -809), (-588, -809), (-951, 309))
    return sum(a * x + b * y <= 75_000 for a, b in lines) >= 4


# Whether a point is inside, for whole x (to the right) and y (down) from -255 to 255; nothing reaches the border.
SHAPES: dict[str, Table] = {
    "disc": _disc,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 178,
    "triangle": lambda x, y: (y <= 125) & (173 * abs(x) - 100 * y <= 25_000),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 72) & (np.maximum(abs(x), abs(y)) <= 240),
    "ring": lambda x, y: _disc(x, y, 235) & ~_disc(x, y, 130),
    "star": _star,
    "bar": lambda x, y: (abs(x) <= 75) & (abs(y) <= 240),
    "crescent": lambda x, y: _disc(x + 30, y, 220) & ~_disc(x - 75, y, 190),
}
COLOURS = {
    "red": (215, 45, 40), "orange": (240, 135, 30), "yellow": (235, 215, 50), "green": (60, 165, 60),
    "cyan": (60, 195, 205), "blue": (45, 80, 205), "violet": (140, 65, 190), "pink": (240, 125, 180),
}  # fmt: skip
# The share of a second colour, in 16ths, over the same x and y; repeated beyond them.
TEXTURES: dict[str, Table] = {
    "plain": lambda x, y: 0 * x,
    "striped": lambda x, y: 16 * (x < 0),
    "checked": lambda x, y: 16 * ((x < 0) ^ (y < 0)),
    "dotted": lambda x, y: 16 * _disc(x, y, 150),
}
BACKGROUNDS: dict[str, Table] = {
    "flat": TEXTURES["plain"],
    "gradient": lambda x, y: (x + 255) * 16 // 510,
    "bands": TEXTURES["striped"],
    "tiles": TEXTURES["checked"],
    "spots": TEXTURES["dotted"],
}
FACTORS: dict[str, Mapping] = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "background": BACKGROUNDS}


@dataclass(frozen=True)
class Recipe:
    """What a name asks for: the factors of the label, and the options."""

    factors: tuple[str, ...] = ("shape",)
    difficulty: float = 1
    images: int = 4_000
    seed: int = 0
    shortcut: tuple[str, float] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Every combination of the factors' values, as "disc striped"; the last factor changes first."""
        return tuple(" ".join(values) for values in product(*(FACTORS[factor] for factor in self.factors)))

    def labels(self, values: dict[str, np.ndarray]) -> np.ndarray:
        """The classes (n,) of images, from the numbers (n,) of their factors' values."""
        return np.ravel_multi_index([values[f] for f in self.factors], [len(FACTORS[f]) for f in self.factors])


def parse(name: str) -> Recipe:
    """The recipe in a name, as "shapes:shape+texture:difficulty=2"; see above. Raises UnknownName and BadValue."""
    parts, given = name.split(":")[1:], {}
    if parts and "=" not in parts[0] and parts[0] != "easy":
        given["factors"] = _factors(parts.pop(0))
    for part in parts:
        part = "difficulty=0" if part == "easy" else part  # a notebook's parameters may hold no "="
        option, _, text = part.partition("=")
        read = choose(option, _OPTIONS, "shapes has no option {}", listed="Options", more="; each as NAME=VALUE.")
        if option in given:
            raise BadValue(f"{name} says twice what {option} is. Say it once.")
        given[option] = read(text)
    recipe = Recipe(**given)
    if recipe.shortcut and recipe.shortcut[0] in recipe.factors:
        others = ", ".join(factor for factor in FACTORS if factor not in recipe.factors) or "none, leave shortcut out"
        raise BadValue(f"the shortcut of {name} is {recipe.shortcut[0]}, which the label tells. Possible: {others}.")
    return recipe


def _factors(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split("+"))
    for factor in chosen:
        choose(factor, FACTORS, "shapes has no factor {}", listed="Factors", more="; also several, joined by +.")
    if len(set(chosen)) < len(chosen):
        raise BadValue(f"the label of shapes is {text}, which names a factor twice. Name it once.")
    return chosen


def _shortcut(text: str) -> tuple[str, float]:
    cue, _, share = text.partition("@")
    choose(cue, FACTORS, "shortcut is FACTOR@SHARE, as colour@0.9, and shapes has no factor {}", listed="Factors")
    return cue, _number("the share of the shortcut", share, 1)


def _number(what: str, text: str, most: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        raise BadValue(f"{what} is {text!r}; it must be a number from 0 to {most}.")
    return value


def _whole(what: str, text: str, least: int) -> int:
    value = int(text) if text.isdecimal() else text
    check_whole(what, value, least)
    return value


_OPTIONS = {
    "difficulty": lambda text: _number("difficulty", text, MOST_DIFFICULT),
    "images": lambda text: _whole("images", text, 1),
    "seed": lambda text: _whole("seed", text, 0),
    "shortcut": _shortcut,
}


def shapes(name: str, image_size: int | None = None) -> Parts:
    """The images that `name` asks for, drawn (not resized) as squares of `image_size` pixels, by default 32.

    Raises UnknownName and BadValue.
    """
    recipe, side = parse(name), image_size or SIDE
    train, test = (_split(recipe, side, _Draws(recipe.seed, *part)) for part in ((0, recipe.images), (1, TEST_IMAGES)))
    return Parts(train, test, recipe.classes)


@dataclass(frozen=True)
class _Draws:
    """Whole numbers for each of n images, for every purpose from a stream of its own: one more leaves the others."""

    seed: int
    part: int  # 0 to train, 1 to test
    n: int

    def stream(self, purpose: str) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, self.part, *purpose.encode()])))

    def __call__(self, purpose: str, low: int, high: int | np.ndarray, *shape: int) -> np.ndarray:
        """(n, *shape) numbers from `low` to `high` - 1."""
        # 32 bits each, whatever the range: a draw that is rejected would move all later ones.
        bits = self.stream(purpose).integers(0, 1 << 32, (self.n, *shape), np.int64)
        return low + (bits * (high - low) >> 32)

    def rarely(self, purpose: str, usual: int, extreme: int) -> np.ndarray:
        """(n,) numbers from `usual` to `extreme`, four of five of them in the half nearer to `usual`."""
        return usual + ((extreme - usual) * (self(purpose, 0, 1025) ** 3 >> 20) >> 10)


@dataclass(frozen=True)
class _Stamps:
    """A shape or pattern for each of n images: which of `table`, and where, in eighths of a pixel."""

    table: np.ndarray  # kinds · 256 · 256 cells, over x and y from -1 to 1
    kind: np.ndarray
    centre: np.ndarray  # (n, 2)
    unit: np.ndarray  # the length of x = 1
    turn: np.ndarray
    repeated: bool = True  # beyond the table, rather than 0 there

    def some(self, now: slice) -> "_Stamps":
        return replace(self, **{name: getattr(self, name)[now] for name in ("kind", "centre", "unit", "turn")})

    def at(self, point: tuple[int, int], side: int) -> np.ndarray:
        """What the table has (n, side, side) at one of the 4 x 4 points (row, column) of every pixel."""
        down, right = (8 * np.arange(side) + 2 * p + 1 - self.centre[:, i, None] for i, p in enumerate(point))
        # Cells, 128 to the unit, with 12 bits below the point.
        cos, sin = (_CIRCLE[self.turn] * 512 // np.maximum(self.unit, 1)[:, None]).T[..., None]
        x, y = (
            (a[:, None, :].astype(np.int32) + (b + (128 << 12))[:, :, None].astype(np.int32)) >> 12
            for a, b in ((cos * right, sin * down), (-sin * right, cos * down))
        )
        x, y = (x & 255, y & 255) if self.repeated else (x.clip(0, 255), y.clip(0, 255))
        return self.table.take((self.kind[:, None, None].astype(np.int32) << 16) + (y << 8) + x)


def _table(kinds: Mapping[str, Table]) -> np.ndarray:
    x, y = np.meshgrid(*[2 * np.arange(256) - 255] * 2)
    return np.concatenate([kind(x, y).astype(np.uint8).ravel() for kind in kinds.values()])


def _split(recipe: Recipe, side: int, draw: _Draws) -> Split:
    """One part: all but the noise is drawn first, then some images at a time are made of it."""
    values = {factor: draw(factor, 0, len(known)) for factor, known in FACTORS.items()}
    labels = recipe.labels(values)
    if recipe.shortcut and draw.part == 0:
        cue, share = recipe.shortcut
        follows = draw("shortcut", 0, 1_000_000) < round(1_000_000 * share)
        values[cue] = np.where(follows, labels % len(FACTORS[cue]), values[cue])
    hard = round(1000 * recipe.difficulty)
    stamps, colours = _stamps(draw, values, hard, 8 * side), _colours(draw, values, hard)
    noise, images = draw.stream("noise"), np.empty((draw.n, 3, side, side), np.uint8)
    # How many at a time decides what noise they get, so it depends on nothing but the side.
    step = 4 * max(1, 2**16 // side**2)
    for now in (slice(start, start + step) for start in range(0, draw.n, step)):
        clean = _drawn([s.some(now) for s in stamps], [c[now, :, None, None].astype(np.int32) for c in colours], side)
        rough = noise.integers(0, 256, clean.shape, np.uint8).astype(np.int32) - 128
        images[now] = (clean + (rough * min(_NOISE * hard // 1000, 127) >> 7)).clip(0, 255)
    return Split(torch.from_numpy(images), torch.from_numpy(labels))


def _stamps(draw: _Draws, values: dict[str, np.ndarray], hard: int, side: int) -> list[_Stamps]:
    """The background's pattern, the shape, the shape's pattern, and small shapes strewn behind it."""

    def turn(what: str) -> np.ndarray:
        return draw(f"{what} turn", 0, len(_CIRCLE))

    def anywhere(what: str) -> np.ndarray:
        return draw(f"{what} place", 0, side, 2)

    ground, outlines = values["background"], _table(SHAPES)
    # A gradient goes once over the whole image, however it is turned.
    wide = ground == list(BACKGROUNDS).index("gradient")
    place = np.where(wide[:, None], side // 2, anywhere("background"))
    unit = np.where(wide, 3 * side // 4, draw("background size", 13 * side // 100, 25 * side // 100))
    stamps = [_Stamps(_table(BACKGROUNDS), ground, place, unit, turn("background"))]
    unit = draw.rarely("size", side * 38 // 100, side * max(380 - _SMALL * hard // 1000, 60) // 1000)
    place = unit[:, None] + draw("place", 0, side - 2 * unit[:, None] + 1, 2)
    stamps.append(_Stamps(outlines, values["shape"], place, unit, turn("shape"), repeated=False))
    unit = draw("texture size", 8 * side // 100, 13 * side // 100)
    stamps.append(_Stamps(_table(TEXTURES), values["texture"], anywhere("texture"), unit, turn("texture")))
    for k in range(_CRUMBS * hard // 1000):
        kind, unit = draw(f"kind {k}", 0, len(SHAPES)), draw(f"size {k}", side // 30, side // 10)
        stamps.append(_Stamps(outlines, kind, anywhere(f"{k}"), unit, turn(f"{k}"), repeated=False))
    return stamps


def _colours(draw: _Draws, values: dict[str, np.ndarray], hard: int) -> list[np.ndarray]:
    """(n, 3) each, and not always within 0 to 255: two of the background, two of the shape, one of each strewn one."""
    palette = np.array(list(COLOURS.values()))
    ground = draw("grey", 50, 206)[:, None] + draw("tint", -30, 31, 3)
    step = draw("contrast", 25, 56) * (1 - 2 * draw("darker", 0, 2))
    uneven = min(_UNEVEN * hard // 1000, 90)
    first = palette[values["colour"]] + draw("uneven", -uneven, uneven + 1, 3)
    black_or_white = 255 * draw("white", 0, 2)[:, None]
    second = first + ((black_or_white - first) * draw("mixed", 110, 181)[:, None] >> 8)
    faded = draw.rarely("faded", 0, min(_FADED * hard // 1000, 230))[:, None]
    first, second = (colour + ((ground - colour) * faded >> 8) for colour in (first, second))
    strewn = [palette[draw(f"colour {k}", 0, len(palette))] for k in range(_CRUMBS * hard // 1000)]
    return [ground, ground + step[:, None], first, second, *strewn]


def _drawn(stamps: list[_Stamps], colours: list[np.ndarray], side: int) -> np.ndarray:
    """int32 (n, 3, side, side), without noise: colours mixed by the shares of a pixel that they cover."""
    pattern, shape, texture, *strewn = stamps
    shares = np.zeros((len(colours) - 1, len(shape.kind), 1, side, side), np.int32)  # in 256ths
    for point in product(range(4), repeat=2):
        inside = shape.at(point, side)
        second = inside * texture.at(point, side)
        behind = (16 * small.at(point, side) for small in strewn)
        for share, more in zip(shares, (pattern.at(point, side), 16 * inside - second, second, *behind), strict=True):
            share[:, 0] += more
    ground, other, first, second, *small = colours
    picture = ground
    for colour, share in zip((other, *small), (shares[0], *shares[3:]), strict=True):
        picture = picture + ((colour - picture) * share + 128 >> 8)
    return picture + ((first - picture) * shares[1] + (second - picture) * shares[2] + 128 >> 8)
