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

    `higher_is_better`: whether high values mean similar, so that the best is `range[1]`, and not `range[0]`.
    `invariances`: changes of either representation that leave the value as it is; `y_only` those of the second alone.
    `needs`: "moments" (exact from one streamed pass), "grams" (streamed in batches), or "rows" (all in memory).
    """

    function: Callable
    higher_is_better: bool
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
    Measure(cka.linear_cka, True, (0, 1), _ROTATED, "moments"),
    Measure(cka.debiased_cka, True, (-1, 1), _ROTATED, "moments"),
    Measure(grams.minibatch_cka, True, (-1, 1), _ROTATED, "grams", differentiable=False),
    Measure(cka.rbf_cka, True, (0, 1), _ROTATED),
    Measure(cca.cca_mean, True, (0, 1), _ANY, "moments"),
    Measure(cca.cca_r2, True, (0, 1), _ANY, "moments"),
    Measure(cca.svcca, True, (0, 1), _ROTATED, "moments"),
    Measure(cca.pwcca, True, (0, 1), _EXCHANGED, "moments", symmetric=False, y_only=_ANY),
    Measure(cca.linear_r2, True, (0, 1), _ROTATED, "moments", symmetric=False, y_only=_ANY),
    Measure(cca.gulp, False, (0, _INF), _ANY, "moments"),
    Measure(shapes.procrustes_angular, False, (0, math.pi / 2), _ROTATED, "moments"),
    Measure(shapes.procrustes_size_shape, False, (0, _INF), _RIGID, "moments"),
    Measure(shapes.permutation_angular, False, (0, math.pi / 2), _EXCHANGED, "moments"),
    Measure(shapes.permutation_euclid, False, (0, _INF), _EXCHANGED - {SCALE}, "moments"),
    Measure(shapes.hard_correlation_match, True, (-1, 1), _EXCHANGED, "moments"),
    Measure(shapes.soft_correlation_match, True, (-1, 1), _EXCHANGED, "moments"),
    Measure(shapes.aligned_cosine, True, (-1, 1), _TURNED),
    Measure(shapes.eigenspace_overlap, True, (0, 1), _TURNED | {LINEAR}),
    Measure(distances.rsa, True, (-1, 1), frozenset({PERMUTATION, SCALE}), differentiable=False),
    Measure(distances.rsm_frobenius, False, (0, _INF), _RIGID),
    Measure(distances.rsm_spectral, False, (0, _INF), _RIGID),
    Measure(distances.distance_correlation, True, (0, 1), _ROTATED),
    Measure(neighbours.knn_jaccard, True, (0, 1), _TURNED, differentiable=False),
    Measure(neighbours.mutual_knn, True, (0, 1), _TURNED, differentiable=False),
    Measure(neighbours.rank_similarity, True, (0, 1), _TURNED, differentiable=False),
    Measure(neighbours.second_order_cosine, True, (-1, 1), _TURNED),
    Measure(neighbours.cknna, True, (-1, 1), _TURNED, symmetric=False),
)
#: Every measure by name, as a `Measure`; `compare` also takes one that is not among them.
MEASURES = Table("measure", {measure.name: measure for measure in _MEASURES})


def find(measure: str | Measure) -> Measure:
    """The record of a measure, by its name or itself; UnknownName otherwise."""
    return measure if isinstance(measure, Measure) else MEASURES[measure]
