"""Cuts of networks as people write them: whatever a forward does, end(front(x)) is net(x), or the layer is refused."""

import copy
import operator
import random
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from reptrans.errors import BadValue, CannotCut, LayerNotFound, ShapeMismatch
from reptrans.layers import called, channel_axes, cuttable_layers, end, front, record
from reptrans.layers.hooked import HookedFront
from reptrans.layers.network import leaving_no_trace
from reptrans.layers.values import answer, chosen, replaced, tensors_in
from reptrans.similarity import compare


class Written(nn.Module):
    """Three linear layers, and a forward that is given."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.how(self, x)


def alias(s, x):
    h = s.first(x)
    y = h
    h += 1
    return s.second(y)


def base_of_a_view(s, x):
    h = s.first(x)
    v = h.view(-1, 4)
    h.relu_()
    return s.second(v)


def slice_of_it(s, x):
    h = s.first(x)
    h[:, :2].mul_(0.0)
    return s.second(h)


def chunk_of_it(s, x):
    h = s.first(x)
    a, _ = h.chunk(2, 1)
    a.zero_()
    return s.second(h)


def out(s, x):
    h = s.first(x)
    torch.sin(h, out=h)
    return s.second(h)


def out_of_its_own(s, x):
    h = s.first(x)
    made = torch.empty_like(h)
    torch.add(h, 1, out=made)
    return s.second(made)


def copied_into(s, x):
    h = s.first(x)
    h.t().copy_(h.t() * 2)
    return s.second(h)


def index_put(s, x):
    h = s.first(x)
    h.index_put_((torch.tensor([0]),), torch.zeros(4))
    return s.second(h)


def set_item(s, x):
    h = s.first(x)
    h[:, 0] = 0
    return s.second(h)


def the_input(s, x):
    y = x
    x += 1
    return s.second(s.first(y))


def functions(s, x):
    h = F.relu(s.first(x), inplace=True)
    operator.imul(h, 2)
    nn.init.constant_(h[:1], 0.5)
    return s.second(h)


def detached(s, x):
    h = s.first(x)
    h.detach().clamp_(min=0)
    h.data.mul_(2)
    return s.second(h)


def before_it_returns(s, x):
    return s.third(s.inner(x))


def bypassed(s, x):
    h = s.first(x)
    h.add_(x)
    return s.second(h)


def sizes(s, x):
    b, d = x.shape
    return s.second(s.first(x).relu()).view(b, -1).reshape(x.size(0), d)


def length_type_and_place(s, x):
    n = len(x)
    return s.second(s.first(x)).reshape(n, 4).to(x.dtype).to(x.device)


FORMS = [alias, base_of_a_view, slice_of_it, chunk_of_it, out, out_of_its_own, copied_into, index_put, set_item,
         the_input, functions, detached, sizes, length_type_and_place]  # fmt: skip


def exact(net, layer, x, skip=False):
    """Whether the halves are the whole to the bit, the value the layer's own, and the input untouched."""
    with torch.no_grad():
        whole = net(x.clone())
        with record(net, layer, clone=True) as seen:
            net(x.clone())
        given = x.clone()
        activations = front(net, layer)(given)
        kept = activations.clone()
        after = end(net, layer, keep_skip=skip, example=x)
        together = after(activations, x.clone()) if skip else after(activations)
    return (
        torch.equal(together, whole) and torch.equal(kept, seen[layer]) and torch.equal(given, x)
        and torch.equal(activations, kept)
    )  # fmt: skip


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("layer", ["first", "second"])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_writes_views_and_sizes(form, layer, skip):
    net = Written(form).eval()
    assert exact(net, layer, torch.randn(5, 4), skip)
    assert cuttable_layers(net)[0] == "first"


def test_a_bypass_by_memory_is_a_bypass():
    net, x = Written(bypassed).eval(), torch.randn(5, 4)
    assert cuttable_layers(net) == []
    with pytest.raises(CannotCut, match="Layer 'first' of Written does not separate"):
        end(net, "first")
    assert exact(net, "first", x, skip=True)


class Inner(nn.Module):
    """What it returns was written to before it returned, through a view."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        h = self.linear(x)
        h.view(-1).mul_(3)
        return h


def test_a_value_is_that_at_the_return():
    net = Written(before_it_returns).eval()
    net.inner = Inner()
    for layer in ("inner", "inner.linear"):
        assert exact(net, layer, torch.randn(5, 4))


class Deceiving(nn.Module):
    """Does something else for real tensors than for a tracer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = self.a(x)
        return self.b(h * 2 if isinstance(x, torch.Tensor) else h)


