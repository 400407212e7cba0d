"""How long and how fast to train: the plan, the learning rate at every step, the optimiser.

The learning rate is a function of the step alone, so a training that goes on after an interruption needs no state of a
scheduler, and every schedule has a formula to check.

Trainings whose digits repeat on every processor are computed in double precision and kept in single. Two processors add
the same numbers in another order and differ in the last of 53 bits. Training is chaotic: after some hundred steps that
difference stands in the first digits. Where the weights are rounded to 24 bits after every step, it is wiped out before
it can grow, but for the weight (one in 10⁸ or 10⁹ at each step) that lies just between two of the rounded numbers. Such
a weight is rarer by half for each bit less that is kept: adversarial trainings, in which hardly a digit survives a
single one, keep 16.
"""

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from reptrans.errors import BadValue, check_whole, choose, own_arguments
from reptrans.randomness import checked_seed

OPTIMISERS = ("sgd", "adam", "adamw")
SCHEDULES = ("steps", "one_cycle", "cosine", "constant", "milestones")
SINGLE = 24  # significant bits of a number in single precision
PRECISIONS = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
# Of a plan's numbers: what they must be, in words and as a condition.
_NUMBERS = {
    "lr": ("a number above 0", lambda v: v > 0),
    "momentum": ("at least 0 and below 1", lambda v: 0 <= v < 1),
    "weight_decay": ("a number from 0 on", lambda v: v >= 0),
    "bits": ("a whole number from 8 to 24", lambda v: v in range(8, SINGLE + 1)),
    "clip": ("a number above 0, or None for no limit", lambda v: v > 0),
}


@own_arguments
@dataclass(frozen=True)
class Plan:
    """All that decides how parameters move, apart from the objective and the data.

    Defaults are those of the model-stitching study (Csiszárik et al. 2021, authors' code) with 30 epochs for 300. `lr`:
    the highest learning rate. `momentum`, `nesterov`: for sgd alone. `weight_decay`: L2 for sgd and adam, decoupled for
    adamw. `precision`: of the weights; "bfloat16" computes in bfloat16 where autocast allows and keeps float32 weights.
    `portable`: the weights are rounded to `bits` significant bits, 24 being single precision, after every step, so that
    a training in "float64" ends the same on every processor (two processors add in different orders; what differs in
    the last of 53 bits is wiped out before it grows); other precisions are left as they are. `clip`: largest norm of
    all gradients together, None for no limit. `seed`: of dropout and the like. `warmup`: epochs at the start over which
    the rate rises.
    `optimiser`: "sgd", "adam", "adamw". `schedule`: "steps", x0.1 at a third and at two thirds of the epochs;
    "one_cycle", from 1/25 up over the first 0.3 of the steps, then down to 1/250000; "cosine", down to 0; "constant";
    "milestones", x0.1 after each of `milestones`, numbers of epochs from 1 on.
    Raises BadValue.
    """

    epochs: int = 30
    optimiser: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    schedule: str = "steps"
    precision: str = "float32"
    portable: bool = False
    bits: int = SINGLE
    clip: float | None = None
    seed: int = 0
    milestones: tuple[int, ...] = ()
    warmup: int = 0

    def __post_init__(self) -> None:
        for name, known in (("optimiser", OPTIMISERS), ("schedule", SCHEDULES), ("precision", tuple(PRECISIONS))):
            choose(getattr(self, name), known, f"{name} is {{}}", BadValue)
        for name, least in (("epochs", 1), ("warmup", 0)):
            check_whole(name, getattr(self, name), least)
        checked_seed(self.seed)
        for name, (wanted, holds) in _NUMBERS.items():
            if not _holds(value := getattr(self, name), holds) and (name, value) != ("clip", None):
                raise BadValue(f"{name} is {value!r}; it must be {wanted}.")
        if self.optimiser == "sgd" and self.nesterov and self.momentum == 0:
            raise BadValue("nesterov is True and momentum is 0: Nesterov's step needs momentum. Set nesterov=False.")
        _check_milestones(self)
        _check_warmup(self)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return PRECISIONS[self.precision]

    def over(self, epochs: int) -> "Plan":
        """This plan over other epochs, with milestones and warm-up in proportion."""
        share = epochs / self.epochs
        milestones = sorted({round(share * m) for m in self.milestones} & set(range(1, epochs)))
        if self.milestones and not milestones:
            return replace(self, epochs=epochs, schedule="constant", milestones=(), warmup=0)
        return replace(
            self, epochs=epochs, milestones=tuple(milestones), warmup=min(round(share * self.warmup), epochs - 1)
        )

    def facts(self) -> dict[str, object]:
        """Its fields as plain data, by which files are named and trainings told apart.

        What came later is left out where it is not used: older files keep their names.
        """
        later = {"milestones": (), "warmup": 0, "bits": SINGLE}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


