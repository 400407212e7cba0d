"""Task-loss matching: the stitch alone is trained, through the frozen end, towards labels or parents' predictions."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.data import Batch, Loader, Split
from reptrans.errors import choose
from reptrans.layers.values import answer
from reptrans.similarity import linear_cka
from reptrans.stitching.frozen import kept
from reptrans.stitching.stitch import StitchedNetwork
from reptrans.training import Plan, accuracy, classification_loss, fit
from reptrans.training.layout import channels_last
from reptrans.training.resume import weights_of

if TYPE_CHECKING:
    import pandas as pd


def train_stitch(
    network: StitchedNetwork,
    loader: Loader,
    plan: Plan,
    *,
    target: str = "hard",
    parents: tuple[nn.Module, nn.Module] | None = None,
    temperature: float = 1.0,
    l1: float = 0.0,
    cka_reg: float = 0.0,
    end_front: nn.Module | None = None,
    memory: float = 4.0,
    front_activations: Tensor | None = None,
    checkpoint: Path | None = None,
    label: str = "stitch",
) -> "pd.DataFrame":
    """Train `network.stitch` on the task and return one row for each epoch.

        loss = target loss + l1 · mean|W|
               + cka_reg · CKA(own activations, stitched activations)

    Arguments: `target` as in `soft_target_loss`, with `parents` = (front's network, end's network) for the soft ones;
    `temperature` of soft targets; `l1` weights the mean absolute entry of the stitch's weight; `cka_reg` weights the
    linear CKA (flattened, over the batch) to `end_front`'s activations, the end network's own at the cut: a positive
    value drives CKA *down*, as in the source's experiment on functional against geometric similarity.
    Without augmentation the front's activations are computed once if they fit into `memory` GiB; the numbers are the
    same. `front_activations`: of every image of the loader's split, where they are known already.
    Rows: epoch, step, lr, the terms of the loss, accuracy on the training batches.
    `checkpoint` as in `fit`: an interrupted call resumes. Raises UnknownName (target), and what `fit` does.
    Source: Csiszárik et al. 2021 and their code (batch norm in eval mode, Adam, learning rate x0.1 after each third).
    """
    soft = needs_parents(target)
    frozen = {"front": network.front}
    if soft:
        frozen |= {"soft_1": parents[0], "soft_2": parents[1]}
    if cka_reg:
        frozen["own"] = end_front

    def objective(batch: Batch, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with torch.no_grad():
            if tables is None:
                known = {name: answer(module(batch.images)) for name, module in frozen.items()}
            else:
                known = {name: table[batch.index] for name, table in tables.items() if name != "front"}
                known["front"] = batch.images
        stitched = network.stitch(known["front"])
        logits = answer(network.end(stitched, batch.images) if network.keep_skip else network.end(stitched))
        if soft:
            loss = soft_target_loss(target, logits, known["soft_1"], known["soft_2"], temperature)
        else:
            loss = classification_loss(logits, batch.labels)
        terms = {"task": loss}
        if l1:
            terms["l1"] = l1 * network.stitch.weight.abs().mean()
        if cka_reg:
            terms["cka"] = cka_reg * linear_cka(known["own"].flatten(1), stitched.flatten(1))
        return terms, {"accuracy": accuracy(logits.detach(), batch.labels)}

    others = [net for net in (*(parents or ()), end_front) if net is not None]
    with channels_last([network, *others], next(iter(loader.plain())).images):
        tables = None if network.keep_skip else _kept(frozen, front_activations, loader, memory)
        batches = loader if tables is None else loader.over(Split(tables["front"], loader.split.labels))
        facts = {"target": target, "temperature": temperature, "l1": l1, "cka_reg": cka_reg}
        facts["networks"] = weights_of(network.front, network.end, *others) if checkpoint else []
        return fit(
            objective, {"stitch": network.stitch}, batches, plan, checkpoint=checkpoint, facts=facts, label=label
        )


def _kept(
    frozen: dict[str, nn.Module], known: Tensor | None, loader: Loader, memory: float
) -> dict[str, Tensor] | None:
    if known is None or loader.augment != "none":
        return kept(frozen, loader, memory)
    others = {name: module for name, module in frozen.items() if name != "front"}
    rest = kept(others, loader, memory) if others else {}
    return None if rest is None else rest | {"front": known}


#: What a stitched network is trained towards: labels, or predictions of its parents, see `soft_target_loss`.
TARGETS = ("hard", "soft_1", "soft_2", "soft_12", "soft_1_plus_2")


def soft_cross_entropy(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """−Σ softmax(teacher / T) · log softmax(logits / T), mean over the batch, in nats; no factor T².

    logits, teacher (n, k). At least the entropy of the teacher's prediction, which it has where both agree.
    """
    return F.cross_entropy(logits / temperature, F.softmax(teacher / temperature, dim=1))


def needs_parents(target: str) -> bool:
    """Whether the target uses the logits of the front's and the end's own networks."""
    return choose(target, TARGETS, "Unknown target {}") != "hard"


def soft_target_loss(target: str, logits: Tensor, front: Tensor, end: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy to the parents' predictions (n, k), in nats per example.

    soft_1: the front's network; soft_2: the end's; soft_12: the mean of these two losses; soft_1_plus_2: one loss to
    the mean of the two networks' logits (the source calls it a sum; its code takes the mean, as here).
    """
    if target == "soft_12":
        return 0.5 * sum(soft_cross_entropy(logits, parent, temperature) for parent in (front, end))
    teacher = {"soft_1": front, "soft_2": end, "soft_1_plus_2": (front + end) / 2}[target]
    return soft_cross_entropy(logits, teacher, temperature)
