"""`fit`'s call after every step: what it is given, what becomes of its figures, that it changes nothing by itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reptrans.data import Split
from reptrans.data.loader import Loader
from reptrans.training import Plan, fit


def trained(after_step=None, **saving):
    """A linear network after two epochs of two steps, and the rows."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    images = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    loader = Loader(Split(images, torch.arange(8) % 2), 4, mean=(0.0,), std=(1.0,))

    def objective(batch, progress):
        return {"loss": F.cross_entropy(net(batch.images), batch.labels)}, {}

    plan = Plan(epochs=2, schedule="constant", nesterov=False)
    return net, fit(objective, net, loader, plan, after_step=after_step, **saving)


def test_it_sees_the_batch_and_the_optimiser_after_the_step():
    met = []

    def after_step(batch, optimiser):
        (weight, _) = optimiser.param_groups[0]["params"]
        moved = weight.detach() - met[-1][1] if met else None
        if met:  # the first step has no momentum behind it, all others move by lr * momentum
            torch.testing.assert_close(moved, -0.1 * optimiser.state[weight]["momentum_buffer"])
        met.append((batch.index.tolist(), weight.detach().clone()))
        return {}

    net, _ = trained(after_step)
    assert [index for index, _ in met] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2
    assert torch.equal(met[-1][1], net.weight)


def test_its_figures_are_means_over_the_images_that_have_one():
    values = iter([1.0, 2.0, None, 4.0])

    def after_step(batch, optimiser):
        value = next(values)
        return {} if value is None else {"seen": torch.tensor(value)}

    assert trained(after_step)[1]["seen"].tolist() == [1.5, 4.0]


def test_an_epoch_without_figures_has_none():
    calls = iter(range(4))
    rows = trained(lambda batch, optimiser: {"seen": 1.0} if next(calls) >= 2 else None)[1]
    assert rows["seen"].isna().tolist() == [True, False] and rows["seen"][1] == 1.0


def test_training_is_the_same_with_and_without():
    one, other = trained()[0], trained(lambda batch, optimiser: {"seen": 0.0})[0]
    assert torch.equal(one.weight, other.weight)


def test_a_figure_may_not_take_the_name_of_a_column():
    with pytest.raises(ValueError, match="'lr' would stand twice in a row"):
        trained(lambda batch, optimiser: {"lr": 1.0})
