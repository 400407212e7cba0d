"""All methods by name, in the survey's order, then those that benchmark tables have beside it.

Each is a function from a `Pair` to a `Method`. A new method is a line here, its function and its test.
"""

from reptrans.distillation.methods import answers, attention, layers, relations, translated, values
from reptrans.errors import Table, own_arguments

_METHODS = {
    "plain": answers.plain,
    "kd": answers.kd,
    "ofd": values.ofd,
    "sskd": values.sskd,
    "lp": relations.lp,
    "nst": layers.nst,
    "fitnets": values.fitnets,
    "at": attention.at,
    "at_gradient": attention.at_gradient,
    "ft": translated.ft,
    "lsl": layers.lsl,
    "fsp": layers.fsp,
    "pkt": relations.pkt,
    "ab": values.ab,
    "jacobian": attention.jacobian,
    "dk2": values.dk2,
    "feed": translated.feed,
    "sp": relations.sp,
    "rkd": relations.rkd,
    "cc": relations.cc,
    "vid": translated.vid,
    "dkd": answers.dkd,
    "review": translated.review,
}
METHODS = Table("method of distillation", {name: own_arguments(make) for name, make in _METHODS.items()})