def test_what_nobody_thought_of_is_found_by_comparing():
    net, x = Deceiving().eval(), torch.randn(5, 4)
    assert exact(net, "a", x)
    assert torch.equal(front(net, ["a", "b"])(x)["b"], net(x))


@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_forward_hook"])
def test_hooks_of_the_network_itself_are_heeded_after_a_first_cut(register):
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval(), torch.randn(5, 4)
    assert exact(net, "0", x)
    getattr(net, register)(lambda module, given, output=None: given[0] * 3 if output is None else output * 3)
    assert exact(net, "0", x)


class Pair(NamedTuple):
    hidden: torch.Tensor
    weights: torch.Tensor


@dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor
    hidden_states: tuple = ()


class Structured(nn.Module):
    """Layers that return tuples, dicts and dataclasses; itself too."""

    class Two(nn.Module):
        def forward(self, x):
            if x.sum() > -1e9:  # cannot be traced
                return {"hidden": x * 2, "more": [x, x + 1]}

    class Named(nn.Module):
        def forward(self, x):
            return Pair(x + 1, x - 1)

    def __init__(self):
        super().__init__()
        self.linear, self.two, self.named = nn.Linear(4, 4), self.Two(), self.Named()
        self.lstm, self.head = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        h = self.named(self.two(self.linear(x))["hidden"])
        out, _ = self.lstm(h.hidden[:, None])
        return Output(None, self.head(out[:, 0]), (h.hidden, h.weights))


@pytest.mark.parametrize(
    ("layer", "value"),
    [
        ("two", lambda s, x: s.linear(x) * 2),
        ("two:hidden", lambda s, x: s.linear(x) * 2),
        ("two:more.1", lambda s, x: s.linear(x) + 1),
        ("named", lambda s, x: s.linear(x) * 2 + 1),
        ("named:1", lambda s, x: s.linear(x) * 2 - 1),
        ("lstm", lambda s, x: s.lstm((s.linear(x) * 2 + 1)[:, None])[0]),
        ("lstm:1.0", lambda s, x: s.lstm((s.linear(x) * 2 + 1)[:, None])[1][0]),
    ],
)
def test_parts_of_what_a_layer_returns(layer, value):
    net, x = Structured().eval(), torch.randn(5, 4)
    with torch.no_grad(), record(net, layer, clone=True) as seen:
        net(x)
    expected = value(net, x)
    assert torch.equal(front(net, layer)(x), expected) and torch.equal(seen[layer], expected)
    if layer in ("two", "two:hidden"):
        assert torch.equal(end(net, layer, example=x)(expected).logits, net(x).logits)


def test_the_end_behind_a_recurrent_layer():
    def last_state(s, x):
        out, (state, _) = s.lstm(s.first(x)[:, None])
        return s.third(out[:, -1]) if s.first_only else s.third(out[:, -1] + state[-1])

    net, x = Written(last_state).eval(), torch.randn(5, 4)
    net.lstm, net.first_only = nn.LSTM(4, 4, batch_first=True), True
    assert exact(net, "lstm", x) and cuttable_layers(net) == ["first", "lstm"]
    net.first_only = False
    assert cuttable_layers(net) == ["first"]
    with pytest.raises(CannotCut, match="bypasses it"):
        end(net, "lstm", example=x)


def test_a_part_that_is_not_there_is_named_with_those_that_are():
    net, x = Structured().eval(), torch.randn(5, 4)
    with pytest.raises(BadValue) as caught:
        front(net, "two:weights")(x)
    assert str(caught.value) == (
        "layer 'two:weights' returns a dict with hidden, more without the part 'weights'. Its parts: hidden, more.0, "
        "more.1"
    )
    with pytest.raises(LayerNotFound, match="Structured has no layer 'too'"):
        front(net, "too:1")


def test_answers():
    x, y = torch.ones(2), torch.zeros(2)
    assert answer(x) is x and answer((y, x)) is y and answer({"a": y, "logits": x}) is x
    assert answer(Output(y, x)) is x and answer([{"deep": (x,)}]) is x
    for nothing in (None, 3.0, {}, {"a": 1}):
        with pytest.raises(BadValue, match="in which there is no tensor"):
            answer(nothing)
    assert chosen(Output(y, x, (x, y)), "hidden_states.1") is y
    assert list(dict(tensors_in({"a": (x, [y])}))) == ["a.0", "a.1.0"]


