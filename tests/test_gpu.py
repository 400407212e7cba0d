"""What would run on a GPU, without one: forward passes and losses on fake CUDA tensors, which refuse mixed devices.

A fake tensor has a device, a shape and a type, and no values. Operations on two devices fail as they do on a GPU;
values that Python asks for come out as 1, and are counted, for a GPU would have to be waited for. Only passes forward
can be run: nothing here says what a backward pass does.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode

from reptrans.data import Batch, load_dataset
from reptrans.distillation import METHODS, Pair
from reptrans.distillation.losses import resolve
from reptrans.distillation.methods import efficient_detection, fd_gan, imitation
from reptrans.extension import OUTPUT_LOSSES, Hidden, Lens, LensTraining, Outputs, ThroughLens, hidden_losses
from reptrans.extension.hidden import MODES
from reptrans.inputs import Pixels, class_logit, fast_front, match, range_penalty, total_variation, weighted
from reptrans.l2t import Answers, AttentionTransfer, Matching, Transfer
from reptrans.layers import end, front
from reptrans.matching import Teacher
from reptrans.merging import interpolated, task_vector, with_task_vectors
from reptrans.merging.fitting import Matching as How
from reptrans.merging.fitting import _Matched
from reptrans.models import build
from reptrans.reid.architectures import (
    Generator,
    IdentityDiscriminator,
    PatchDiscriminator,
    Siamese,
    Verification,
    encoder,
)
from reptrans.similarity import MEASURES, Moments, channel_blocks
from reptrans.similarity.space import mutual_share, neighbour_agreement, permutation_baseline
from reptrans.stitching import Stitch, StitchedNetwork
from reptrans.stitching.direct import DIRECT, departure, direct_matching
from reptrans.stitching.stitch import at_places, channels_first
from reptrans.stitching.task import TARGETS, soft_target_loss
from reptrans.training import accuracy, classification_loss

_READ, _INDEX = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.index.Tensor
_OF_UNKNOWN_LENGTH = {
    torch.ops.aten._unique2.default: lambda x: (x[:2].clone(), torch.zeros_like(x), torch.ones_like(x[:2])),
    torch.ops.aten.nonzero.default: lambda x: torch.zeros(x.numel(), x.ndim, dtype=torch.int64, device=x.device),
}


class Gpu(FakeTensorMode):
    """Fake tensors; counts the values that are read, and refuses what they let pass, a CPU tensor at CUDA positions."""

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is _READ:
            self.reads += 1
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func is _INDEX and args[0].device.type == "cpu":
            if any(index is not None and index.device.type == "cuda" for index in args[1]):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if func in _OF_UNKNOWN_LENGTH:  # which only the values tell: two kinds of value, and all of them true
            self.reads += 1
            with self:
                return _OF_UNKNOWN_LENGTH[func](args[0])
        return super().__torch_dispatch__(func, types, args, kwargs or {})


@pytest.fixture
def gpu(monkeypatch):
    """Inside the test, all tensors are fake, and `cuda` is there."""
    monkeypatch.setattr(nn.Module, "_apply", applied)
    # torch's own copy reads the memory that fake tensors do not have.
    monkeypatch.setattr(FakeTensor, "__deepcopy__", lambda tensor, memo: tensor.detach().clone(), raising=False)
    # A backward pass cannot be run, but what comes behind a gradient can; likewise what SciPy is asked from the CPU.
    monkeypatch.setattr(torch.autograd, "grad", gradients)
    monkeypatch.setattr(FakeTensor, "numpy", on_cpu, raising=False)
    with Gpu() as mode, torch.random.fork_rng(devices=[]):
        yield mode


def applied(module: nn.Module, change, recurse: bool = True) -> nn.Module:
    """What `to`, `float` and `double` do to a module; torch's own way cannot exchange fake parameters."""
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, held in store.items():
                if held is not None:
                    new = change(held.detach())
                    store[name] = nn.Parameter(new, held.requires_grad) if isinstance(held, nn.Parameter) else new
    return module


def gradients(outputs, inputs, **_):
    inputs = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    assert {value.device.type for value in (outputs, *inputs)} == {"cuda"}
    return tuple(torch.zeros_like(value) for value in inputs)


def on_cpu(tensor):
    if tensor.device.type != "cpu":
        raise TypeError("can't convert a CUDA tensor to NumPy")
    return np.zeros(tuple(tensor.shape))


def network(width: int = 4) -> nn.Module:
    return build(f"cnn3_w{width}", num_classes=10, in_channels=1, image_size=(8, 8)).eval().to("cuda")


