"""The input category: a lens that hides from old networks what they look at; the new one learns from what is left."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.data.loader import training_loader
from reptrans.errors import BadValue, check_whole
from reptrans.extension.condition import Beside, Condition, check_numbers, labelled
from reptrans.randomness import drawing
from reptrans.training import Plan, fit
from reptrans.training.batches import Batch, answers_of


class Lens(nn.Module):
    """A U-Net from images (n, c, h, w) to images of the same shape, c = `channels`; any size from 4 x 4 up.

    `scales`: how often it halves the image, less where a side would fall below 2 pixels; `width`: channels at full
    size, doubled at each scale. It adds to the image, and starts by adding 0.
    Deviation: the authors' U-Net (5 scales, widths x0.5, 1, 2) gives the image itself.
    """

    def __init__(self, channels: int = 3, scales: int = 5, width: int = 16, seed: int = 0):
        super().__init__()
        for name, value in (("channels", channels), ("scales", scales), ("width", width)):
            check_whole(name, value, 1)
        widths = [width * 2**k for k in range(scales)]
        with drawing(seed):
            self.down = nn.ModuleList(_block(a, b) for a, b in zip([channels, *widths], widths, strict=False))
            self.up = nn.ModuleList(_block(a + b, a) for a, b in zip(widths, widths[1:], strict=False))
            self.last = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.float()

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[2:]) < 4:
            raise BadValue(f"images are {tuple(images.shape)}; a lens needs sides of 4 pixels or more.")
        kept, x = [], images
        for block in self.down[: int(math.log2(min(images.shape[2:])))]:
            kept.append(block(F.max_pool2d(x, 2) if kept else x))
            x = kept[-1]
        x = kept.pop()
        while kept:
            skip = kept.pop()
            larger = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = self.up[len(kept)](torch.cat([skip, larger], 1))
        return images + self.last(x)


class LensTraining(Beside):
    """The objective of the lens itself: look the same, and not be recognised by the old networks.

        w_rec MSE(lens(x), x) - w_adv mean_i min(NLL_i, log k),
        NLL_i = -log(mean_m softmax_m(lens(x_i))[y_i])

    The clip at log k, what guessing costs, bounds it from below by -w_adv log k (the authors' has no bound, and their
    w_rec acts twice): an example that no old network recognises any more pulls no further. Only the lens is trained.
    """

    def __init__(self, lens: Lens, olds: Sequence[nn.Module], *, w_rec: float = 1.0, w_adv: float = 1.0):
        check_numbers(w_rec=w_rec, w_adv=w_adv)
        super().__init__(olds, {"w_rec": w_rec, "w_adv": w_adv})
        self.lens = lens

    def modules_to_train(self) -> dict[str, nn.Module]:
        """What `fit` takes as its modules."""
        return {"lens": self.lens}

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Terms and figures of a batch; accuracy is the old networks' mean accuracy through the lens."""
        s, seen = self.settings, self.lens(batch.images)
        logits = torch.stack([answers_of(old, seen) for old in self.olds])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        mean = logits.log_softmax(2).logsumexp(0) - math.log(len(logits))
        nll = F.nll_loss(mean, batch.labels, reduction="none")
        terms = {
            "reconstruction": s["w_rec"] * F.mse_loss(seen, batch.images),
            "recognition": -s["w_adv"] * nll.clamp_max(math.log(logits.shape[2])).mean(),
        }
        return terms, {"old_accuracy": (mean.argmax(1) == batch.labels).to(mean.dtype).mean()}


class ThroughLens(Condition):
    """Cross-entropy of the new network on lensed images; it is tested on clean ones. The lens is frozen, in eval mode.

    `lens`: one that `LensTraining` has trained against the same old networks.
    """

    def __init__(
        self, new: nn.Module, olds: Sequence[nn.Module], lens: Lens, *, example: Tensor, settings: dict | None = None
    ):
        super().__init__(new, olds, example, settings or {})
        self._lens = (lens.eval().requires_grad_(False),)

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Terms and figures of a batch."""
        with torch.no_grad():
            seen = self._lens[0].eval()(batch.images)
        return labelled(answers_of(self.new, seen), batch.labels)


def lensed(
    dataset: object,
    plan: Plan,
    *,
    batch_size: int = 128,
    scales: int = 5,
    width: int = 16,
    w_rec: float = 1.0,
    w_adv: float = 1.0,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> Callable[..., ThroughLens]:
    """A condition for `extend` that first trains a lens against the old networks, by `plan`.

    `checkpoint`: a file from which an interrupted training of the lens goes on; with several networks in a sequence,
    "{k}" in it stands for the number of old ones.
    """
    chosen = {"plan": plan.facts(), "batch_size": batch_size, "scales": scales, "width": width, "w_rec": w_rec,
              "w_adv": w_adv, "seed": seed}  # fmt: skip

    def condition(new: nn.Module, olds: Sequence[nn.Module], example: Tensor, training: bool = True) -> ThroughLens:
        place = {"device": example.device, "dtype": example.dtype}
        lens = Lens(dataset.channels, scales, width, seed).to(**place)
        if training:
            objective = LensTraining(lens, olds, w_rec=w_rec, w_adv=w_adv)
            loader = training_loader(dataset, batch_size, seed, **place)
            path = None if checkpoint is None else str(checkpoint).format(k=len(objective.olds))
            fit(objective, objective.modules_to_train(), loader, plan, checkpoint=path, label="lens")
        return ThroughLens(new, olds, lens, example=example, settings=chosen)

    condition.rehearse = partial(condition, training=False)  # for `extend`
    return condition


def _block(source: int, target: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(source, target, 3, padding=1, bias=False), nn.BatchNorm2d(target), nn.ReLU(),
        nn.Conv2d(target, target, 3, padding=1, bias=False), nn.BatchNorm2d(target), nn.ReLU(),
    )  # fmt: skip
