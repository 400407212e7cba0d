"""What two networks differ in, in about five sentences, each with its number, the most telling first.

Answers come before what is inside: a difference that nobody can see in an answer tells less. Of answers, sentences are
ranked by one standardised effect, see `diff.paired`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pandas as pd
import torch

from reptrans.data import Dataset
from reptrans.data.split import Split
from reptrans.experiments.answers import DIFFER, paired
from reptrans.experiments.diff import DiffRun, Found, answers_compared
from reptrans.experiments.invariances import InvariancesRun, load
from reptrans.experiments.sides import Side
from reptrans.merging.interpolate import barrier
from reptrans.progress import progress

MOST = 2  # sentences about answers, before what they are on the whole
SMALL = 0.2  # what Cohen calls a small effect
SAME = 1e-4  # largest relative difference of logits, or of weights, that rounding makes


@dataclass(frozen=True)
class Sentence:
    """`about`: the kind of difference, and what it is of; `effect`: standardised, infinite for equality."""

    text: str
    effect: float
    about: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


def verdict(found: Found) -> list[Sentence]:
    """The sentences, the most telling first."""
    if equal := _equal(found):
        return [equal, *_whole(found)]
    told = sorted([*_classes(found), *_factors(found), *_accuracy(found)], key=lambda s: -s.effect)
    if not told or told[0].effect < SMALL:
        told = [*_nothing(found, told)]
    return [*told[:MOST], *_whole(found), *_layers(found), *_stitches(found), *_weights(found)]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if 0.0995 <= share < 0.9995 or share in (0, 1) else f"{100 * share:.1f} %"


def _points(low: float, high: float) -> str:
    low, high = sorted((abs(low), abs(high)))
    return f"{100 * low:.0f} to {100 * high:.0f} points apart"


def _equal(found: Found) -> Sentence | None:
    """Whether the two are one and the same network or function."""
    a, b, apart = found.a, found.b, found["weights"]
    if a.logits.shape != b.logits.shape or (a.logits - b.logits).abs().max() > SAME * a.logits.abs().max():
        return None
    n = len(a.answers)
    if apart is None:
        return Sentence(f"A and B give the same logits to all {n:,} images.", torch.inf, ("equal", "logits"))
    if apart.apart[0] == 0:
        return Sentence(f"There is no difference: A and B have the same weights, and all answers to {n:,} images are "
                        "the same.", torch.inf, ("equal", "weights"))  # fmt: skip
    if apart.apart[-1] < SAME:
        return Sentence(
            f"A and B are the same function up to a permutation of units: all logits of {n:,} images are the same, the "
            f"distance of their weights is {apart.apart[0]:.2f} as they are, and {apart.apart[-1]:.2f} aligned.",
            torch.inf, ("equal", "permutation"),
        )  # fmt: skip
    return Sentence(f"A and B give the same logits to all {n:,} images, with weights {apart.apart[0]:.2f} apart.",
                    torch.inf, ("equal", "logits"))  # fmt: skip


def _classes(found: Found) -> Iterator[Sentence]:
    """A sentence for each class that is decided; of two that are exchanged, one."""
    rows = found["classes"] if found["classes"] is not None else pd.DataFrame({"effect": []})
    rows, said = rows[rows["effect"] > 0], set()
    pairs = {(row["class"], row["other"]): row for row in rows.to_dict("records") if row["confused"]}
    for row in rows.to_dict("records"):
        one, other = row["class"], row["other"]
        if (other, one) in said:
            continue
        if row["confused"]:
            said.add((one, other))
            text = f"{_calls(row)} ({_points(row['other_low'], row['other_high'])})"
            back = pairs.get((other, one))
            text += f"; and the other way round, {_calls(back)}." if back else "."
        else:
            text = (f"Of class {one}, A gets {_percent(row['a'])} right and B {_percent(row['b'])} "
                    f"({_points(row['low'], row['high'])}); {_calls(row)}.")  # fmt: skip
        yield Sentence(text, row["effect"], ("class", one, other))


def _calls(row: dict) -> str:
    (much, who), (little, else_) = sorted([(row["a_other"], "A"), (row["b_other"], "B")], reverse=True)
    images = f"the images of class {row['class']}"
    return f'{who} calls {_percent(much)} of {images} "{row["other"]}", {else_} {_percent(little)}'


def _factors(found: Found) -> Iterator[Sentence]:
    rows = found["factors"] if found["factors"] is not None else pd.DataFrame({"effect": []})
    for row in rows[rows["effect"] > 0].to_dict("records"):
        who, other = ("A", "B") if row["follower"] == "A" else ("B", "A")
        whose = " whose label says otherwise" if found["accuracies"] is not None else ""
        yield Sentence(
            f"{who} goes by {row['factor']}: of {row['n']:,} images{whose} it answers {_percent(row[who.lower()])} by "
            f"{row['factor']}, {other} {_percent(row[other.lower()])} ({_points(row['low'], row['high'])}).",
            row["effect"], ("factor", row["factor"], who),
        )  # fmt: skip


def _accuracy(found: Found) -> Iterator[Sentence]:
    """One sentence if the accuracies differ."""
    if found["accuracies"] is None:
        return
    labels = found.a.answered.labels
    both = paired(found.a.answers == labels, found.b.answers == labels)
    if both["effect"] > 0:
        better, worse = ("A", "B") if both["difference"] > 0 else ("B", "A")
        yield Sentence(
            f"{better} is right on {_percent(both[better.lower()])} of {len(labels):,} images, {worse} on "
            f"{_percent(both[worse.lower()])} ({_points(both['low'], both['high'])}).", both["effect"], ("accuracy",),
        )  # fmt: skip


def _nothing(found: Found, told: list[Sentence]) -> Iterator[Sentence]:
    """That no difference in answers is large, or even decided."""
    if told:
        text = (
            "No class, no factor of the images and no accuracy differs by a small effect or more. The largest that is"
        )
        yield replace(told[0], text=f"{text} decided: {told[0]}")
    elif found["classes"] is not None:
        yield Sentence("No class, no factor of the images and no accuracy is decided to differ.", 0.0, ("nothing",))


def _whole(found: Found) -> Iterator[Sentence]:
    """Different answers on the whole, and whose errors they are."""
    rows = found["accuracies"] if found["accuracies"] is not None else found["answers"]
    if rows is None:
        return
    at = rows.set_index("what")
    text = f"Their answers differ on {_percent(at.loc[DIFFER, 'value'])} of {len(found.a.answers):,} images"
    if "error consistency" in at.index:
        value, low, high = at.loc["error consistency"]
        text += (f": only A is right on {_percent(at.loc['only A is right', 'value'])}, only B on "
                 f"{_percent(at.loc['only B is right', 'value'])}")  # fmt: skip
        text += f"; error consistency {value:.2f}, {low:.2f} to {high:.2f}" if value == value else ""
    yield Sentence(f"{text}.", 0.0, ("answers",))


def _layers(found: Found) -> Iterator[Sentence]:
    rows = found["layers"]
    if rows is None or rows["effect"].isna().all():
        return
    low, high = rows.loc[rows["effect"].idxmin()], rows.loc[rows["effect"].idxmax()]
    place = f"{low['layer']}" if low["layer"] == low["beside"] else f"{low['layer']} beside {low['beside']}"
    beyond = (rows["p_searched"] <= 0.05).sum()
    yield Sentence(
        f"Inside, {beyond} of {len(rows)} layers are more similar than chance; the most dissimilar is {place}, with "
        f"{low['effect']:.2f} where equal layers have 1 and chance 0; the most similar {high['layer']}, with "
        f"{high['effect']:.2f}.", 1 - low["effect"], ("layer", low["layer"]),
    )  # fmt: skip


def _stitches(found: Found) -> Iterator[Sentence]:
    rows = found["stitches"]
    if rows is None or rows.empty:
        return
    value, of = ("agreement", "own answers") if rows["share"].isna().any() else ("share", "accuracy")
    ways = []
    for way, own in rows.groupby("way", sort=False):
        worst = own.loc[own[value].idxmin()]
        ways.append(f"{_percent(worst[value])} {way} (at {worst['front_layer']})")
    yield Sentence(f"Stitched by least squares, what is kept of the end's {of} is, at the worst layer, "
                   f"{' and '.join(ways)}.", 1 - rows[value].min(), ("stitch",))  # fmt: skip


def _weights(found: Found) -> Iterator[Sentence]:
    apart, rows = found["weights"], found["line"]
    if apart is None:
        return
    text = f"Their weights are {apart.apart[0]:.2f} apart, 1 for unrelated ones"
    column = "after" if apart.aligned is not None else "before"
    text += f", and {apart.apart[1]:.2f} with units aligned" if apart.aligned is not None else ""
    most = apart.moved.loc[apart.moved[column].idxmax()]
    text += f"; {most['layer']} differs most ({most[column]:.2f})"
    if rows is not None:
        lost = {kind: f"{100 * v:.0f}" for kind, v in barriers(rows).items()}
        text += f"; on the straight line between them accuracy falls by up to {lost['none']} points"
        text += f", with units aligned {lost['aligned']}" if "aligned" in lost else ""
    if rows is not None and apart.close:
        at = rows[(rows["class"] == "all") & (rows["alignment"] == "none")].set_index("share")["accuracy"]
        text += f"; B looks like a descendant of A, and A + t (B − A) is right on {_percent(at[0.5])} with t of 0.5, "
        text += f"{_percent(at[1.5])} with 1.5"
    yield Sentence(f"{text}.", apart.apart[-1], ("weights",))


def barriers(rows: pd.DataFrame) -> dict[str, float]:
    """The barrier in accuracy of each alignment, from the rows of `diff.line`."""
    between = rows[(rows["class"] == "all") & rows["share"].between(0, 1)]
    return {kind: barrier(own, "accuracy") for kind, own in between.groupby("alignment", sort=False)}


def planted_pairs(p: DiffRun) -> pd.DataFrame:
    """Whether a known difference is named first: rows of planted, seed, named, effect, first (the sentence).

    A learns the shapes of InvariancesRun from a seed, B from the next. "nothing": the same images, and named says
    that no effect is above 0.2. "class": all training images of one class have the label of another for B; named is
    the pair. "shortcut": the colour follows the label in B's training images, and not in the test images; named is the
    colour.
    """
    looking = InvariancesRun(dtype=p.dtype, device=p.device)
    (own, cued), rows = load(looking).train.values(), []
    for seed in progress(range(p.planted), "planted"):
        source, target = seed % own.num_classes, (seed + 3) % own.num_classes
        names = own.classes[source], own.classes[target]
        for kind, data, wanted in (("nothing", own, ()), ("class", _relabelled(own, source, target), ("class", *names)),
                                   ("shortcut", cued, ("factor", "colour", "B"))):  # fmt: skip
            nets = looking.trained(looking.model, own, seed), looking.trained(looking.model, data, seed + 1)
            a, b = (Side(k, kind, net.to(**looking.place), own) for k, net in zip("AB", nets, strict=True))
            first = verdict(answers_compared(a, b))[0]
            named = first.about == wanted if wanted else first.effect < SMALL
            rows.append({"planted": kind, "seed": seed, "named": named, "effect": first.effect, "first": first.text})
    return pd.DataFrame(rows)


def _relabelled(data: Dataset, source: int, target: int) -> Dataset:
    labels = torch.where(data.train.labels == source, target, data.train.labels)
    return replace(data, train=Split(data.train.images, labels))
