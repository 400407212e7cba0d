"""An experiment in one line, for a Python session: its parts made with their usual settings."""

import pandas as pd
from torch import nn

from reptrans.data import Dataset, TextDataset
from reptrans.errors import BadValue
from reptrans.experiments.stitched import Stitching, StitchingSettings
from reptrans.layers.network import copy_of, unwrap
from reptrans.stitching import StitchedNetwork


def stitch(
    front_net: nn.Module,
    end_net: nn.Module,
    layer: str | tuple[str, str],
    dataset: Dataset | TextDataset,
    *,
    seed: int = 0,
    **settings,
) -> tuple[StitchedNetwork, pd.DataFrame]:
    """(stitched network, its scores): the front of one network, a stitch at `layer`, the end of the other.

        network, scores = stitch(a, b, "bn3", dataset)
        network, scores = stitch(
            a, b, ("layer2", "bn3"), dataset, epochs=5, direct="procrustes,least squares"
        )

    `layer`: of both, or (front layer, end layer). The stitch is solved by least squares on the training images, and
    with `epochs` above 0 then trained on the task's loss. `settings`: those of `StitchingSettings`. Scores are on the
    test images, a row for each way that `direct` names and one for the trained stitch, which is then the network's.
    Both networks are copied, so that they stay as they are. `seed`: of the training's order and of random starts.
    Raises what `Stitching` does, before any compute.
    """
    if not isinstance(dataset, (Dataset, TextDataset)):
        raise BadValue(
            f"the data set is a {type(dataset).__name__}. Give a Dataset: load_dataset(name), or Dataset.from_torch of "
            "your own images."
        )
    pair = (layer, layer) if isinstance(layer, str) else layer
    chosen = StitchingSettings(**{"direct": "least squares", "epochs": 0} | settings)
    networks = (copy_of(unwrap(net)) for net in (front_net, end_net))
    stitching = Stitching(*networks, [pair], dataset, chosen, seed=seed)
    found = stitching.stitch(*stitching.pairs[0])
    return found.network, found.rows