def test_one_part_is_replaced_and_the_rest_stays():
    x, y, z = torch.ones(2), torch.zeros(2), torch.full((2,), 2.0)
    assert replaced(x, "", z) is z and replaced((x, y), "1", z) == (x, z)
    new = replaced({"a": [x, y], "b": 3}, "a.0", z)
    assert new["a"][0] is z and new["a"][1] is y and new["b"] == 3
    assert isinstance(new := replaced(Pair(x, y), "", z), Pair) and new.hidden is z
    assert replaced(Output(None, x, (y,)), "hidden_states.0", z).hidden_states[0] is z


class Keywords(nn.Module):
    """Takes token ids and a mask by name."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask=None):
        h = self.mix(self.embed(input_ids))
        if attention_mask is not None:
            h = h * attention_mask[..., None]
        return {"logits": self.head(h.mean(1))}


def test_inputs_of_several_parts():
    net, ids = Keywords().eval(), torch.randint(0, 9, (5, 6))
    batch = {"input_ids": ids, "attention_mask": (torch.arange(6) < 4).long().expand(5, 6)}
    expected = net.mix(net.embed(ids))
    assert torch.equal(front(net, "mix")(batch), expected)
    assert torch.equal(front(net, "mix")((ids,)), expected)
    masked = end(net, "mix", keep_skip=True)(expected, batch)
    assert torch.equal(masked["logits"], net(**batch)["logits"])
    plain = end(net, "mix", example={"input_ids": ids})(expected)
    assert torch.equal(plain["logits"], net(ids)["logits"])
    half = batch | {"attention_mask": (torch.arange(6) < 2).long().expand(5, 6)}
    for inputs in (batch, half):  # a mask is no bypass, but it must be said at every call
        told = end(net, "mix", example=batch)(expected, inputs)
        assert torch.equal(told["logits"], net(**inputs)["logits"])
    with pytest.raises(BadValue, match="needs attention_mask to know what is padding"):
        end(net, "mix", example=batch)(expected)


class Extra(Keywords):
    def forward(self, input_ids, attention_mask=None, extra=0.0):
        return {"logits": super().forward(input_ids, attention_mask)["logits"] + extra}


def test_a_bypass_beside_a_mask_is_one():
    net, batch = Extra().eval(), {"input_ids": torch.randint(0, 9, (5, 6)), "attention_mask": torch.ones(5, 6).long()}
    assert end(net, "mix", example=batch)(net.mix(net.embed(batch["input_ids"])), batch)["logits"].shape == (5, 2)
    with pytest.raises(CannotCut, match="part of the network bypasses it"):
        end(net, "mix", example=batch | {"extra": torch.rand(5, 2)})


class Seconds(nn.Module):
    def forward(self, pair):
        return pair[0] * 2


def test_a_front_by_hooks_stops_at_its_last_layer():
    net = nn.Sequential(nn.LSTM(3, 3), Seconds())
    calls = []
    net[1].register_forward_hook(lambda *_: calls.append(1))
    part, x = HookedFront(net.eval(), ["0"], single=True), torch.rand(4, 2, 3)
    values = [part(x) for _ in range(3)]
    assert len(calls) == 1 and all(torch.equal(v, net[0](x)[0]) for v in values)
    assert not net[0]._forward_hooks
    net.train()
    part(x)
    assert len(calls) == 2


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


class Saving(Plain):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


WRAPPED = {
    "compiled": lambda: torch.compile(Plain().eval(), backend="eager"),
    "parallel": lambda: nn.DataParallel(Plain().eval()),
    "both": lambda: nn.DataParallel(torch.compile(Plain().eval(), backend="eager")),
    "checkpointed": lambda: Saving().eval(),
}


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # said by the first releases of Python 3.13
@pytest.mark.parametrize("run_before", [False, True])
@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_networks(kind, run_before):
    net, x = WRAPPED[kind](), torch.randn(2, 3, 8, 8)
    if run_before:
        net(x)
    (name,) = (n for n, _ in net.named_modules() if n.rpartition(".")[2] == "norm")
    for layer in {name, "norm"}:
        activations = front(net, layer)(x)
        assert torch.equal(end(net, layer, example=x)(activations), net(x))
        with record(net, layer, clone=True) as seen:
            net(x)
        assert torch.equal(seen[layer], activations)
    assert cuttable_layers(net, x) == ["a", "norm"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_is_no_network_is_refused_in_words():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(BadValue, match="TorchScript, whose layers cannot be cut"):
        front(scripted, "0")
    for given, what in (("resnet18", "'resnet18'"), (None, "a NoneType"), (torch.ones(2), "a Tensor")):
        with pytest.raises(BadValue, match=f"and {what} was given"):
            cuttable_layers(given)


@pytest.mark.parametrize("layer", ["layers", "layers.0.self_attn.out_proj"])
def test_a_layer_that_is_never_called_is_named(layer):
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    tokens = torch.randn(4, 5, 16)
    with pytest.raises(CannotCut, match=f"never calls '{layer}'"), torch.no_grad():
        front(net, layer)(tokens)
    with pytest.raises(CannotCut, match=f"never calls '{layer}'"), torch.no_grad(), record(net, layer) as seen:
        net(tokens)
        seen[layer]


class Moody(nn.Module):
    """Cannot be traced, has dropout and batch norm."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.drop, self.b = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)

    def forward(self, x):
        h = self.drop(self.norm(self.a(x)))
        return self.b(h) if h.sum() > -1e9 else h


