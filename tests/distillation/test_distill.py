"""Training by stages: what moves and what does not, going on after an interruption, rounds, teachers, refusals."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from reptrans.distillation import METHODS
from reptrans.distillation.distill import distill, loaders
from reptrans.distillation.losses import moving, resolve
from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import BadCheckpoint, BadValue, LayerNotFound, ReptransError, ShapeMismatch, UnknownName
from reptrans.matching import CrossEntropy, Learned, Match, Teacher, conv1x1_bn, l2, softened_kl
from reptrans.models import build
from reptrans.training import Plan
from reptrans.training.resume import Keeper

PLAN = Plan(epochs=4, lr=0.05, precision="float64")
GROUPS = ({"conv1", "bn1"}, {"conv2", "bn2"}, {"conv3", "bn3"}, {"fc"})


def hint(group: int, **settings) -> Match:
    return Match(f"relu{group}", f"relu{group}", l2, student_transform=conv1x1_bn(), weight=1e-2, **settings)


def logits(who: int = 0) -> Match:
    return Match("out", "out", softened_kl(2.0), who=who, name=f"kd {who}")


def run(pair, *stages, plan=PLAN, **settings):
    """(trained student, rows) of a method with these stages."""
    known = {name: settings.pop(name) for name in ("rounds", "prepare") if name in settings}
    method = Method("mine", stages, **known)
    return distill(pair.student, pair.teachers, method, pair.teachers[0].loader, plan, **settings)


def state(net: nn.Module) -> dict:
    return copy.deepcopy(net.state_dict())


def changed(net: nn.Module, before: dict) -> set[str]:
    """The layers of which a parameter or buffer is no longer the same to the bit."""
    return {name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def several(pair, number: int) -> Pair:
    """The pair with `number` teachers of different weights."""
    loader = pair.teachers[0].loader
    nets = [build("cnn3_w4", num_classes=10, in_channels=1, image_size=(8, 8), seed=k).double() for k in range(number)]
    images = next(iter(loader.plain())).images
    return Pair.of(pair.student, [Teacher(net.eval(), loader) for net in nets], images)


# What moves


@pytest.mark.parametrize("group", [1, 2, 3])
def test_a_stage_over_what_is_reached_leaves_all_behind_it_to_the_bit(pair, group):
    before = state(pair.student)
    run(pair, Stage([hint(group)], "reached"))
    assert changed(pair.student, before) == set().union(*GROUPS[:group])


def test_next_layers_move_once_with_buffers_of_the_others_at_rest(pair):
    stages = [Stage([hint(1)], "new", 0.25), Stage([hint(3)], "new", 0.25), Stage([CrossEntropy()], "new", 0.5)]
    before = state(pair.student)
    for number, moved in enumerate((GROUPS[0], GROUPS[1] | GROUPS[2], GROUPS[3]), start=1):
        # The first stages are the same in each of these trainings.
        student, _ = run(replace(pair, student=copy.deepcopy(pair.student)), *stages[:number])
        assert changed(student, before) == moved
        before = state(student)


def test_connectors_alone_leave_the_student_to_the_bit_and_still_learn(pair):
    before = state(pair.student)
    _, rows = run(pair, Stage([hint(2)], "connectors"))
    assert not changed(pair.student, before)
    column = rows.filter(like="relu2").iloc[:, 0]
    assert column.iloc[-1] < column.iloc[0]


def test_a_stage_of_all_moves_statistics_also_behind_its_losses(pair):
    before = state(pair.student)
    run(pair, Stage([hint(2)], "all"), plan=Plan(epochs=2, lr=0.05, weight_decay=0, precision="float64"))
    assert changed(pair.student, before) == GROUPS[0] | GROUPS[1] | {"bn3"}


def test_what_requires_no_gradient_stays_in_every_stage(pair):
    pair.student.conv2.requires_grad_(False)
    pair.student.bn2.requires_grad_(False)
    before = state(pair.student)
    run(pair, Stage([hint(3)], "reached", 0.5), Stage([CrossEntropy()], share=0.5))
    assert changed(pair.student, before) == GROUPS[0] | GROUPS[2] | GROUPS[3]


def test_dropout_works_in_a_stage_of_the_whole_student_and_rests_in_others(pair):
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 8).double(), nn.Dropout(), nn.Linear(8, 10).double())
    student[1].requires_grad_(False)
    batch = next(iter(pair.teachers[0].loader))
    for train, expected in (("all", True), ("reached", False)):
        losses = resolve(Stage([CrossEntropy()], train), student, pair.teachers, batch)
        moves = moving(losses, batch)
        losses.moves = set(moves)
        losses.train()
        assert student[2].training is expected
        assert not student[1].training and student[3].training
        assert moves == list(student[3].parameters())


def test_a_stage_with_nothing_left_says_so(pair):
    known = Match("relu1", "relu1", lambda t, s: s.mean())
    with pytest.raises(BadValue, match="stage 2 of mine has nothing to train; earlier stages trained it"):
        run(pair, Stage([CrossEntropy()], share=0.5), Stage([known], "new", 0.5))


def test_a_frozen_student_still_trains_its_connectors_and_nothing_else_is_possible(pair):
    pair.student.requires_grad_(False)
    before = state(pair.student)
    run(pair, Stage([hint(2)], "reached"))
    assert not changed(pair.student, before)
    with pytest.raises(BadValue, match="stage 1 of mine has nothing to train"):
        run(pair, Stage([CrossEntropy()], "reached"))


def test_the_teachers_side_moves_in_a_stage_of_connectors_only(pair):
    made = []

    def make(seen):
        made.append(nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)))
        return made[-1]

    ours = Learned(make, "ours")
    match = Match("relu1", "relu1", lambda t, s: (t - 1).square().mean() + 0 * s.mean(), ours)
    first = Stage([match], "connectors", 0.5)
    run(pair, first)
    after_first = state(made[1])
    run(pair, first, Stage([CrossEntropy(), Match("relu1", "relu1", l2, ours)], share=0.5))
    assert len(made) == 4, "one recipe is one module in all stages, after one in the rehearsal, and new ones later"
    # The student has moved, but the first stage and what it made are the same in both trainings.
    assert not changed(made[3], after_first)
    initial = copy.deepcopy(make(None))
    assert not torch.equal(initial[0].weight, made[3][0].weight)


def test_a_recipe_may_be_a_part_of_another(pair):
    whole = Learned(lambda seen: nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)), "whole")
    part = Learned(lambda seen: seen.made(whole)[0], "part")
    stage, batch = Stage([Match("relu1", "relu1", l2, part)]), next(iter(pair.teachers[0].loader))
    built = resolve(stage, pair.student, pair.teachers, batch).built
    assert built[part] is built[whole][0] and built[part].weight.dtype == torch.float64


def test_resolving_keeps_what_is_built_and_changes_nothing_that_it_was_given(pair):
    ours = Learned(lambda seen: nn.Conv2d(4, 2, 1), "ours")
    stage, batch = Stage([Match("relu1", "relu1", l2, ours, conv1x1_bn())]), next(iter(pair.teachers[0].loader))
    known = {}
    first = resolve(stage, pair.student, pair.teachers, batch, known)
    again = resolve(stage, pair.student, pair.teachers, batch, first.built)
    assert known == {} and len(first.built) == 2 and again.built == first.built
    assert again.of_teacher[0] is first.of_teacher[0] is first.built[ours]


# The teacher


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_the_teacher_is_untouched(pair, mode):
    teacher = pair.teachers[0].net
    before, modes = state(teacher), [m.training for m in teacher.modules()]
    run(pair, Stage([CrossEntropy(), hint(2), logits()], teacher=mode))
    assert not changed(teacher, before) and modes == [m.training for m in teacher.modules()]
    assert all(p.grad is None for p in teacher.parameters())
    assert all(norm.track_running_stats for norm in teacher.modules() if isinstance(norm, nn.BatchNorm2d))


def test_in_mode_batch_it_normalises_by_the_batch(pair):
    teacher = pair.teachers[0]
    batch = next(iter(teacher.loader))
    values = teacher.values(batch, ["bn1"], "batch")["bn1"]
    torch.testing.assert_close(values.mean((0, 2, 3)), teacher.net.bn1.bias.detach(), rtol=0, atol=1e-12)
    assert not torch.allclose(values, teacher.values(batch, ["bn1"])["bn1"])
    with pytest.raises(BadValue, match="the teacher's mode is 'train'. Possible: eval, batch"):
        run(pair, Stage([hint(1)], teacher="train"))


def test_kept_values_are_those_of_a_pass(pair):
    loader, net = pair.teachers[0].loader, pair.teachers[0].net
    assert Teacher(net, loader).keeps and not Teacher(net, loader.over(loader.split, augment="flip")).keeps
    trained = []
    for budget in (2**30, 0):
        student = copy.deepcopy(pair.student)
        stage = Stage([CrossEntropy(), hint(2), Match("grad:loss", "grad:loss", l2)])
        _, rows = distill(student, Teacher(net, loader, budget), Method("mine", [stage]), loader, PLAN)
        trained.append((rows, student))
    pd.testing.assert_frame_equal(trained[0][0], trained[1][0], rtol=1e-9)
    for a, b in zip(trained[0][1].parameters(), trained[1][1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_an_augmented_image_is_seen_by_both_networks(pair):
    loader = pair.teachers[0].loader.over(pair.teachers[0].loader.split, augment="flip,crop")
    teacher = Teacher(pair.teachers[0].net, loader)
    batch = next(iter(loader))
    with torch.no_grad():
        expected = teacher.net(batch.images)
    assert torch.equal(teacher.values(batch, ["out"])["out"], expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"augment": "flip"}, "60 images without augmentation, this one 60 with augmentation 'flip'"),
        ({}, "this one 60"),
    ],
)
def test_values_kept_for_other_images_are_refused(pair, changes, said):
    loader = pair.teachers[0].loader
    split = loader.split if changes else loader.split.select(torch.arange(60).flip(0))
    with pytest.raises(BadValue, match=f"{said}.*the same loader"):
        distill(pair.student, pair.teachers, Method("mine", [Stage([logits()])]), loader.over(split, **changes), PLAN)


def test_several_teachers_each_have_their_term(pair):
    pair = several(pair, 2)
    _, rows = run(pair, Stage([logits(0), logits(1)]), plan=Plan(epochs=1, lr=1e-9, precision="float64"))
    batch = next(iter(pair.teachers[0].loader))
    objective = resolve(Stage([logits(0), logits(1)]), pair.student, pair.teachers, batch).eval()
    terms, _ = objective(batch)
    for who, term in enumerate(terms.values()):
        with torch.no_grad():
            expected = softened_kl(2.0)(pair.teachers[who].net(batch.images), pair.student.eval()(batch.images))
        assert term.item() == pytest.approx(expected.item(), rel=1e-12)
    assert rows["kd 0"].item() != rows["kd 1"].item()


def test_missing_teachers_are_named(pair):
    with pytest.raises(BadValue, match="mine needs 3 teachers, but there are 1"):
        run(pair, Stage([logits(2)]))


# Refusals before the first step


def test_a_layer_that_is_not_there_is_refused(pair):
    for match in (Match("relu9", "relu1", l2), Match("relu1", "relu9", l2)):
        with pytest.raises(LayerNotFound, match="no layer 'relu9'"):
            run(pair, Stage([match]))


def test_a_student_as_its_own_teacher_is_refused(pair):
    with pytest.raises(BadValue, match="the teacher is the student itself"):
        distill(pair.teacher, pair.teachers, Method("mine", [Stage([logits()])]), pair.teachers[0].loader, PLAN)


def test_types_that_do_not_fit_are_refused(pair):
    with pytest.raises(BadValue, match="images of torch.float64, but the plan's float32 computes with .*float32"):
        run(pair, Stage([logits()]), plan=Plan(epochs=1))
    pair.teacher.float()
    with pytest.raises(BadValue, match="images of torch.float64, but teacher 0 computes with weights of torch.float32"):
        run(pair, Stage([logits()]))


def test_the_student_takes_the_plans_type(pair):
    student = pair.student.float()
    assert next(run(pair, Stage([logits()]))[0].parameters()).dtype == torch.float64
    assert student is pair.student


# Interruption


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("epochs_done", [1, 2, 3, 5])
def test_an_interrupted_training_ends_in_the_same_rows_and_bits(pair, tmp_path, epochs_done, monkeypatch):
    ours = Learned(lambda seen: nn.Conv2d(4, 2, 1), "ours")
    rephrase = Match("relu1", "relu1", lambda t, s: (t - 1).square().mean() + 0 * s.mean(), ours, name="ours")
    stages = [
        Stage([rephrase], "connectors", 0.25),
        Stage([hint(2)], "new", 0.5),
        Stage([CrossEntropy(), Match("relu1", "relu1", l2, ours, conv1x1_bn(), 1e-2)], share=0.75),
    ]
    fresh = copy.deepcopy(pair.student)
    student, rows = run(pair, *stages, folder=tmp_path / "whole")

    again = replace(pair, student=copy.deepcopy(fresh))
    _interrupt_after(epochs_done, monkeypatch)
    with pytest.raises(Interrupted):
        run(again, *stages, folder=tmp_path / "parts")
    monkeypatch.undo()
    again = replace(pair, student=copy.deepcopy(fresh))
    resumed, found = run(again, *stages, folder=tmp_path / "parts")
    pd.testing.assert_frame_equal(found, rows, check_exact=True)
    assert not changed(resumed, student.state_dict())


def _interrupt_after(epochs: int, monkeypatch) -> None:
    keep, done = Keeper.keep, []

    def kept(self, rows):
        keep(self, rows)
        done.append(1)
        if len(done) == epochs:
            raise Interrupted

    monkeypatch.setattr(Keeper, "keep", kept)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator(pair):
    fresh = copy.deepcopy(pair.student)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, rows = run(pair, Stage([CrossEntropy(), hint(2)]))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second, same = run(replace(pair, student=fresh), Stage([CrossEntropy(), hint(2)]))
    assert not changed(second, first.state_dict())
    pd.testing.assert_frame_equal(rows, same, check_exact=True)


# Rounds, prepared students, rows


def test_each_round_is_taught_by_the_student_before_to_the_bit(twins):
    taught = []

    def prepare(student, teacher):
        taught.append((teacher, state(teacher), state(student)))
        return student

    fresh = copy.deepcopy(twins.student)
    student, rows = run(twins, Stage([CrossEntropy(), logits()]), rounds=3, prepare=prepare)
    alone, first = run(replace(twins, student=copy.deepcopy(fresh)), Stage([CrossEntropy(), logits()]))
    assert taught[0][0] is twins.teacher and not changed(alone, taught[1][1])
    for teacher, before, start in taught:
        assert not changed(teacher, before), "a teacher stays as it is in its own round and after"
        assert not changed(fresh, start), "every round starts where the first did"
    assert len({id(teacher) for teacher, *_ in taught} | {id(student)}) == 4
    assert list(rows["round"]) == [1] * 4 + [2] * 4 + [3] * 4
    pd.testing.assert_frame_equal(rows[:4], first, check_exact=True)


def test_rounds_go_on_after_an_interruption(twins, tmp_path, monkeypatch):
    fresh = copy.deepcopy(twins.student)
    student, rows = run(twins, Stage([CrossEntropy(), logits()]), rounds=2)
    again = replace(twins, student=copy.deepcopy(fresh))
    _interrupt_after(6, monkeypatch)
    with pytest.raises(Interrupted):
        run(again, Stage([CrossEntropy(), logits()]), rounds=2, folder=tmp_path)
    monkeypatch.undo()
    again = replace(twins, student=copy.deepcopy(fresh))
    resumed, found = run(again, Stage([CrossEntropy(), logits()]), rounds=2, folder=tmp_path)
    pd.testing.assert_frame_equal(found, rows, check_exact=True)
    assert not changed(resumed, student.state_dict())


def test_a_kept_training_of_another_method_or_teacher_is_refused(pair, tmp_path):
    def kept(teachers=pair.teachers, name="kd", **more):
        labelled = more.pop("labelled", None)
        student, loader = copy.deepcopy(pair.student), pair.teachers[0].loader
        distill(student, teachers, name, loader, PLAN, folder=tmp_path, labelled=labelled, **more)

    kept()
    kept()
    other = several(pair, 2).teachers[1]
    for what, changes in (
        ("teachers", {"teachers": other}), ("recipe", {"temperature": 1.0}), ("recipe", {"weight": 0.1}),
        ("method", {"name": "plain"}), ("labelled", {"labelled": torch.arange(len(other.loader.split)) % 2 == 0}),
    ):  # fmt: skip
        with pytest.raises(BadCheckpoint, match=f"belongs to another training: objective.{what}"):
            kept(**changes)


def test_a_teacher_in_train_mode_is_untouched(pair):
    teacher = Teacher(pair.teachers[0].net.train(), pair.teachers[0].loader)
    before = state(teacher.net)
    distill(pair.student, teacher, "kd", teacher.loader, PLAN)
    assert not changed(teacher.net, before) and teacher.net.training


@pytest.mark.parametrize("name", ["plain", "kd"])
def test_accuracy_is_that_of_the_labels_that_are_known(pair, name):
    loader, still = pair.teachers[0].loader, replace(PLAN, epochs=1, lr=1e-12)
    labelled = torch.arange(len(loader.split)) % 3 == 0
    student, rows = distill(pair.student, pair.teachers, name, loader, still, labelled=labelled)
    student.train()
    right = [(student(b.images).argmax(1) == b.labels)[labelled[b.index]] for b in loader.over(loader.split)]
    assert rows["accuracy"].iloc[-1] == pytest.approx(torch.cat(right).double().mean().item(), abs=1e-9)


def test_rounds_need_one_teacher_and_a_student_with_its_layers(pair):
    with pytest.raises(BadValue, match="mine has 2 teachers, but after the first round there is one"):
        run(several(pair, 2), Stage([logits(0), logits(1)]), rounds=2)
    pair.teacher.add_module("more", nn.Identity())
    with pytest.raises(LayerNotFound, match="no layer 'more'"):
        run(pair, Stage([Match("more", "out", l2)]), rounds=2)


def test_a_prepared_student_is_trained_in_place_of_the_given_one(pair):
    before, other = state(pair.student), copy.deepcopy(pair.student)
    student, _ = run(pair, Stage([CrossEntropy()]), prepare=lambda student, teacher: other)
    assert student is other and not changed(pair.student, before) and changed(other, before)


def test_rows_say_where_they_are_from(pair, digits):
    test = digits.loader("test", 100, dtype=torch.float64)
    stages = [Stage([hint(1)], "reached", 0.2), Stage([CrossEntropy(0.5), logits()], share=0.8, plan={"lr": 0.01})]
    _, rows = run(pair, *stages, watch={"test": test})
    assert list(rows.columns[:5]) == ["method", "round", "stage", "epoch", "step"]
    assert list(rows["stage"]) == [1, 2, 2, 2] and list(rows["epoch"]) == [1, 1, 2, 3]
    assert rows["lr"].tolist()[:2] == [0.05, 0.01], "each stage has its own schedule, from its first epoch on"
    assert rows["test_accuracy"].between(0, 1).all() and (rows["test_cross_entropy"] > 0).all()
    assert rows["cross_entropy"].isna().tolist() == [True, False, False, False]


def test_a_weight_may_follow_the_progress_of_its_stage(pair):
    match = Match("out", "out", lambda t, s: 1 + 0 * s.mean(), weight=lambda progress: 1 - progress, name="x")
    _, rows = run(pair, Stage([match, CrossEntropy()]))
    steps = torch.arange(12, dtype=torch.float64)
    expected = (1 - steps / 12).view(4, 3).mean(1)
    assert rows["x"].tolist() == pytest.approx(expected.tolist())


def test_a_bare_network_teaches_as_a_teacher_made_of_it(pair):
    method, loader = Method("mine", [Stage([logits()])]), pair.teachers[0].loader
    start = state(pair.student)
    _, rows = distill(pair.student, pair.teachers, method, loader, PLAN)
    pair.student.load_state_dict(start)
    _, bare = distill(pair.student, pair.teachers[0].net, method, loader, PLAN)
    pd.testing.assert_frame_equal(
        rows.drop(columns="seconds", errors="ignore"), bare.drop(columns="seconds", errors="ignore")
    )


@pytest.mark.parametrize(("name", "options"), [("kd", {"temperature": 2.0}), ("nst", {"kernel": "gaussian"})])
def test_a_methods_name_makes_the_method_for_the_usual_positions(pair, digits, name, options):
    plan, start = replace(PLAN, epochs=2), state(pair.student)
    loader = digits.loader("train", 128, shuffle=True, seed=0, dtype=torch.float64)
    taught = Teacher(pair.teachers[0].net, loader)
    made = METHODS[name](Pair.of(pair.student, taught, next(iter(loader.plain())).images), **options)
    long, rows = distill(pair.student, taught, made, loader, plan)
    long = state(long)
    pair.student.load_state_dict(start)
    short, same = distill(pair.student, taught.net, name, digits, plan, **options)
    assert all(torch.equal(value, long[key]) for key, value in short.state_dict().items())
    assert list(same["method"]) == list(rows["method"]) == [name] * 2


@pytest.mark.parametrize(("more", "error", "said"), [
    ({"method": "KD"}, UnknownName, "there is no method of distillation 'KD'. Did you mean 'kd'"),
    ({"method": "kd", "temprature": 3.0}, BadValue, "kd has no argument 'temprature'. Did you mean 'temperature'"),
    ({"wach": {}}, BadValue, "distill has no argument 'wach'; a Method has its options already."),
    ({"loader": [1]}, BadValue, "the loader is a list. Give dataset.loader('train', 128, shuffle=True), or the Data"),
    ({"plan": {"epochs": 2}}, BadValue, "the plan is a dict. Give a Plan, Plan(epochs=60) say."),
    ({"student": build("cnn3_w2"), "method": "kd"}, ShapeMismatch, "Sequential does not take images (2, 1, 8, 8) of "
     "torch.float64: its first layer 'conv1' takes 3 channels."),
    ({"teachers": build("cnn3_w2", in_channels=1), "method": "kd"}, BadValue, "the loader gives images of torch.float64"
     ", but teacher 0 computes with weights of torch.float32."),
    ({"teachers": "tiny10"}, BadValue, "a network is a torch.nn.Module, and 'tiny10' was given."),
    ({"student": "tiny10"}, BadValue, "a network is a torch.nn.Module, and 'tiny10' was given."),
])  # fmt: skip
def test_what_distill_cannot_make_something_of(pair, more, error, said):
    given = {"student": pair.student, "teachers": pair.teachers, "method": Method("mine", [Stage([logits()])]),
             "loader": pair.teachers[0].loader, "plan": PLAN}  # fmt: skip
    with pytest.raises(error) as caught:
        distill(**given | more)
    assert str(caught.value).startswith(said)


def test_a_norm_without_parameters_follows_the_layers_that_train(digits):
    def network(seed):
        torch.manual_seed(seed)
        parts = [part for k in range(2) for part in (nn.Conv2d(1 + 3 * k, 4, 3), nn.BatchNorm2d(4, affine=False))]
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(64, 10)).double()

    loader, _ = loaders(digits, 20, 0, "none", "cpu", torch.float64)
    student, teacher = network(0), Teacher(network(1).eval(), loader)
    first, second = (Stage([Match(tap, tap, l2)], how, 0.5) for tap, how in (("1", "reached"), ("3", "new")))
    plan = Plan(epochs=2, lr=0.01, precision="float64")
    distill(student, teacher, Method("m", [first]), loader, plan)
    assert int(student[1].num_batches_tracked) == 3 and int(student[3].num_batches_tracked) == 0
    distill(student, teacher, Method("m", [first, second]), loader, plan)
    assert int(student[1].num_batches_tracked) == 6 and int(student[3].num_batches_tracked) == 3


@pytest.mark.parametrize("name", ["kd", "fitnets", "ab", "jacobian", "dkd"])
def test_a_teacher_of_other_classes_is_said_before_anything_moves(digits, name):
    loader, _ = loaders(digits, 20, 0, "none", "cpu", torch.float64)
    nets = [build("cnn3_w2", num_classes=k, in_channels=1, image_size=(8, 8), seed=k).double() for k in (10, 7)]
    teacher, before = Teacher(nets[1].eval(), loader), copy.deepcopy(nets[0].state_dict())
    method = METHODS[name](Pair.of(nets[0], teacher, next(iter(loader)).images))
    with pytest.raises(ReptransError, match="class"):
        distill(nets[0], teacher, method, loader, Plan(epochs=2, precision="float64"))
    assert all(torch.equal(value, before[key]) for key, value in nets[0].state_dict().items())


def test_a_method_of_another_name_is_met_by_near_ones():
    with pytest.raises(UnknownName) as caught:
        METHODS["KD"]
    message = str(caught.value)
    assert message.startswith("there is no method of distillation 'KD'. Did you mean 'kd'")
    assert message.endswith(", ".join(METHODS))
    with pytest.raises(UnknownName, match="Did you mean 'fitnets'?"):
        METHODS["fitnet"]
    assert METHODS.get("KD") is None and "KD" not in METHODS


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_networks_that_return_more_than_logits_are_taken(digits, which):
    class Wrapped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, images):
            logits = self.net(images)
            return {"scaled": logits / 2, "logits": logits}

    loader, _ = loaders(digits, 20, 0, "none", "cpu", torch.float64)
    nets = [build("cnn3_w2", num_classes=10, in_channels=1, image_size=(8, 8), seed=k).double() for k in (0, 1)]
    rows = []
    for wrapped in (False, True):
        student, teacher = copy.deepcopy(nets)
        student, teacher = (
            Wrapped(net) if wrapped and role == which else net
            for role, net in (("student", student), ("teacher", teacher))
        )
        teacher = Teacher(teacher.eval(), loader)
        method = METHODS["kd"](Pair.of(student, teacher, next(iter(loader)).images))
        rows.append(
            distill(student, teacher, method, loader, Plan(epochs=1, precision="float64"), watch={"test": loader})[1]
        )
    pd.testing.assert_frame_equal(*rows, rtol=1e-9)
