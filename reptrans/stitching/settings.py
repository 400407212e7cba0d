"""How layers are stitched and scored: one checked value for the notebook, the Python caller and the stored run."""

from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator

from reptrans.notebook import Parameters, names
from reptrans.stitching.direct import DIRECT
from reptrans.stitching.initial import BY_CHANCE, INITS, MASKS
from reptrans.stitching.stitch import FORMS
from reptrans.stitching.targets import TARGETS
from reptrans.training import Plan


class StitchingSettings(Parameters):
    """The source's options under the source's names, and its defaults but for the start, which is solved here.

    Training: `epochs`, `lr`, `optimiser`, `weight_decay`, `schedule`, `batch_size`, `augment`. The stitch: `init`,
    `mask`, `form` with `rank`, `flatten`, `batch_norm`, `keep_skip`. Its loss: `target`, `temperature`, `l1`,
    `cka_reg`. Closed forms beside it: `direct`, a comma list of names in DIRECT or all, with `rank` and `ridge`.
    `memory`: GiB that activations computed once may take; `cka_images`: images for CKA at the cut.
    """

    direct: str = "all"
    init: Literal[INITS] = "ps_inv"
    mask: Literal[MASKS] = "identity"
    form: Literal[FORMS[:-1]] = "free"
    rank: int = Field(4, ge=1, le=100_000)
    ridge: float = Field(1e-3, ge=0)
    flatten: bool = False
    batch_norm: bool = False
    keep_skip: bool = False
    target: Literal[TARGETS] = "hard"
    temperature: float = Field(1.0, gt=0)
    l1: float = Field(0.0, ge=0)
    cka_reg: float = 0.0
    epochs: int = Field(30, ge=0)
    lr: float = Field(1e-3, gt=0)
    optimiser: Literal["sgd", "adam", "adamw"] = "adam"
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["steps", "one_cycle", "cosine", "constant"] = "steps"
    batch_size: int = Field(128, ge=1)
    augment: str = "none"
    cka_images: int = Field(2000, ge=4)
    memory: float = Field(4.0, ge=0)
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    device: str = "auto"

    @field_validator("direct")
    @classmethod
    def _are_known(cls, text: str) -> str:
        names(text, DIRECT)
        return text

    @model_validator(mode="after")
    def _agree(self) -> "StitchingSettings":
        if self.mask != "identity" and self.form != "free":
            raise ValueError(f"mask {self.mask!r} and form {self.form!r} exclude each other; leave one at its default")
        if self.mask != "identity" and self.init not in ("ps_inv", "random", "ones-zeros"):
            raise ValueError(f"init {self.init!r} puts weights where mask {self.mask!r} has none; take ps_inv, random "
                             "or ones-zeros")  # fmt: skip
        return self

    @property
    def torch_dtype(self) -> torch.dtype:
        """What weights and activations are held in; bfloat16 is autocast over float32."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def needs_moments(self) -> bool:
        """Whether any closed form is asked for: as a result, a start, a mask, or the statistics of a batch norm."""
        chance = self.init in BY_CHANCE and self.mask in ("identity", "random-permutation")
        return not chance or self.batch_norm or bool(self.direct_kinds)

    @property
    def direct_kinds(self) -> list[str]:
        """The closed forms asked for."""
        return names(self.direct, DIRECT)

    @property
    def uses_rank(self) -> bool:
        ranked = {"reduced rank", "sparse"} & set(self.direct_kinds)
        return bool(ranked) or self.init in ("reduced-rank", "sparse") or self.form == "low rank"

    @property
    def starts_from_least_squares(self) -> bool:
        return (self.init, self.mask, self.form) == ("ps_inv", "identity", "free")

    def plan(self, seed: int) -> Plan:
        return Plan(
            epochs=self.epochs, optimiser=self.optimiser, lr=self.lr, weight_decay=self.weight_decay,
            schedule=self.schedule, precision=self.dtype, seed=seed,
        )  # fmt: skip
