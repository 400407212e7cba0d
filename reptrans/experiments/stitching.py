"""The experiment as a whole: networks by name or checkpoint, several seeds, all layers, resumable piece by piece."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from weakref import WeakValueDictionary

import pandas as pd
from pydantic import Field
from torch import Tensor, nn

from reptrans.checkpoints import fingerprint, load_network
from reptrans.data import Dataset, TextDataset
from reptrans.errors import BadValue, CannotCut
from reptrans.experiments.parameters import TrainingParameters, TwoNetworks, piece
from reptrans.experiments.stitched import Stitching, StitchingSettings
from reptrans.files import file_name
from reptrans.layers import cuttable_layers
from reptrans.models import build
from reptrans.notebook import listed, once, parts
from reptrans.paths import expanded
from reptrans.progress import progress
from reptrans.stitching.frozen import Seen
from reptrans.tensorfiles import digest_of
from reptrans.training import Plan
from reptrans.training.resume import split_content, structure


class StitchingRun(TwoNetworks, StitchingSettings, TrainingParameters):
    """Everything a stitching run is made of: the settings of a stitch, the data, the networks, the layers.

    `layer` is one name, names joined by commas, or all; `front_layer` and `end_layer` replace it on their side.
    Networks are trained once and kept (`train_*`), or loaded: `front_checkpoint`, `end_checkpoint`, one path or
    several joined by commas. `seeds` counts the pairs of networks (seed i in front of seed i + 1, around) or, where
    both networks come from one checkpoint each, the stitches' own seeds. `across`: so many of the layers, evenly
    spread, are also stitched every front with every end, see `stitch_across`.
    """

    weights: str = ""
    layer: str = "bn3"
    across: int = Field(4, ge=0, le=100)
    front_layer: str = ""
    end_layer: str = ""
    seeds: int = Field(3, ge=1, le=1000)

    def plan(self, seed: int) -> Plan:
        return replace(super().plan(seed), portable=True)


@dataclass(frozen=True, eq=False)
class Side:
    """One network of a pair: how to get it, what to call it in a row, and one of the same shapes without training."""

    name: str
    get: Callable[[], nn.Module]
    untrained: Callable[[], nn.Module]


def network_pairs(p: StitchingRun, dataset: Dataset) -> list[tuple[int, Side, Side]]:
    """(seed, front, end) for every pair of networks that the run stitches; nothing is trained yet.

    Raises, before anything is trained, BadValue where the numbers of front and end checkpoints do not fit, and what
    `Stitching` raises for these networks and layers.
    """
    fronts, ends = (_paths(text) for text in (p.front_checkpoint, p.end_checkpoint))
    given = max(len(fronts), len(ends))
    if given > 1 and {len(fronts), len(ends)} - {0, 1, given}:
        raise BadValue(
            f"{len(fronts)} front checkpoints and {len(ends)} end checkpoints make no pairs; give as many of one as of "
            "the other, or one of either."
        )
    if len(fronts) == len(ends):
        once(list(zip(fronts, ends, strict=True)))
    else:
        once(max(fronts, ends, key=len))
    count = given if given > 1 else p.seeds
    around, side = max(count, 2), cache(partial(_side, p, dataset))
    pairs = [
        (i, side(p.front_model, *_turn(fronts, i, i)), side(p.end_model, *_turn(ends, i, (i + 1) % around)))
        for i in range(count)
    ]
    if not isinstance(dataset, TextDataset):  # whose networks are not trained: what does not fit is said at once
        _rehearse(p, dataset, *pairs[0][1:])
    return pairs


def _rehearse(p: StitchingRun, dataset: Dataset, front: Side, end: Side) -> None:
    """Let everything that does not fit be said before minutes go into training the networks."""
    nets = front.untrained(), end.untrained()
    Stitching(*nets, layer_pairs(p, *nets), dataset, p)


def _paths(text: str) -> list[Path]:
    paths = [expanded(name, "a checkpoint") for name in ([text] if Path(text).is_file() else parts(text))]
    for path in paths:
        if not path.is_file():
            raise BadValue(
                f"There is no checkpoint {path}. Give the path of a .safetensors, .pt or .pth file. Of several, one "
                "that holds a comma stands in double quotes."
            )
    return paths


def _turn(paths: list[Path], index: int, seed: int) -> tuple[Path | None, int]:
    """The checkpoint whose turn it is, or None and a seed."""
    return (paths[index % len(paths)], 0) if paths else (None, seed)


def _side(p: StitchingRun, dataset: Dataset, model: str, path: Path | None, seed: int) -> Side:
    facts = dataset.form
    if path:
        get = lambda: load_network(build(model, **facts).to(p.place["dtype"]), path)  # noqa: E731
        return Side(f"{model} {path.parent.name}/{path.stem}", get, get)
    if p.weights:
        get = lambda: build(model, **facts, weights=p.weights)  # noqa: E731
        return Side(f"{model} {p.weights}", get, get)
    if isinstance(dataset, TextDataset):  # not trained here: networks of text have no classes
        get = lambda: build(model, **facts, seed=seed)  # noqa: E731
        return Side(f"{model} seed {seed}", get, get)
    return Side(f"{model} seed {seed}", lambda: p.trained(model, dataset, seed), lambda: build(model, **facts))


def layer_pairs(p: StitchingRun, front_net: nn.Module, end_net: nn.Module) -> list[tuple[str, str]]:
    """The (front layer, end layer) pairs that `layer`, `front_layer` and `end_layer` name.

    `all`: where both networks can be cut under the same name. Two lists are paired in order.
    """
    if p.layer == "all" and not (p.front_layer or p.end_layer):
        both = [name for name in cuttable_layers(front_net) if name in set(cuttable_layers(end_net))]
        if not both:
            raise CannotCut("The two networks share no name of a layer; name front_layer and end_layer.")
        return [(name, name) for name in both]
    fronts, ends = parts(p.front_layer or p.layer), parts(p.end_layer or p.layer)
    if not (fronts and ends):
        raise BadValue("no layer is named. Give layer a name, names joined by commas, or all.")
    if len(fronts) != len(ends):
        raise BadValue(f"{len(fronts)} front layers and {len(ends)} end layers make no pairs; give as many of both.")
    return once(list(zip(fronts, ends, strict=True)))


def stitch_networks(
    p: StitchingRun, dataset: Dataset, keep: Callable[[str], Path]
) -> tuple[pd.DataFrame, dict[str, Tensor], pd.DataFrame]:
    """Stitch every pair of networks at every layer: (rows, weights and biases by name, a row for each epoch).

    `keep(name)` gives a path in the run's folder; every finished piece (one pair of networks, one pair of layers) is
    stored there, and training within a piece too, so that an interrupted run goes on where it was. The name tells
    pieces of other weights and other images apart.
    """
    rows, arrays, histories, seen = [], {}, [], Seen(p.memory)
    # A network is the end of one pair and the front of the next: the same object, while what it said is kept.
    networks: WeakValueDictionary[Side, nn.Module] = WeakValueDictionary()
    for seed, *sides in network_pairs(p, dataset):
        front_side, end_side = sides
        front_net, end_net = (networks.setdefault(side, networks.get(side) or side.get()) for side in sides)
        pairs = layer_pairs(p, front_net, end_net)
        stitching = Stitching(front_net, end_net, pairs, dataset, p, seed=seed, seen=seen)
        of = _content(front_net, end_net, dataset)
        for f, e in progress(pairs, f"{front_side.name} → {end_side.name}"):
            name = f"seed{seed}-{f}-{e}" if f != e else f"seed{seed}-{f}"
            stored = f"{file_name(name)}-{of}"
            training = keep(f"{stored}.training")
            done = piece(keep(f"{stored}.safetensors"), _stitched, stitching, f, e, training)
            training.unlink(missing_ok=True)
            table, maps, history = pd.DataFrame(done["rows"]), done["maps"], pd.DataFrame(done["history"])
            table.insert(1, "end", end_side.name)
            table.insert(1, "front", front_side.name)
            rows.append(table)
            histories.append(history.assign(seed=seed, front_layer=f, end_layer=e))
            arrays |= {f"{name}/{kind}/{part}": v for kind, map_ in maps.items() for part, v in map_.items()}
    return pd.concat(rows, ignore_index=True), arrays, pd.concat(histories, ignore_index=True)


def stitch_across(p: StitchingRun, dataset: Dataset, keep: Callable[[str], Path], epochs: int = 0) -> pd.DataFrame:
    """Rows of least squares from every front layer to every end layer, of at most `across` layers on each side.

    The layers are evenly spread over those that the run stitches. No rows where fewer than two pairs are left. With
    `epochs` each of the stitches is trained from there, which gives rows of its own.
    """
    _, *sides = network_pairs(p, dataset)[0]
    pairs = layer_pairs(p, *(side.untrained() for side in sides))
    fronts, ends = (_spread(names, p.across) for names in zip(*pairs, strict=True))
    cells = [(f, e) for f in fronts for e in ends]
    if len(cells) < 2:
        return pd.DataFrame()
    front_layer, end_layer = (listed(names) for names in zip(*cells, strict=True))
    # The plainest stitch, and no more images for CKA than it takes: only what is kept counts here.
    plain = {"direct": "least squares", "epochs": epochs, "init": "ps_inv", "mask": "identity", "form": "free",
             "flatten": False, "batch_norm": False, "keep_skip": False, "target": "hard", "cka_images": 4}  # fmt: skip
    grid = p.model_copy(update=plain | {"front_layer": front_layer, "end_layer": end_layer})
    rows, _, _ = stitch_networks(grid, dataset, lambda name: keep(f"across-{name}"))
    return rows.drop(columns=["cka", "cka_images"])


def _spread(names: tuple[str, ...], most: int) -> list[str]:
    """At most `most` of the names, each once, evenly spread from the first to the last."""
    once_each = list(dict.fromkeys(names))
    count = min(most, len(once_each))
    return [once_each[round(i * (len(once_each) - 1) / max(count - 1, 1))] for i in range(count)]


def _content(front_net: nn.Module, end_net: nn.Module, dataset: Dataset) -> str:
    """8 hex digits of both networks, as they are built and with their weights, and of the data set."""
    nets = {"front": front_net, "end": end_net}
    weights = {f"{side}.{name}": value for side, net in nets.items() for name, value in net.state_dict().items()
               if isinstance(value, Tensor)}  # fmt: skip
    data = [fingerprint(dataset), split_content(dataset.test)]
    return digest_of(weights, [structure(net) for net in nets.values()], data)[:8]


def _stitched(stitching: Stitching, front_layer: str, end_layer: str, training: Path) -> dict[str, object]:
    done = stitching.stitch(front_layer, end_layer, checkpoint=training)
    return {"maps": done.maps, "rows": done.rows.to_dict("records"), "history": done.history.to_dict("records")}
