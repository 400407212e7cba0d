"""Feature-level ensemble: one non-linear transformation of the student's map for every teacher.

    L = CE + beta sum_n || n(x_T^n) - n(NTL_n(x_S)) ||_p,   n(v) = v / ||v||_2 over all elements of an image, p = 1

Several teachers at once (parallel), or `rounds` above 1 (sequential): the trained student is the only teacher of the
next round's, which starts where the first did. Position: the end of the last group, after ReLU; the teachers' maps as
they are. Connector NTL_n: three 3x3 convolutions with LeakyReLU, left behind after training. One stage.
Source: Park and Kwak 2019; no code is published. Deviations: `beta` and the mean over elements are those of factor
transfer's code, which this is with a paraphraser that changes nothing; LeakyReLU(0.1) as there.
Common errors: one transformation for all teachers; the mean of the teachers' maps as the target, whose channels do not
correspond.
"""

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.distillation.methods.factor import BETA, factor_distance, translator
from reptrans.errors import BadValue
from reptrans.matching import CrossEntropy, Match


def feed(pair: Pair, *, rounds: int = 1, p: float = 1, like: str = "authors", beta: float | None = None) -> Method:
    """The method with all teachers of the pair; `like` is the reduction, see `ft`.

    More than one round needs a student that is built like its teacher. Raises UnknownName, BadValue.
    """
    distance, beta = factor_distance(p, like), BETA[like] if beta is None else beta
    teacher, student = pair.groups[-1]
    if rounds > 1 and (len(pair.teachers) > 1 or teacher != student):
        raise BadValue(
            f"in {rounds} rounds a trained student is the next one's only teacher, but there are {len(pair.teachers)} "
            f"teachers, looked at in {teacher!r}, and a student looked at in {student!r}. Give one teacher of the "
            "student's architecture."
        )
    matches = [
        Match(teacher, student, distance, student_transform=translator(), weight=beta, resize=True, who=n)
        for n in range(len(pair.teachers))
    ]
    return Method(
        "feed", [Stage([CrossEntropy(), *matches])], entry=17, scale_free=True, rounds=rounds, paper="park2019feed",
        loses="the map's strength",
    )  # fmt: skip