def test_train_mode_dropout_and_batch_norm():
    net, x = Moody().train(), torch.randn(6, 4)
    after = end(net, "a", example=x)
    torch.manual_seed(3)
    whole = net(x)
    tracked, state = net.norm.num_batches_tracked.clone(), torch.get_rng_state()
    activations = net.a(x)
    end(net, "drop", example=x)
    assert net.norm.num_batches_tracked == tracked and torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    assert torch.equal(after(activations), whole)


def test_sizes_other_than_the_number_of_examples_need_an_example():
    def square(s, x):
        h = s.first(x.flatten(2).mean(2))
        return s.second(h)[:, :, None, None].expand(-1, -1, x.size(2), x.size(3))

    net, x = Written(square).eval(), torch.randn(2, 4, 5, 6)
    with pytest.raises(CannotCut, match="asks for a size of what lies before the cut. Give example=images"):
        end(net, "first")(torch.randn(2, 4))
    assert exact(net, "first", x)


def test_sizes_of_another_image_are_not_those_of_the_example():
    def mean(s, x):
        return s.second(s.first(x).sum((1, 2)) / (x.size(1) * x.size(2)))

    net, x, larger = Written(mean).eval(), torch.randn(2, 5, 5, 4), torch.randn(2, 6, 6, 4)
    assert exact(net, "first", x)
    with pytest.raises(CannotCut, match="asks for a size of what lies before the cut. Give example=images"):
        end(net, "first")(net.first(larger))
    assert exact(net, "first", larger) and exact(net, "first", x)


def test_which_axis_holds_channels_is_not_guessed():
    class Last(nn.Module):
        """Channels last, as in Swin, behind a convolution that has them first; and a sequence with them first."""

        def __init__(self):
            super().__init__()
            self.conv, self.turn, self.mix = nn.Conv2d(3, 6, 3, padding=1), self.Turn(), nn.Linear(6, 6)
            self.flat = nn.Flatten(2)

        class Turn(nn.Module):
            def forward(self, x):
                return x.permute(0, 2, 3, 1)

        def forward(self, x):
            h = self.mix(self.turn(self.conv(x)))
            return self.flat(h.permute(0, 3, 1, 2))

    for shape in ((6, 6), (6, 12), (12, 6)):
        axes = channel_axes(Last().eval(), ["conv", "turn", "mix", "flat"], torch.randn(2, 3, *shape))
        assert axes == {"conv": 1, "turn": -1, "mix": -1, "flat": 1}


class Caching(nn.Module):
    """Keeps what it made, as LeViT does with its biases, in a dict, a list, an object and an attribute."""

    class Kept:
        value = None

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.bias, self.cache, self.list, self.kept = nn.Parameter(torch.rand(4)), {}, [], Caching.Kept()

    def forward(self, x):
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias[:4] * 2
        h = self.first(x) + self.cache["bias"] + torch.tensor([1.0, 2.0, 3.0, 4.0])
        self.list.append(h)
        self.kept.value = self.latest = h
        return self.last(h)


@pytest.mark.parametrize(
    "draw", [random.random, np.random.rand, lambda: torch.rand(()).item()], ids=["Python", "NumPy", "torch"]
)
def test_what_is_drawn_in_a_pass_is_drawn_in_every_pass(draw):
    def skips_now_and_then(s, x):
        h = s.first(x)
        return s.third(h if s.training and draw() < 0.5 else s.second(h))

    net, x = Written(skips_now_and_then), torch.rand(2, 4)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    part = front(net, "third")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert len({part(x).sum().item() for _ in range(30)}) == 2
    assert cuttable_layers(net.eval()) == ["first", "second"]


def test_a_trace_leaves_nothing_in_what_a_network_keeps():
    net, x = Caching().eval(), torch.rand(5, 3)
    before = dict(vars(net))
    assert "first" in cuttable_layers(net)
    assert dict(vars(net)).keys() == before.keys() and not net.cache and not net.list and net.kept.value is None
    for _ in range(2):
        assert torch.equal(end(net, "first")(front(net, "first")(x)), net(x))
    assert all(type(value) is torch.Tensor for value in (*net.list, *net.cache.values(), net.latest))


