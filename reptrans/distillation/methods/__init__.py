"""All methods by name, in the survey's order, then those that benchmark tables have beside it.

Each is a function from a `Pair` to a `Method`. A new method is a line here, its file and its test.
"""

from reptrans.distillation.methods import (
    attention,
    boundaries,
    congruence,
    dkd,
    dominant,
    factor,
    feed,
    fitnets,
    flow,
    information,
    jacobian,
    kd,
    layers,
    locality,
    overhaul,
    probabilistic,
    relations,
    review,
    selectivity,
    similarity,
    stagewise,
)
from reptrans.errors import Table, own_arguments

_METHODS = {
    "plain": kd.plain,
    "kd": kd.kd,
    "ofd": overhaul.ofd,
    "sskd": stagewise.sskd,
    "lp": locality.lp,
    "nst": selectivity.nst,
    "fitnets": fitnets.fitnets,
    "at": attention.at,
    "at_gradient": attention.at_gradient,
    "ft": factor.ft,
    "lsl": layers.lsl,
    "fsp": flow.fsp,
    "pkt": probabilistic.pkt,
    "ab": boundaries.ab,
    "jacobian": jacobian.jacobian,
    "dk2": dominant.dk2,
    "feed": feed.feed,
    "sp": similarity.sp,
    "rkd": relations.rkd,
    "cc": congruence.cc,
    "vid": information.vid,
    "dkd": dkd.dkd,
    "review": review.review,
}
METHODS = Table("method of distillation", {name: own_arguments(make) for name, make in _METHODS.items()})