def batch(n: int = 20) -> Batch:
    images, index = torch.zeros(n, 1, 8, 8, device="cuda"), torch.zeros(n, dtype=torch.int64, device="cuda")
    return Batch(images, index.clone(), index)


class Few:
    """A loader of one batch."""

    augment, split = "standard", range(20)

    def plain(self):
        return [batch()]


@pytest.fixture(scope="module")
def positions():
    """Where student and teacher are looked at, found on real networks."""
    nets = [build(f"cnn3_w{w}", num_classes=10, in_channels=1, image_size=(8, 8)).eval() for w in (2, 4)]
    loader = load_dataset("digits", image_size=None, limit=6).loader("train", 20)
    return Pair.of(nets[0], Teacher(nets[1], loader), next(iter(loader)).images)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_distillation(name, gpu, positions):
    student, teacher = network(2), Teacher(network(4), Few())
    pair = Pair(student, (teacher, teacher), positions.of_student, positions.of_teacher)
    method, built = METHODS[name](pair), {}
    student = student if method.prepare is None else method.prepare(student, teacher.net)
    for stage in method.stages:
        losses = resolve(stage, student, pair.teachers, batch(), built).to(torch.device("cuda"), torch.float32)
        built, gpu.reads = losses.built, 0
        terms, figures = losses(batch(), 0.5)
        assert all(value.device.type == "cuda" for value in (*terms.values(), *figures.values()))
        assert gpu.reads == 0, "every step would wait for the GPU"


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure(name, gpu):
    x, y = torch.zeros(2, 30, 6, device="cuda")
    value = MEASURES[name].function(x, y)
    assert value.shape == () and value.device.type == "cuda"


@pytest.mark.parametrize("name", hidden_losses())
def test_every_loss_of_hidden_layers(name, gpu):
    z, a = torch.zeros(2, 6, 3, 4, 4, device="cuda")
    loss = hidden_losses(top=20)[name]
    assert loss.new(z, a).device.type == loss.approximator(z, a).device.type == "cuda"


@pytest.mark.parametrize("name", OUTPUT_LOSSES)
def test_every_loss_of_outputs(name, gpu):
    condition = Outputs(network(), [network(), network()], name, example=batch().images)
    gpu.reads = 0
    terms, _ = condition(batch())
    assert terms["diversity"].device.type == "cuda" and gpu.reads == 0


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_hidden_layers(mode, gpu):
    condition = Hidden(network(), [network(2)], "relu2", "l2_corr", example=batch().images, mode=mode, depth=2)
    terms, _ = condition(batch())
    assert all(value.device.type == "cuda" for value in terms.values())


def test_the_lens(gpu):
    lens = Lens(1, scales=2, width=4).to("cuda")
    terms, _ = LensTraining(lens, [network()])(batch())
    terms |= ThroughLens(network(), [network()], lens, example=batch().images)(batch())[0]
    assert all(value.device.type == "cuda" for value in terms.values())


def test_every_objective_of_inputs(gpu):
    # Fourier is left out: torch cannot transform fake tensors.
    net, images = fast_front(network(), mean=(0.5,), std=(0.2,)), Pixels(torch.zeros(2, 1, 8, 8, device="cuda"))()
    target = fast_front(network())
    objectives = [class_logit(net, [3, 4]), class_logit(net, 1)]
    objectives += [match(net, target, distance) for distance in ("l1", "l2", "cosine")]
    found = [weighted(objectives, equal_gradients=False)(images), total_variation()(images), range_penalty()(images)]
    assert all(losses.shape == (2,) and losses.device.type == "cuda" for losses in found)


@pytest.mark.filterwarnings("ignore:.* pairs are dead")
def test_every_part_of_learned_transfer(gpu):
    target, source, images = network(2), network(4), batch().images
    pairs = [("relu1", "relu1"), ("relu3", "relu3")]
    parts = [
        Matching(target, source, pairs, images),
        AttentionTransfer(target, source, pairs, images),
        Answers(target, source, images),
    ]
    terms, figures, _ = Transfer(target, source, parts, example=images, classes=10)(batch())
    assert {"cross_entropy", "matching", "attention", "answers"} == set(terms)
    assert all(value.device.type == "cuda" for value in (*terms.values(), *figures.values()))


