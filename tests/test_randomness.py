"""Draws from a seed: the same on every processor, and without traces."""

import pytest
import torch
from torch import nn

from reptrans.models import build
from reptrans.randomness import drawing, in_double


def test_draws_follow_from_the_seed_and_leave_the_random_state():
    before = torch.get_rng_state()
    made = []
    for seed in (3, 3, 4):
        with drawing(seed):
            made.append(torch.randn(5))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert made[0].dtype == torch.float64 and torch.empty(0).dtype == torch.float32


def test_the_usual_type_comes_back_after_an_error():
    with pytest.raises(RuntimeError), in_double():
        raise RuntimeError
    assert torch.get_default_dtype() == torch.float32


def test_a_network_is_drawn_in_double_precision_and_rounded(monkeypatch):
    types = []
    monkeypatch.setattr("reptrans.models.make", lambda *_: types.append(torch.get_default_dtype()) or nn.Linear(2, 2))
    assert build("cnn3_w8").weight.dtype == torch.float32
    assert types == [torch.float64]


def test_a_users_network_keeps_its_own_types(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import torch\nfrom torch import nn\n\n\ndef make():\n    net = nn.Linear(2, 2)\n"
        "    net.register_buffer('scale', torch.ones(1, dtype=torch.float64))\n    return net\n"
    )
    net = build(f"{file}:make")
    assert net.weight.dtype == torch.float32 and net.scale.dtype == torch.float64