class Running(nn.Module):
    """Puts another tensor in the place of a buffer at every pass, and takes inputs of 4 values alone."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        return self.last(self.norm(x - self.mean)).view(-1, 2)


@pytest.mark.parametrize("width", [2, 4])
def test_a_pass_leaves_no_trace_in_buffers_even_after_an_error(width):
    net = Running()
    before, mean = {name: buffer.clone() for name, buffer in net.named_buffers()}, net.mean
    with suppress(RuntimeError), leaving_no_trace(net):
        net.norm(torch.rand(5, 4))
        net(torch.rand(5, width))
    assert net.mean is mean and all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_a_front_in_train_mode_replaces_buffers_as_the_network_does():
    net, x = Running(), torch.rand(5, 4)
    other = copy.deepcopy(net)
    other(x)
    front(net, "norm")(x)
    assert torch.equal(net.mean, other.mean) and net.mean.any()


class Again(nn.Module):
    """Calls one layer with values of several widths."""

    def __init__(self):
        super().__init__()
        self.act, self.a, self.b, self.lstm = nn.ReLU(), nn.Linear(3, 5), nn.Linear(5, 4), nn.LSTM(4, 4)

    def forward(self, x):
        if x.sum() > 1e9:
            raise ValueError
        return self.lstm(self.act(self.b(self.act(self.a(x)))))[0]


@pytest.mark.parametrize("keep_skip", [False, True])
def test_a_layer_called_several_times_stands_for_its_last_call(keep_skip):
    net, x = Again().eval(), torch.rand(6, 2, 3)
    part = end(net, "act", keep_skip=keep_skip, example=x)
    values = front(net, "act")(x)
    assert values.shape == (6, 2, 4)
    assert torch.equal(part(values, x), net(x))


class NormOfMaps(nn.LayerNorm):
    """As in ConvNeXt: normalises the channels of (n, c, h, w)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_a_layer_norm_of_its_own_kind_is_not_taken_for_the_usual_one():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), NormOfMaps(8), nn.Flatten(), nn.LazyLinear(2))
    net(torch.rand(1, 3, 8, 8))
    assert channel_axes(net, ["1"], torch.rand(2, 3, 8, 8)) == {"1": 1}  # 8 channels, 8 x 8 places: by a second size
    assert channel_axes(net, ["1"], torch.rand(2, 3, 4, 16)) == {"1": 1}


# Called in another way


LAYERS = ["conv", "norm", "fc"]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, *, pixels, scale):
        return {"features": self.features(pixels * scale)}

    def features(self, x):
        return self.fc(self.norm(self.conv(x)).mean((2, 3)))


def test_a_network_is_called_as_it_is_said():
    net, x = Scaled(), torch.randn(30, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    own = called(net, lambda net, images: net(pixels=images, scale=2.0))
    assert cuttable_layers(own, x[:2]) == LAYERS
    assert own.training and net.training and own.eval() is own and not net.training
    with record(net, "norm") as there:
        expected = net(pixels=x, scale=2.0)["features"]
    torch.testing.assert_close(front(own, "norm")(x), there["norm"])
    assert torch.equal(end(own, "norm", example=x)(there["norm"])["features"], expected)
    part, pair = called(net, Scaled.features), called(net, lambda net, left, right: net.features(left + right))
    table = compare(part, part, 2 * x, LAYERS)
    assert table.equals(compare(own, own, x, LAYERS)) and list(table) == LAYERS
    assert table.equals(compare(pair, pair, {"left": x, "right": x}, LAYERS))
    again = copy.deepcopy(own)
    assert again.fc is not net.fc and torch.equal(again(x)["features"], expected) and not again.training


@pytest.mark.parametrize("how", ["features", None, lambda: 0, lambda net: net])
def test_what_says_no_call_is_refused(how):
    with pytest.raises(BadValue, match=r"how is .*Give a function of the network and its input: lambda net, images"):
        called(Scaled(), how)


def test_a_call_that_does_not_fit_is_one_sentence():
    net, x = Scaled(), torch.zeros(2, 3, 6, 6)
    with pytest.raises(ShapeMismatch, match=r"Scaled does not take a batch \(2, 3, 6, 6\).*missing 1 required"):
        compare(called(net, lambda net, images, more: net.features(images)), net, x, "conv")
    with pytest.raises(CannotCut, match="the forward pass never calls it"):
        compare(called(net, lambda net, images: images), net, x, "conv")