@pytest.mark.parametrize("axes", [(1, 1), (1, -1)])
def test_stitches_and_their_closed_forms(axes, gpu):
    x, y = torch.zeros(2, 12, 6, 4, 4, device="cuda")
    y = y if axes[1] == 1 else y.flatten(2).movedim(1, 2)
    a, b = channels_first(x, axes[0]), channels_first(y, axes[1])
    moments = Moments(6, 6, x.device).update(channel_blocks(at_places(a, tuple(b.shape[2:])), 1), channel_blocks(b, 1))
    for kind in DIRECT:
        stitch = Stitch(tuple(x.shape[1:]), tuple(y.shape[1:]), axes=axes).to("cuda")
        found = direct_matching(moments, kind, rank=2)
        assert stitch.set(found.weight, found.bias)(x).shape == y.shape
        assert departure(moments, found) is not None
    for form in ("low rank", "free"):
        stitch = Stitch(tuple(x.shape[1:]), tuple(y.shape[1:]), axes=axes, form=form, rank=2, batch_norm=True)
        assert stitch.to("cuda")(x).device.type == "cuda"


@pytest.mark.parametrize("target", TARGETS[1:])
def test_every_target_of_a_stitched_network(target, gpu):
    net = network()
    stitched = StitchedNetwork(front(net, "relu2"), Stitch((8, 4, 4), (8, 4, 4)).to("cuda"), end(net, "relu2"))
    logits = stitched(batch().images)
    assert soft_target_loss(target, logits, logits, logits).device.type == "cuda"


def test_losses_of_detection(gpu):
    logits, offsets = torch.zeros(2, 30, 5, device="cuda"), torch.zeros(2, 30, 4, device="cuda")
    labels, boxes = torch.zeros(30, dtype=torch.int64, device="cuda"), torch.zeros(3, 4, device="cuda")
    mask = imitation.imitation_mask(torch.zeros(4, 4, 3, 4, device="cuda"), boxes)
    maps = torch.zeros(2, 2, 6, 16, device="cuda")
    losses = [
        efficient_detection.classification(logits[0], labels, logits[1]),
        efficient_detection.soft_cross_entropy(*logits),
        efficient_detection.bounded_errors(*offsets, offsets[0]),
        efficient_detection.hint_loss(*maps),
        imitation.imitation_loss(*maps, mask.flatten()[None].expand(2, -1)),
    ]
    assert all(loss.device.type == "cuda" for loss in losses)


def test_networks_and_losses_of_reidentification(gpu):
    images, same = torch.zeros(4, 3, 32, 16, device="cuda"), torch.ones(2, dtype=torch.bool, device="cuda")
    maps = torch.zeros(4, 14, 32, 16, device="cuda")
    code = encoder("convs", (32, 16))
    siamese = Siamese(code, Verification(code.width)).to("cuda")
    codes, logits = siamese(images)
    made = Generator(14, code.width, (32, 16), noise=8).to("cuda")(maps, codes, torch.zeros(4, 8, device="cuda"))
    judges = IdentityDiscriminator(siamese).to("cuda")(images, made), PatchDiscriminator(14).to("cuda")(maps, made)
    terms = fd_gan.terms(fd_gan.WEIGHTS["paper"], logits, *judges, made, images, same)
    assert all(value.device.type == "cuda" for value in terms.values())


def test_merged_weights(gpu):
    a, b = network(), network()
    nets = [interpolated(a, b, 0.5), with_task_vectors(a, [task_vector(a, b)], 0.5)]
    assert all(value.device.type == "cuda" for net in nets for value in net.parameters())


def test_tables_of_neighbours(gpu):
    table = torch.zeros(10, 2, dtype=torch.int64, device="cuda")
    permutation_baseline(table, table, permutations=2)
    assert neighbour_agreement(table, table) == mutual_share(table) == 1


def test_a_connector_at_its_least_squares_fit(gpu):
    matched = _Matched(network(2), network(4), [("relu2", "relu2")], How(None, connector=True))
    matched.connect(batch().images)
    assert matched(batch().images)[0].device.type == "cuda"


def test_accuracy_and_loss_of_labels(gpu):
    logits = torch.zeros(20, 10, device="cuda")
    found = classification_loss(logits, batch().labels), accuracy(logits, batch().labels)
    assert all(value.device.type == "cuda" for value in found) and gpu.reads == 0


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + torch.zeros(3),
        lambda x: nn.Linear(3, 2)(x),
        lambda x: torch.zeros(3)[x.long()],
        lambda x: torch.cat([x, torch.zeros(3)]),
    ],
)
def test_mixed_devices_are_found(mixed, gpu):
    with pytest.raises(RuntimeError, match="same device|different devices"):
        mixed(torch.zeros(3, device="cuda"))
