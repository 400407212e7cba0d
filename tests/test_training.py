"""The training loop: means, learning rates, resuming to the bit, and what it says when it cannot go on."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reptrans.checkpoints import load_network, load_tensors
from reptrans.data import Batch, Dataset, Split
from reptrans.errors import BadCheckpoint, BadData, BadValue, Diverged, ShapeMismatch
from reptrans.training import (
    Plan,
    accuracy,
    classification_loss,
    evaluate,
    evaluating,
    fit,
    pick_device,
    predict,
    train_classifier,
)
from reptrans.training.loop import Sums
from reptrans.training.schedule import learning_rate_factor


@dataclass
class Points:
    """A loader of ten points in the plane, three batches of 4, 4 and 2, shuffled by (seed, epoch)."""

    seed: int = 0
    batch_size: int = 4
    count: int = 10
    epoch: int = 0
    dtype: torch.dtype = torch.float32

    def __len__(self):
        return math.ceil(self.count / self.batch_size)

    def __iter__(self):
        images = torch.randn(self.count, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        labels = (images.sum(1) > 0).long()
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(100 * self.seed + self.epoch))
        self.epoch += 1
        for index in order.split(self.batch_size):
            yield Batch(images[index].to(self.dtype), labels[index], index)


def network(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2)).to(dtype)


def classifying(net):
    def objective(batch, progress):
        logits = net(batch.images)
        terms = {"cross_entropy": classification_loss(logits, batch.labels)}
        return terms, {"accuracy": accuracy(logits, batch.labels)}

    return objective


def flat(net):
    return torch.cat([value.double().flatten() for value in net.state_dict().values()])


# Loss and accuracy


def test_cross_entropy_is_in_nats_and_a_mean_over_images():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]], dtype=torch.float64)
    expected = (math.log(2) + math.log(4)) / 2
    assert classification_loss(logits, torch.tensor([0, 1])).item() == pytest.approx(expected, abs=1e-15)
    assert accuracy(logits, torch.tensor([1, 0])).item() == 0.5


def test_several_labels_at_once_are_a_mean_over_all_entries():
    logits = torch.tensor([[0.0, math.log(3.0), -math.log(3.0)]], dtype=torch.float64)
    labels = torch.tensor([[1, 1, 1]], dtype=torch.uint8)
    expected = (math.log(2) + math.log(4 / 3) + math.log(4)) / 3
    assert classification_loss(logits, labels).item() == pytest.approx(expected, abs=1e-15)
    assert accuracy(logits, labels).item() == pytest.approx(1 / 3, abs=1e-15)


@pytest.mark.parametrize("measure", [classification_loss, accuracy])
def test_labels_of_another_form_are_refused(measure):
    with pytest.raises(ShapeMismatch) as caught:
        measure(torch.zeros(4, 3), torch.zeros(5, dtype=torch.long))
    assert str(caught.value) == (
        "logits (4, 3) and labels (5,) do not fit. Logits must be (n, k); labels (n,) class numbers, or (n, k) zeros "
        "and ones."
    )


@pytest.mark.parametrize("measure", [classification_loss, accuracy])
def test_labels_between_yes_and_no_are_refused(measure):
    with pytest.raises(BadData, match=r"labels \(n, k\) say yes or no, 1 or 0, of each class, and these hold other"):
        measure(torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.05, 0.05]]))


def test_answers_that_are_no_numbers_have_no_accuracy():
    logits = torch.tensor([[1.0, -1.0], [math.nan, 2.0], [-3.0, 3.0]])
    loader = [(logits[:1], torch.tensor([0])), (logits[1:], torch.tensor([0, 1]))]
    with pytest.raises(BadData, match=r"answers to 1 of 3 images are not numbers \(NaN\). Look for weights or images"):
        evaluate(nn.Identity(), loader)


class Scales(nn.Module):
    def forward(self, x):
        return x.mul_(3.0)


def test_a_network_that_writes_to_its_input_leaves_the_loaders_alone():
    loader = [(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))]
    assert evaluate(Scales(), loader) == evaluate(Scales(), loader)
    assert loader[0][0].tolist() == [[1.0, 2.0]]


# Looking leaves no trace


def test_evaluate_weighs_images_and_not_batches():
    net = network().eval()
    batches = list(Points())
    images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
    found = evaluate(net, Points())
    with torch.no_grad():
        logits = net(images)
    assert found["images"] == 10
    assert found["accuracy"] == (logits.argmax(1) == labels).sum().item() / 10
    assert found["cross_entropy"] == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-6)
    answered, told = predict(net, Points())
    torch.testing.assert_close(answered, logits, rtol=0, atol=1e-6)
    assert torch.equal(told, labels)


def test_evaluate_of_several_labels_is_a_mean_over_all_entries():
    logits = torch.tensor([[1.0, -1.0], [2.0, 2.0], [-3.0, 3.0]])
    labels = torch.tensor([[1, 1], [1, 0], [0, 1]], dtype=torch.uint8)
    batches = [Batch(logits[:2], labels[:2], None), Batch(logits[2:], labels[2:], None)]
    found = evaluate(nn.Identity(), batches)
    expected = F.binary_cross_entropy_with_logits(logits.double(), labels.double()).item()
    assert found == {"accuracy": 4 / 6, "cross_entropy": pytest.approx(expected, abs=1e-12), "images": 3}


class DrawsAlways(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


@pytest.mark.parametrize("look", [evaluate, predict])
def test_looking_leaves_no_trace(look):
    net = nn.Sequential(network(), DrawsAlways())
    net.train()
    net[0][1].eval()
    loader = Points(epoch=5)
    before, state, weights = [m.training for m in net.modules()], torch.get_rng_state(), flat(net)
    look(net, loader)
    assert [m.training for m in net.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(flat(net), weights)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch.is_grad_enabled()
    assert loader.epoch == 5


def test_modes_come_back_after_an_error():
    net = network()
    net[3].eval()
    before = [m.training for m in net.modules()]
    with pytest.raises(KeyError), evaluating(net):
        assert not any(m.training for m in net.modules())
        raise KeyError
    assert [m.training for m in net.modules()] == before


@pytest.mark.parametrize("look", [evaluate, predict])
def test_no_images_are_an_error(look):
    with pytest.raises(BadValue) as caught:
        look(network(), [])
    assert str(caught.value) == (
        "the loader gave no images. Is the split empty, or smaller than one batch with drop_last=True?"
    )


# The plan and its learning rates


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimiser": "adm"}, "optimiser is 'adm'. Did you mean 'adam' or 'adamw'? Possible: sgd, adam, adamw"),
        ({"schedule": "x"}, "schedule is 'x'. Possible: steps, one_cycle, cosine, constant, milestones"),
        ({"precision": "half"}, "precision is 'half'. Possible: float32, float64, bfloat16"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number from 1 on."),
        ({"epochs": 2.5}, "epochs is 2.5; it must be a whole number from 1 on."),
        ({"seed": True}, "seed is True; it must be a whole number from 0 on."),
        ({"lr": 0}, "lr is 0; it must be a number above 0."),
        ({"lr": math.nan}, "lr is nan; it must be a number above 0."),
        ({"lr": "0.1"}, "lr is '0.1'; it must be a number above 0."),
        ({"momentum": 1}, "momentum is 1; it must be at least 0 and below 1."),
        ({"momentum": 0}, "nesterov is True and momentum is 0: Nesterov's step needs momentum. Set nesterov=False."),
        ({"weight_decay": -1}, "weight_decay is -1; it must be a number from 0 on."),
        ({"clip": 0}, "clip is 0; it must be a number above 0, or None for no limit."),
    ],
)
def test_a_plan_refuses(given, message):
    with pytest.raises(BadValue) as caught:
        Plan(**given)
    assert str(caught.value) == message


def rates(plan, steps_per_epoch):
    steps = range(plan.epochs * steps_per_epoch)
    return [plan.lr * learning_rate_factor(plan, step, steps_per_epoch) for step in steps]


@pytest.mark.parametrize(
    ("epochs", "exponents"),
    [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 0, 1, 2]), (6, [0, 0, 1, 1, 2, 2])],
)
def test_steps_fall_at_a_third_and_two_thirds_of_the_epochs(epochs, exponents):
    found = rates(Plan(epochs=epochs, lr=0.5), 3)
    assert found == pytest.approx([0.5 * 0.1**e for e in exponents for _ in range(3)], rel=1e-15)


def torch_rates(make, steps):
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler, found = make(optimiser), []
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("epochs", "per_epoch"), [(1, 2), (1, 10), (4, 7), (10, 30)])
def test_one_cycle_is_torchs(epochs, per_epoch):
    total = epochs * per_epoch

    # One step beyond the last, since the loop above asks for the next rate once more.
    def make(optimiser):
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.3, total_steps=total, cycle_momentum=False)
        last = scheduler.step
        scheduler.step = lambda: last() if scheduler.last_epoch < total - 1 else None
        return scheduler

    found = rates(Plan(epochs=epochs, lr=0.3, schedule="one_cycle"), per_epoch)
    assert found == pytest.approx(torch_rates(make, total), rel=1e-12)


def test_one_cycle_of_one_step_is_finite():
    assert rates(Plan(epochs=1, lr=0.3, schedule="one_cycle"), 1) == [pytest.approx(0.3 / 25 / 1e4)]


def test_cosine_is_torchs():
    found = rates(Plan(epochs=4, lr=0.3, schedule="cosine"), 5)
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20), 20)
    assert found == pytest.approx(expected, rel=1e-10)
    assert found[0] == 0.3 and found[10] == pytest.approx(0.15, rel=1e-12)


def test_constant_is_constant():
    assert set(rates(Plan(epochs=2, lr=0.3, schedule="constant"), 4)) == {0.3}


# The loop


def test_plain_sgd_by_hand():
    """w <- w - lr * mean(w - x) over batches of 4, 4 and 2; rows weigh the batches by their images."""
    net, seen = nn.Linear(1, 1, bias=False).double(), []
    nn.init.constant_(net.weight, 2.0)

    def objective(batch, progress):
        x = batch.images[:, 0]
        seen.append((progress, x))
        half_square = ((net.weight.flatten() - x) ** 2).mean() / 2
        return {"half_square": half_square, "nothing": 0.0}, {"first": x.mean(), "count": float(len(x))}

    plan = Plan(epochs=2, lr=0.1, nesterov=False, momentum=0, weight_decay=0, schedule="constant", precision="float64")
    rows = fit(objective, net, Points(dtype=torch.float64), plan)
    w, losses = 2.0, []
    for _, x in seen:
        losses.append(((w - x) ** 2).mean().item() / 2)
        w -= 0.1 * (w - x.mean().item())
    assert net.weight.item() == pytest.approx(w, abs=1e-14)
    assert [p for p, _ in seen] == [pytest.approx(i / 6) for i in range(6)]
    assert list(rows.columns) == ["epoch", "step", "lr", "half_square", "nothing", "first", "count"]
    assert rows["epoch"].tolist() == [1, 2] and rows["step"].tolist() == [3, 6] and rows["lr"].tolist() == [0.1, 0.1]
    first = (4 * losses[0] + 4 * losses[1] + 2 * losses[2]) / 10
    assert rows["half_square"][0] == pytest.approx(first, abs=1e-14)
    assert rows["count"].tolist() == [pytest.approx(3.6, abs=1e-14)] * 2


def torch_training(net, plan, make, loader):
    """The same training by torch's own scheduler, written out."""
    optimiser = torch.optim.SGD(net.parameters(), lr=plan.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    scheduler = make(optimiser)
    for epoch in range(plan.epochs):
        loader.epoch = epoch
        for batch in loader:
            optimiser.zero_grad()
            F.cross_entropy(net(batch.images), batch.labels).backward()
            nn.utils.clip_grad_norm_(net.parameters(), plan.clip)
            optimiser.step()
            scheduler.step()


def test_the_loop_is_torchs_with_clip_and_schedule():
    plan = Plan(epochs=3, lr=0.3, schedule="cosine", precision="float64", clip=0.05)
    ours, theirs = (nn.Linear(2, 2).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    fit(classifying(ours), ours, Points(dtype=torch.float64), plan)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    torch_training(theirs, plan, lambda o: cosine(o, 9), Points(dtype=torch.float64))
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_adams_are_torchs(optimiser):
    net = nn.Linear(2, 2).double()
    start = [p.detach().clone().requires_grad_() for p in net.parameters()]
    plan = Plan(epochs=1, optimiser=optimiser, lr=0.01, weight_decay=0.1, precision="float64")
    fit(classifying(net), net, Points(count=4, dtype=torch.float64), plan)
    batch = next(iter(Points(count=4, dtype=torch.float64)))
    reference = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimiser](start, lr=0.01, weight_decay=0.1)
    F.cross_entropy(F.linear(batch.images, *start), batch.labels).backward()
    reference.step()
    for ours, theirs in zip(net.parameters(), start, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_only_the_given_parameters_move_and_get_gradients():
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    before = flat(teacher)
    grads = []

    def objective(batch, progress):
        grads.extend(p.grad for p in teacher.parameters())
        return {"distance": F.mse_loss(student(batch.images), teacher(batch.images))}, {}

    fit(objective, student, Points(), Plan(epochs=2))
    assert torch.equal(flat(teacher), before)
    assert grads and all(g is None for g in grads)
    assert all(p.grad is None for p in (*teacher.parameters(), *student.parameters()))


def test_groups_keep_their_own_highest_learning_rate():
    a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    b.load_state_dict(a.state_dict())
    start = a.weight.detach().clone()

    def objective(batch, progress):
        return {"a": a.weight.sum(), "b": b.weight.sum()}, {}

    plan = Plan(epochs=2, lr=0.1, nesterov=False, momentum=0, weight_decay=0)
    groups = [{"params": a.parameters()}, {"params": b.parameters(), "lr": 0.01}]
    rows = fit(objective, {"a": a, "b": b}, Points(), plan, parameters=groups)
    # Gradient 1 in 3 steps at the full and 3 at a tenth of the learning rate.
    torch.testing.assert_close(start - a.weight, torch.full((2, 2), 0.33), rtol=1e-5, atol=0)
    torch.testing.assert_close(start - b.weight, torch.full((2, 2), 0.033), rtol=1e-4, atol=0)
    assert rows["lr"].tolist() == pytest.approx([0.1, 0.01])


def test_fit_leaves_modes_and_random_state():
    net = network()
    net[1].eval()
    modes, state, seen = [m.training for m in net.modules()], torch.get_rng_state(), []

    def objective(batch, progress):
        seen.append([m.training for m in net.modules()])
        net.eval()
        return classifying(net)(batch, progress)

    fit(objective, net, Points(), Plan(epochs=2))
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(seen[0]) and all(seen[3]) and not any(seen[1])


def test_a_training_is_a_function_of_its_seeds():
    def trained_with(plan, ambient):
        torch.manual_seed(ambient)
        net = network()
        fit(classifying(net), net, Points(), plan)
        return flat(net)

    with torch.random.fork_rng():
        once, again = trained_with(Plan(epochs=2), 1), trained_with(Plan(epochs=2), 2)
        other = trained_with(Plan(epochs=2, seed=1), 1)
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_every_epoch_adds_columns():
    net = network()
    rows = fit(classifying(net), net, Points(), Plan(epochs=2), every_epoch=lambda e: {"twice": torch.tensor(2 * e)})
    assert rows["twice"].tolist() == [2, 4]


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    net, kinds = nn.Linear(2, 2), []

    def objective(batch, progress):
        logits = net(batch.images)
        kinds.append(logits.dtype)
        return {"cross_entropy": classification_loss(logits, batch.labels)}, {}

    rows = fit(objective, net, Points(), Plan(epochs=10, precision="bfloat16", schedule="constant"))
    assert set(kinds) == {torch.bfloat16}
    assert net.weight.dtype == torch.float32
    assert rows["cross_entropy"].iloc[-1] < rows["cross_entropy"].iloc[0] / 1.5


# What it refuses


def test_a_loss_that_is_not_finite_stops_before_the_step():
    net = network()
    calls, before = [], []

    def objective(batch, progress):
        calls.append(1)
        before.append(flat(nn.ModuleList([net[0], net[4]])))
        loss = classification_loss(net(batch.images), batch.labels)
        return {"cross_entropy": loss, "penalty": loss * (math.inf if len(calls) == 5 else 0.0)}, {"odd": math.nan}

    with pytest.raises(Diverged) as caught:
        fit(objective, net, Points(), Plan(epochs=2, lr=0.25))
    assert str(caught.value) == (
        "penalty became inf in epoch 2 of 2, at step 5, learning rate 0.025. "
        "Lower lr, set clip, or look for values that are not finite in the images."
    )
    assert torch.equal(flat(nn.ModuleList([net[0], net[4]])), before[-1])


def test_looking_rarely_finds_the_same_step_and_the_same_means():
    sums = Sums(epochs=3, epoch=2, device=torch.device("cpu"))
    sums.between_looks = 3
    for step, images in ((1, 4), (2, 4), (3, 2), (4, 5)):
        sums.add({"loss": torch.tensor(float(step))}, {"odd": step % 2}, images, step, 0.1)
    assert sums.means() == {"loss": (4 + 8 + 6 + 20) / 15, "odd": (4 + 2) / 15}
    sums.add({"loss": torch.tensor(math.nan)}, {}, 4, 5, 0.2)
    sums.add({"loss": torch.tensor(math.inf)}, {}, 4, 6, 0.3)
    with pytest.raises(Diverged) as caught:
        sums.add({"loss": torch.tensor(1.0)}, {}, 4, 7, 0.4)
    assert str(caught.value).startswith("loss became nan in epoch 2 of 3, at step 5, learning rate 0.2. Lower lr")


def refused(message, error=BadValue, objective=None, net=None, loader=None, plan=None, **options):
    net = net or nn.Linear(2, 2)
    with pytest.raises(error) as caught:
        fit(
            objective or classifying(net),
            net,
            Points() if loader is None else loader,
            plan or Plan(epochs=1),
            **options,
        )
    assert str(caught.value) == message


def test_it_refuses_another_precision():
    refused(
        "precision 'float64' needs weights of torch.float64, but weight is torch.float32. "
        "Convert the network with .to(torch.float64), or choose another precision.",
        plan=Plan(precision="float64"),
    )


def test_it_refuses_frozen_networks():
    message = "there is nothing to train: no parameter that requires a gradient was given."
    refused(message, net=nn.Linear(2, 2).requires_grad_(False))
    refused(message, net=nn.ReLU())


def test_it_refuses_an_empty_loader():
    refused(
        "the loader has no batches. Is the split smaller than one batch with drop_last=True?", loader=Points(count=0)
    )


def test_it_refuses_terms_without_parameters():
    refused(
        "no parameter can make the loss smaller: the terms (fixed) do not depend on any that requires a gradient.",
        objective=lambda batch, progress: ({"fixed": torch.tensor(1.0)}, {}),
    )


def test_it_refuses_terms_that_are_no_scalars():
    net = nn.Linear(2, 2)
    refused(
        "output is a tensor (4, 2); a term or figure is a scalar. Take its mean.",
        objective=lambda batch, progress: ({"output": net(batch.images)}, {}),
        net=net,
    )


def test_it_refuses_names_that_come_twice():
    net = nn.Linear(2, 2)
    refused(
        "'a' is the name of a term and of a figure. Give each its own.",
        objective=lambda batch, progress: ({"a": net(batch.images).mean()}, {"a": 1.0}),
        net=net,
    )
    refused(
        "'accuracy' would stand twice in a row. Rename the term, figure or entry of every_epoch.",
        every_epoch=lambda epoch: {"accuracy": 1.0},
    )
    refused(
        "'step' would stand twice in a row. Rename the term, figure or entry of every_epoch.",
        every_epoch=lambda epoch: {"step": 1.0},
    )


def test_it_refuses_parameters_that_would_not_be_saved(tmp_path):
    other = nn.Parameter(torch.zeros(1))
    refused(
        "parameters[0] is trained but in none of the modules, so it would not be saved. Add its module.",
        parameters=[other],
        checkpoint=tmp_path / "run.safetensors",
    )


@pytest.mark.parametrize(("every", "folder"), [(2, None), (0, "snapshots")])
def test_it_refuses_snapshots_it_could_not_write(every, folder, tmp_path):
    refused(
        f"save_every is {every}; it must be a number of steps from 1 on, and needs `snapshots`.",
        save_every=every,
        snapshots=folder and tmp_path / folder,
    )


def test_pick_device():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(BadValue) as caught:
        pick_device("cpuu")
    assert str(caught.value).startswith("there is no device 'cpuu' here. Did you mean 'cpu'? Possible: auto, cpu")


# Checkpoints and snapshots

TRAINING = """
import hashlib, json, os, signal, sys
import torch
sys.path.insert(0, sys.argv[1])
from test_training import Plan, Points, classifying, fit, flat, network
import reptrans.files, reptrans.tensorfiles

torch.set_num_threads(1)
DIE = lambda: os.kill(os.getpid(), signal.SIGKILL)


def counted(function, at, when):
    "function, but at its call number `at` the process is killed, before, halfway or after"
    calls = []
    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == at and when == "before":
            DIE()
        result = function(*args, **kwargs)
        if len(calls) == at and when == "halfway":
            os.truncate(args[1], os.path.getsize(args[1]) // 2)
        if len(calls) == at and when != "before":
            DIE()
        return result
    return wrapped, calls


def train(checkpoint, where=None, at=0, when="before"):
    net = network()
    objective = classifying(net)
    if where == "replace":
        reptrans.files.os.replace, _ = counted(os.replace, at, when)
    if where == "write":
        reptrans.tensorfiles.save_file, _ = counted(reptrans.tensorfiles.save_file, at, when)
    objective, calls = counted(objective, at if where == "step" else 0, when)
    rows = fit(objective, net, Points(), Plan(epochs=4, optimiser="adam", lr=0.01), checkpoint=checkpoint)
    weights = hashlib.sha256(flat(net).numpy().tobytes()).hexdigest()
    return {"weights": weights, "rows": rows.to_dict("records"), "steps": len(calls)}


def in_a_child(*arguments):
    "(signal, result): each training in a process of its own"
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, json.dumps(train(*arguments)).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as answer:
        text = answer.read()
    return os.WTERMSIG(status), json.loads(text or "null")


# What torch imports at the first step of an optimiser is imported once, here.
train(None)
results = []
for number, moments in enumerate(json.loads(sys.argv[3])):
    path = os.path.join(sys.argv[2], f"{number}.safetensors")
    signals = [in_a_child(path, *moment)[0] for moment in moments]
    results.append([signals, *in_a_child(path)])
print(json.dumps(results))
"""

MOMENTS = [
    ([], 12),
    ([("step", 1, "before")], 12),
    ([("step", 5, "after")], 9),
    ([("step", 12, "before")], 3),
    ([("write", 1, "halfway")], 12),
    ([("write", 2, "halfway")], 9),
    ([("replace", 3, "before")], 6),
    ([("replace", 3, "after")], 3),
    ([("replace", 4, "after")], 0),
    ([("step", 5, "before"), ("step", 4, "after"), ("write", 1, "before")], 6),
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    moments = json.dumps([moments for moments, _ in MOMENTS])
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", TRAINING, here, str(folder), moments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(here).parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(MOMENTS)))
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(killed, number):
    moments, steps = MOMENTS[number]
    signals, last_signal, result = killed[number]
    _, _, whole = killed[0]
    assert signals == [9] * len(moments) and last_signal == 0
    assert result["steps"] == steps
    assert result["weights"] == whole["weights"]
    assert result["rows"] == whole["rows"]


def test_a_finished_training_is_not_repeated(tmp_path):
    net, path = network(), tmp_path / "run.safetensors"
    rows = fit(classifying(net), net, Points(), Plan(epochs=2), checkpoint=path)
    again, calls = network(), []
    repeated = fit(lambda *_: calls.append(1), again, Points(), Plan(epochs=2), checkpoint=path)
    assert not calls
    assert torch.equal(flat(again), flat(net))
    assert repeated.equals(rows)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"plan": Plan(epochs=2, lr=0.05)}, "plan.lr is 0.1 there and 0.05 here"),
        ({"loader": Points(seed=3)}, "loader.seed is 0 there and 3 here"),
        ({"loader": Points(batch_size=5)}, "loader.batches is 3 there and 2 here"),
        ({"net": nn.Linear(2, 3)}, "parameters.weight is (2, 2) there and (3, 2) here"),
        ({"net": nn.Linear(2, 2, bias=False)}, "groups.0.tensors is 2 there and 1 here"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(change, difference, tmp_path):
    path = tmp_path / "run.safetensors"
    net = nn.Linear(2, 2)
    fit(classifying(net), net, Points(), Plan(epochs=2), checkpoint=path)
    kept = path.read_bytes()
    advice = "Give the same values to go on with it; move it away or name another file to start anew."
    options = {"plan": Plan(epochs=2)} | change
    refused(f"{path} belongs to another training: {difference}. {advice}", BadCheckpoint, checkpoint=path, **options)
    assert path.read_bytes() == kept


def test_a_broken_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"")
    refused(
        f"{path} (0 bytes) is not a complete checkpoint: it breaks off or is of another format. "
        "Train or download it again, or save its weights with torch.save.",
        BadCheckpoint,
        checkpoint=path,
    )


def test_snapshots_have_the_first_every_nth_and_the_last(tmp_path):
    net = network()
    first = flat(net)
    fit(classifying(net), net, Points(), Plan(epochs=3), save_every=4, snapshots=tmp_path / "a" / "b")
    files = sorted((tmp_path / "a" / "b").iterdir(), key=lambda path: int(path.stem))
    assert [path.name for path in files] == [f"{step}.safetensors" for step in (0, 4, 8, 9)]
    assert torch.equal(flat(load_network(network(), files[0])), first)
    assert torch.equal(flat(load_network(network(), files[-1])), flat(net))
    assert load_tensors(files[1])[1] == {"step": 4}


def test_snapshots_of_several_modules_are_one_file(tmp_path):
    nets = {"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)}

    def objective(batch, progress):
        return {"loss": classification_loss(nets["second"](nets["first"](batch.images)), batch.labels)}, {}

    fit(objective, nets, Points(), Plan(epochs=1), snapshots=tmp_path, checkpoint=tmp_path / "run.safetensors")
    state, _ = load_tensors(tmp_path / "3.safetensors")
    assert {name: list(part) for name, part in state.items()} == {n: ["weight", "bias"] for n in nets}
    assert torch.equal(state["second"]["weight"], nets["second"].weight)


# A classifier


def striped():
    """Ten images of 2 x 2 pixels in two classes, bright above or bright below; the test part is the train part."""
    labels = torch.arange(10) % 2
    images = torch.randint(0, 100, (10, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[torch.arange(10), 0, labels] += 120
    split = Split(images, labels)
    return Dataset("striped", split, split, ("above", "below"), (0.5,), (0.25,))


def flat_network(classes=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, classes))


def test_a_classifier_learns_and_reports_both_splits():
    net, data = flat_network().double(), striped()
    plan = Plan(epochs=20, precision="float64", lr=0.1)
    rows = train_classifier(net, data, plan, batch_size=4, batch_seed=1)
    assert list(rows.columns) == [
        *("epoch", "step", "lr", "train_cross_entropy", "train_accuracy", "test_cross_entropy", "test_accuracy")
    ]
    assert rows["step"].tolist()[:3] == [2, 4, 6]
    last, found = rows.iloc[-1], evaluate(net, data.loader("test", 3, dtype=torch.float64))
    assert last["test_cross_entropy"] == pytest.approx(found["cross_entropy"], rel=1e-12)
    assert last["test_accuracy"] == found["accuracy"] == 1.0


def test_a_classifiers_order_is_that_of_its_seed():
    first, again, other = flat_network(), flat_network(), flat_network()
    for net in (again, other):
        net.load_state_dict(first.state_dict())
    for net, seed in ((first, 0), (again, 0), (other, 1)):
        train_classifier(net, striped(), Plan(epochs=2), batch_size=4, batch_seed=seed)
    assert torch.equal(flat(first), flat(again))
    assert not torch.equal(flat(first), flat(other))


def test_a_classifier_of_several_labels_at_once():
    labels = torch.stack([torch.arange(10) % 2, 1 - torch.arange(10) % 2], 1).to(torch.uint8)
    split = Split(striped().train.images, labels)
    data = Dataset("two", split, split, ("above", "below"), (0.5,), (0.25,))
    rows = train_classifier(flat_network(), data, Plan(epochs=20), batch_size=4)
    assert rows["test_accuracy"].iloc[-1] == 1.0


def test_a_classifier_keeps_an_incomplete_batch_that_is_the_only_one():
    rows = train_classifier(flat_network(), striped(), Plan(epochs=1), batch_size=64)
    assert rows["step"].tolist() == [1]


def test_a_classifier_of_another_number_of_classes_is_refused():
    with pytest.raises(ShapeMismatch) as caught:
        train_classifier(flat_network(10), striped(), Plan(epochs=1), batch_size=4)
    assert str(caught.value) == (
        "the network's output is (4, 10), but striped has 2 classes. Build the network with num_classes=2."
    )
