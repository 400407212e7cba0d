"""Parameters of an atlas, and the same networks and data as the parameters of each experiment that it puts together."""

from typing import TypeVar

from pydantic import Field, field_validator

from reptrans.comparison import SimilarityRun
from reptrans.distillation import METHODS, DistillationRun
from reptrans.distillation.experiment import read_options
from reptrans.errors import UnknownName, suggest
from reptrans.inputs import AutoencodingRun
from reptrans.l2t import L2TRun
from reptrans.notebook import DatasetParameters, Parameters, listed, some_names
from reptrans.stitching import StitchingRun

_Run = TypeVar("_Run", bound=Parameters)


class AtlasRun(SimilarityRun):
    """Pairs of networks A and B, the layers, and what is asked of each of them.

    Networks, data, `layers`, `measures`, `fold`, `images`, `epochs` as in SimilarityRun; `limit` also bounds the images
    that stitches are fitted on. `test_images`: evenly spaced ones that accuracies are of; 0 takes all. `student`, from
    `labelled` images of each class and for `student_epochs`: by `method` (with `options`, as in DistillationRun) from
    one layer of A to the last of `student_layers`, and by L2T-ww from all layers of A to all of these. `pictures`:
    evenly spaced test images, recovered from A's layers in `steps` steps.
    """

    image_size: int = Field(0, ge=0)
    front_model: str = "cnn3_w8"
    end_model: str = "cnn3_w8"
    layers: str = "conv1,relu1,pool1,conv2,relu2,pool2,conv3,relu3"
    measures: str = "debiased_cka,cca_mean,linear_r2,procrustes_angular,rsa"
    test_images: int = Field(0, ge=0)
    student: str = "cnn3_w4"
    student_layers: str = "relu1,relu2,relu3"
    method: str = "sp"
    options: str = ""
    labelled: int = Field(5, ge=1)
    student_epochs: int = Field(40, ge=1)
    batch_size: int = Field(25, ge=2)
    pictures: int = Field(4, ge=1, le=1000)
    steps: int = Field(100, ge=1)

    @field_validator("method")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in METHODS:
            raise UnknownName(f"there is no method {name!r}. {suggest(name, METHODS)}")
        return name

    @field_validator("student_layers")
    @classmethod
    def _are_some_layers(cls, text: str) -> str:
        some_names(text)
        return text

    @field_validator("options")
    @classmethod
    def _can_be_read(cls, text: str) -> str:
        read_options(text)
        return text

    def stitching(self, layer: str) -> StitchingRun:
        """The same pairs, to be stitched at `layer`; see `SimilarityRun.stitching`."""
        return self._as(SimilarityRun, SimilarityRun.model_fields).stitching(layer)

    def turned(self) -> "AtlasRun":
        """The same pairs with B in front of A."""
        return self.model_copy(update={
            "front_model": self.end_model, "front_checkpoint": self.end_checkpoint,
            "end_model": self.front_model, "end_checkpoint": self.front_checkpoint,
        })  # fmt: skip

    def distillation(self) -> DistillationRun:
        """How students are taught by one layer."""
        return self._as(
            DistillationRun, method=self.method, options=self.options, teacher=self.front_model, student=self.student,
            labelled=self.labelled, epochs=self.student_epochs, batch_size=self.batch_size,
        )  # fmt: skip

    def l2t(self, layers: list[str]) -> L2TRun:
        """How a student learns which of `layers` to match."""
        return self._as(
            L2TRun, source_model=self.front_model, source_layers=listed(layers), model=self.student,
            target_layers=self.student_layers, epochs=self.student_epochs, batch_size=self.batch_size,
        )  # fmt: skip

    def autoencoding(self, weights: str, layers: list[str], test_images: int) -> AutoencodingRun:
        """How images are recovered from `layers` of the network whose weights are in a file."""
        count = min(self.pictures, test_images)
        shown = listed(k * test_images // count for k in range(count))
        return self._as(
            AutoencodingRun, model=self.front_model, weights=weights, pictures=shown, layers=listed(layers),
            regimes="trained", starts=1, steps=self.steps,
        )  # fmt: skip

    def _as(self, kind: type[_Run], shared=(*DatasetParameters.model_fields, "dtype", "device"), **own) -> _Run:
        return kind(**{name: getattr(self, name) for name in shared}, **own)
