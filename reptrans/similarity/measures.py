"""The table of all measures of representations, and what each claims about itself; a test checks every claim.

Adding a measure is its function, its line here, and its values in the tests.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from reptrans.errors import BadValue, Table, suggest
from reptrans.similarity import cca, cka, distances, grams, neighbours, shapes

ORTHOGONAL, PERMUTATION, SCALE, TRANSLATION, LINEAR = "orthogonal", "permutation", "scale", "translation", "linear"


@dataclass(frozen=True)
class Measure:
    """A measure of two representations, and what may be relied on; to be called with x (n, p) and y (n, q).

    `alike`: "high" or "low", the end of `range` that means alike (`range[1]` or `range[0]`). `invariances`: changes of
    either representation that leave the value as it is; `y_only` those of the second alone.
    `needs`: "moments" (exact from one streamed pass), "grams" (streamed in batches), or "rows" (all in memory).
    """

    function: Callable
    alike: str
    range: tuple[float, float]
    invariances: frozenset[str]
    needs: str = "rows"
    symmetric: bool = True
    differentiable: bool = True
    y_only: frozenset[str] = frozenset()

    def __call__(self, x: Tensor, y: Tensor, **options) -> Tensor:
        """The measure of x (n, p) and y (n, q), tensors, NumPy arrays or lists; `options` are the function's."""
        self.check_options(options)
        return self.function(x, y, **options)

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def higher_is_better(self) -> bool:
        return self.alike == "high"

    def check_options(self, options: dict) -> None:
        """Raise BadValue for an option that the function does not have."""
        known = list(inspect.signature(self.function).parameters)[2:]
        for name in options:
            if name not in known:
                possible = suggest(name, known) if known else "It takes none."
                raise BadValue(f"{self.name} has no option {name!r}. {possible}")


_ROTATED = frozenset({ORTHOGONAL, PERMUTATION, SCALE, TRANSLATION})
_RIGID = _ROTATED - {SCALE}
_ANY = _ROTATED | {LINEAR}
_EXCHANGED = frozenset({PERMUTATION, SCALE, TRANSLATION})
_TURNED = frozenset({ORTHOGONAL, PERMUTATION, SCALE})
_INF = math.inf

_MEASURES = (
    Measure(cka.linear_cka, "high", (0, 1), _ROTATED, "moments"),
    Measure(cka.debiased_cka, "high", (-1, 1), _ROTATED, "moments"),
    Measure(grams.minibatch_cka, "high", (-1, 1), _ROTATED, "grams", differentiable=False),
    Measure(cka.rbf_cka, "high", (0, 1), _ROTATED),
    Measure(cca.cca_mean, "high", (0, 1), _ANY, "moments"),
    Measure(cca.cca_r2, "high", (0, 1), _ANY, "moments"),
    Measure(cca.svcca, "high", (0, 1), _ROTATED, "moments"),
    Measure(cca.pwcca, "high", (0, 1), _EXCHANGED, "moments", symmetric=False, y_only=_ANY),
    Measure(cca.linear_r2, "high", (0, 1), _ROTATED, "moments", symmetric=False, y_only=_ANY),
    Measure(cca.gulp, "low", (0, _INF), _ANY, "moments"),
    Measure(shapes.procrustes_angular, "low", (0, math.pi / 2), _ROTATED, "moments"),
    Measure(shapes.procrustes_size_shape, "low", (0, _INF), _RIGID, "moments"),
    Measure(shapes.permutation_angular, "low", (0, math.pi / 2), _EXCHANGED, "moments"),
    Measure(shapes.permutation_euclid, "low", (0, _INF), _EXCHANGED - {SCALE}, "moments"),
    Measure(shapes.hard_correlation_match, "high", (-1, 1), _EXCHANGED, "moments"),
    Measure(shapes.soft_correlation_match, "high", (-1, 1), _EXCHANGED, "moments"),
    Measure(shapes.aligned_cosine, "high", (-1, 1), _TURNED),
    Measure(shapes.eigenspace_overlap, "high", (0, 1), _TURNED | {LINEAR}),
    Measure(distances.rsa, "high", (-1, 1), frozenset({PERMUTATION, SCALE}), differentiable=False),
    Measure(distances.rsm_frobenius, "low", (0, _INF), _RIGID),
    Measure(distances.rsm_spectral, "low", (0, _INF), _RIGID),
    Measure(distances.distance_correlation, "high", (0, 1), _ROTATED),
    Measure(neighbours.knn_jaccard, "high", (0, 1), _TURNED, differentiable=False),
    Measure(neighbours.mutual_knn, "high", (0, 1), _TURNED, differentiable=False),
    Measure(neighbours.rank_similarity, "high", (0, 1), _TURNED, differentiable=False),
    Measure(neighbours.second_order_cosine, "high", (-1, 1), _TURNED),
    Measure(neighbours.cknna, "high", (-1, 1), _TURNED, symmetric=False),
)
MEASURES = Table("measure", {measure.name: measure for measure in _MEASURES})


def find(name: str) -> Measure:
    """The record of a measure; UnknownName otherwise."""
    return MEASURES[name]
