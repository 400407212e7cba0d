"""How a notebook's outputs are compared with the stored ones: words exactly, measured numbers within a tolerance.

Of three kinds is what a notebook prints. *Exact*: words, names, counts and whole numbers have to be the stored ones.
*Measured*: a number with decimals may differ by one unit of its last printed place, since it may be rounded the other
way; in `0.81 ± 0.03`, mean and spread by half the spread; in a cell that declares a `tolerance` in its metadata, by so
much. A sign may change only within one unit. *Pictures* have to be there, of their size, and not blank.
"""

import base64
import io
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image

_DECIMALS = r"\d+\.\d+(?:e[+-]?\d+)?"
_SPACE = "[ \N{NO-BREAK SPACE}]"
MEASURED = re.compile(rf"(?<![\w.])[+-]?(?:{_DECIMALS}|\d+(?={_SPACE}±))(?:{_SPACE}±{_SPACE}\d+(?:\.\d+)?)?(?!\.?\w)")


def tolerance(stored: str, declared: float = 0.0) -> float:
    """By how much a number, or a mean and its spread, may differ from the `stored` text of it."""
    mean, _, spread = (part.strip() for part in stored.replace("\N{NO-BREAK SPACE}", " ").partition("±"))
    unit = 10.0 ** -len(mean.partition("e")[0].partition(".")[2]) * 10.0 ** int(mean.partition("e")[2] or 0)
    return max(unit, declared, float(spread or 0) / 2) * (1 + 1e-9)


def deviation(stored: str, new: str, declared: float = 0.0) -> float:
    """The largest difference of two printed numbers, as a share of the tolerance; infinite where they are of two kinds.

    1 is just tolerated.
    """
    pairs = list(zip(*(re.split(f"{_SPACE}±{_SPACE}", text) for text in (stored, new)), strict=False))
    if ("±" in stored) != ("±" in new):
        return float("inf")
    allowed, unit = tolerance(stored, declared), tolerance(stored.partition("±")[0].rstrip())
    shares = [abs(float(a) - float(b)) / (allowed if float(a) * float(b) >= 0 else unit) for a, b in pairs]
    return max(shares)


def deviations(stored: str, new: str, declared: float = 0.0) -> Iterator[tuple[str, str, float]]:
    """(stored, new, `deviation`) of all measured numbers of two texts; they are only as many if the texts agree."""
    for a, b in zip(MEASURED.findall(stored), MEASURED.findall(new), strict=False):
        yield a, b, deviation(a, b, declared)


def forgiven(stored: str, new: str, declared: float = 0.0) -> str:
    """`new`, with the stored number wherever it differs no more than is tolerated."""
    if len(MEASURED.findall(stored)) != len(MEASURED.findall(new)):
        return new
    chosen = (a if share <= 1 else b for a, b, share in deviations(stored, new, declared))
    return MEASURED.sub(lambda _: next(chosen), new)


def plain(text: str) -> str:
    """The text without what depends on the width of a number: runs of spaces are one."""
    return re.sub(" +", " ", text)


def fault_of_picture(stored: str, new: str) -> str:
    """What is wrong with a picture (PNG, base64) beside the stored one: another size, or nothing on it; "" if right."""
    before, after = (Image.open(io.BytesIO(base64.b64decode(data))) for data in (stored, new))
    if any(abs(a - b) > 0.1 * b for a, b in zip(after.size, before.size, strict=True)):
        return f"a picture of {after.size} pixels, and {before.size} are stored"
    return "" if np.ptp(np.asarray(after.convert("L"))) > 0 else "a picture with nothing on it"
