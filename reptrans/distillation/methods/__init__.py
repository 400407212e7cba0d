"""All methods by name, in the survey's order, then those that benchmark tables have beside it.

Each is a function from a `Pair` to a `Method`. A new method is a line here, its function and its test.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps

from reptrans.distillation.method import Method, Pair
from reptrans.distillation.methods import answers, attention, layers, relations, translated, values
from reptrans.errors import Table, own_arguments

# What makes the method, its entry in the survey, its paper, and what its transforms lose; see `Method`.
_METHODS = {
    "plain": (answers.plain, None, "", ""),
    "kd": (answers.kd, None, "hinton2015", "the features"),
    "ofd": (values.ofd, 1, "heo2019overhaul", "how far below the margin a value is"),
    "sskd": (values.sskd, 3, "gao2018", "nothing"),
    "lp": (relations.lp, 4, "chen2021embedding", "the features; pairs that are not neighbours"),
    "nst": (layers.nst, 6, "huang2017", "which channel it is, and its strength"),
    "fitnets": (values.fitnets, 7, "romero2015", "nothing"),
    "at": (attention.at, 8, "zagoruyko2017", "channels, and the map's strength"),
    "at_gradient": (
        attention.at_gradient, 8, "zagoruyko2017", "the features: only the loss's response to each pixel is kept",
    ),
    "ft": (translated.ft, 9, "kim2018", "what the paraphraser leaves out, and the map's strength"),
    "lsl": (layers.lsl, 10, "li2019layer", "places, and what a random projection merges"),
    "fsp": (layers.fsp, 11, "yim2017", "places"),
    "pkt": (relations.pkt, 12, "passalis2018", "the features, and their distances: neighbours are shares"),
    "ab": (values.ab, 13, "heo2019boundaries", "values: only signs are kept"),
    "jacobian": (attention.jacobian, 15, "srinivas2018", "the features, and the Jacobian's size"),
    "dk2": (values.dk2, 16, "wang2016", "a constant added to all values"),
    "feed": (translated.feed, 17, "park2019feed", "the map's strength"),
    "sp": (relations.sp, None, "tung2019", "the features, and each image's strength"),
    "rkd": (relations.rkd, None, "park2019relational", "the features, and the scale of distances"),
    "cc": (relations.cc, None, "peng2019", "the features, and their lengths"),
    "vid": (translated.vid, None, "ahn2019", "what cannot be predicted: it counts little"),
    "dkd": (answers.dkd, None, "zhao2022", "the features"),
    "review": (translated.review, None, "chen2021review", "nothing"),
}  # fmt: skip


def _described(make: Callable[..., Method], entry: int | None, paper: str, loses: str) -> Callable[..., Method]:
    """`make`, whose methods say where they stand in the survey; it refuses options that it does not have."""

    @wraps(make)
    def method(pair: Pair, **options) -> Method:
        return replace(make(pair, **options), entry=entry, paper=paper, loses=loses)

    return own_arguments(method)


#: Every method by name: a function from a `Pair`, and options of its own, to a `Method`. UnknownName for other names.
METHODS = Table("method of distillation", {name: _described(*line) for name, line in _METHODS.items()})
