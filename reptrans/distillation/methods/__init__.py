"""All methods by name, in the survey's order, then those that benchmark tables have beside it.

Each is a function from a `Pair` to a `Method`. A new method is a line here, its file and its test.
"""

from reptrans.distillation.methods.attention import at, at_gradient
from reptrans.distillation.methods.boundaries import ab
from reptrans.distillation.methods.congruence import cc
from reptrans.distillation.methods.dominant import dk2
from reptrans.distillation.methods.factor import ft
from reptrans.distillation.methods.feed import feed
from reptrans.distillation.methods.fitnets import fitnets
from reptrans.distillation.methods.flow import fsp
from reptrans.distillation.methods.information import vid
from reptrans.distillation.methods.jacobian import jacobian
from reptrans.distillation.methods.kd import kd, plain
from reptrans.distillation.methods.layers import lsl
from reptrans.distillation.methods.locality import lp
from reptrans.distillation.methods.overhaul import ofd
from reptrans.distillation.methods.probabilistic import pkt
from reptrans.distillation.methods.relations import rkd
from reptrans.distillation.methods.selectivity import nst
from reptrans.distillation.methods.similarity import sp
from reptrans.distillation.methods.stagewise import sskd
from reptrans.matching import Table

METHODS = Table(
    "method of distillation",
    {
        "plain": plain,
        "kd": kd,
        "ofd": ofd,
        "sskd": sskd,
        "lp": lp,
        "nst": nst,
        "fitnets": fitnets,
        "at": at,
        "at_gradient": at_gradient,
        "ft": ft,
        "lsl": lsl,
        "fsp": fsp,
        "pkt": pkt,
        "ab": ab,
        "jacobian": jacobian,
        "dk2": dk2,
        "feed": feed,
        "sp": sp,
        "rkd": rkd,
        "cc": cc,
        "vid": vid,
    },
)