def learning_rate_factor(plan: Plan, step: int, steps_per_epoch: int) -> float:
    """The share of the highest learning rate, in [0, 1], in the step that follows `step` steps already done.

    With N = epochs * steps_per_epoch:
    "constant": 1. "cosine": (1 + cos(pi * step / N)) / 2.
    "steps": 0.1 ** (3 * epoch // epochs), epoch counted from 0, so x0.1 at a third and at two thirds of the epochs, and
    never inside one (the stitching study's code compares with 0.333 and 0.666, which is an epoch earlier in long runs).
    "one_cycle" (Smith and Topin 2018, as torch's OneCycleLR with its defaults, but momentum stays as it is):
    from 1/25 up to 1 over the first 0.3 N steps and down to 1/250000 over the rest, each half a cosine.
    "milestones": 0.1 ** (number of milestones up to epoch), epoch counted from 0; CIFAR-100 in Tian et al. 2020: 150,
    180, 210 of 240.
    In the first `warmup` epochs this is multiplied by (step + 1) / (warmup * steps_per_epoch).
    """
    rising = min(1.0, (step + 1) / (plan.warmup * steps_per_epoch)) if plan.warmup else 1.0
    return rising * _schedule(plan, step, steps_per_epoch)


def build_optimiser(plan: Plan, groups: list[dict]) -> torch.optim.Optimizer:
    """torch's optimiser of the plan over `groups` (dicts with "params", and what they set otherwise than the plan)."""
    if plan.optimiser == "sgd":
        settings = {"momentum": plan.momentum, "nesterov": plan.nesterov}
        return torch.optim.SGD(groups, lr=plan.lr, weight_decay=plan.weight_decay, **settings)
    kind = torch.optim.Adam if plan.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, lr=plan.lr, weight_decay=plan.weight_decay)


def autocast(plan: Plan | None, device: torch.device) -> contextlib.AbstractContextManager:
    """Inside, `device` computes in bfloat16 where that is the plan's precision."""
    if plan is None or plan.precision != "bfloat16":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _schedule(plan: Plan, step: int, steps_per_epoch: int) -> float:
    total = plan.epochs * steps_per_epoch
    if plan.schedule == "milestones":
        return 0.1 ** sum(milestone <= step // steps_per_epoch for milestone in plan.milestones)
    if plan.schedule == "steps":
        return (1.0, 0.1, 0.01)[min(3 * (step // steps_per_epoch) // plan.epochs, 2)]
    if plan.schedule == "cosine":
        return _between(1.0, 0.0, step / total)
    if plan.schedule == "one_cycle":
        return _one_cycle(step, total)
    return 1.0


def _one_cycle(step: int, total: int) -> float:
    start, end, top = 1 / 25, 1 / 25 / 1e4, 0.3 * total - 1
    if step <= top:
        return _between(start, 1.0, step / top)
    return _between(1.0, end, (step - top) / (total - 1 - top))


def _between(start: float, end: float, share: float) -> float:
    """Half a cosine wave from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _holds(value: object, condition: Callable[[float], bool]) -> bool:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return numeric and math.isfinite(value) and condition(value)


def _check_milestones(plan: Plan) -> None:
    given = plan.milestones
    if (plan.schedule == "milestones") != bool(given):
        raise BadValue(
            f"schedule is {plan.schedule!r} and milestones is {given!r}: the one needs the other. Give both, as in "
            'schedule="milestones", milestones=(150, 180, 210), or neither.'
        )
    whole = isinstance(given, tuple) and all(type(epoch) is int and 1 <= epoch < plan.epochs for epoch in given)
    if not whole or list(given) != sorted(set(given)):
        raise BadValue(
            f"milestones is {given!r}; it must be a tuple of whole numbers that rise, from 1 on and below "
            f"epochs={plan.epochs}."
        )


def _check_warmup(plan: Plan) -> None:
    if plan.warmup and plan.schedule == "one_cycle":
        raise BadValue(f"warmup is {plan.warmup} and schedule 'one_cycle', which has a rise of its own. Set warmup=0.")
    if plan.warmup >= plan.epochs:
        raise BadValue(f"warmup is {plan.warmup}; it must be below epochs={plan.epochs}.")


@torch.no_grad()
def round_weights(tensors: Iterable[Tensor], bits: int = SINGLE) -> None:
    """Round each float64 tensor, in place, to the nearest numbers of float32, then of `bits`; others are left alone."""
    for tensor in tensors:
        if tensor.dtype != torch.float64:
            continue
        tensor.copy_(tensor.float())
        if bits < SINGLE:
            # The sum with a number so much larger has no room for the lower bits (Veltkamp's splitting).
            large = tensor * (2.0 ** (53 - bits) + 1)
            tensor.copy_(large - (large - tensor))
