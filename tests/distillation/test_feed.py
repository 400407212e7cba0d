import copy
from dataclasses import replace

import pytest
import torch

from reptrans.distillation.distill import distill
from reptrans.distillation.losses import resolve
from reptrans.distillation.method import Pair
from reptrans.distillation.methods.translated import factor_distance, feed
from reptrans.errors import BadValue, UnknownName
from reptrans.matching import Teacher, tapped
from reptrans.models import build
from reptrans.training import Plan

PLAN = Plan(epochs=3, lr=0.02, precision="float64")


def network(seed: int):
    return build("cnn3_w4", num_classes=10, in_channels=1, image_size=(8, 8), seed=seed).double().eval()


def taught(pair, nets) -> Pair:
    loader = pair.teachers[0].loader
    return Pair.of(pair.student, [Teacher(net, loader) for net in nets], next(iter(loader.plain())).images)


def objective(pair, **options):
    """(objective of the only stage, its batch); the transformations are all equal."""
    batch = next(iter(pair.teachers[0].loader.plain()))
    stage = feed(pair, **options).stages[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = resolve(stage, pair.student, pair.teachers, batch).eval()
    for other in made.of_student[1:]:
        other.load_state_dict(made.of_student[0].state_dict())
    return made, batch


def terms(pair, **options):
    made, batch = objective(pair, **options)
    return [value.item() for name, value in made(batch)[0].items() if name != "cross_entropy"]


@pytest.mark.parametrize("like", ["paper", "authors"])
def test_one_teacher_is_factor_transfer_with_a_paraphraser_that_changes_nothing(pair, like):
    made, batch = objective(pair, like=like, beta=3.0)
    teacher, student = (
        tapped(net.eval(), batch.images, None, ["relu3"])["relu3"] for net in (pair.teacher, pair.student)
    )
    expected = 3 * factor_distance(1, like)(teacher, made.of_student[0](student))
    (term,) = terms(pair, like=like, beta=3.0)
    assert term == pytest.approx(expected.item(), rel=1e-12)


def test_identical_teachers_and_transformations_are_so_many_times_one(pair):
    single = taught(pair, [network(1)])
    triple = taught(pair, [network(1) for _ in range(3)])
    assert terms(triple) == pytest.approx(terms(single) * 3, rel=1e-12)


def test_the_order_of_teachers_changes_nothing(pair):
    nets = [network(seed) for seed in (1, 2, 3)]
    there, back = terms(taught(pair, nets)), terms(taught(pair, nets[::-1]))
    assert there == pytest.approx(back[::-1], rel=1e-12)
    assert len(set(there)) == 3


def test_each_teacher_has_a_transformation_of_its_own(pair):
    given = taught(pair, [network(1), network(2)])
    (stage,) = feed(given).stages
    assert [match.who for match in stage.matches] == [0, 1]
    first, second = (match.student_transform for match in stage.matches)
    assert first is not second and [match.weight for match in stage.matches] == [500, 500]


def test_parallel_training_leaves_the_student_its_own_parameters(pair):
    given = taught(pair, [network(1), network(2)])
    names = list(pair.student.state_dict())
    before = [copy.deepcopy(teacher.net.state_dict()) for teacher in given.teachers]
    student, rows = distill(given.student, given.teachers, feed(given), given.teachers[0].loader, PLAN)
    assert list(student.state_dict()) == names
    for column in rows.filter(like="unit vectors"):
        assert rows[column].iloc[-1] < rows[column].iloc[0]
    for teacher, state in zip(given.teachers, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in teacher.net.state_dict().items())


def test_sequentially_the_student_of_a_round_teaches_the_next_to_the_bit(twins):
    teachers = []

    def prepare(student, teacher):
        teachers.append(teacher)
        return student

    fresh = copy.deepcopy(twins.student)
    method = replace(feed(twins, rounds=3), prepare=prepare)
    _, rows = distill(twins.student, twins.teachers, method, twins.teachers[0].loader, PLAN)
    first, _ = distill(fresh, twins.teachers, feed(twins), twins.teachers[0].loader, PLAN)
    assert rows["round"].nunique() == 3 and len({id(net) for net in teachers}) == 3
    for a, b in zip(first.state_dict().values(), teachers[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_rounds_need_one_teacher_like_the_student(pair):
    with pytest.raises(BadValue, match="in 2 rounds .* there are 2 teachers.*Give one teacher"):
        feed(taught(pair, [network(1), network(2)]), rounds=2)
    other = replace(pair, of_teacher=replace(pair.of_teacher, groups=("layer1",)))
    with pytest.raises(BadValue, match="looked at in 'layer1', and a student looked at in 'relu3'"):
        feed(other, rounds=2)
    with pytest.raises(UnknownName, match="paper, authors"):
        feed(pair, like="sum")
