"""Evaluations, rows and checkpoints come as often as asked for, and where a resumed run finds them again."""

import pytest

from experiments.run.schedule import EvenMarks, Marks


def passed(marks: EvenMarks | Marks, total: int, stride: int) -> list[int]:
    ends = range(stride, total + stride, stride)
    return [now for now in ends if marks.passed(now - stride, now)]


@pytest.mark.parametrize("stride", [1, 7, 50])
def test_even_marks_are_evenly_apart(stride: int) -> None:
    at = passed(EvenMarks(1000, 20), 1000, stride)
    assert len(at) == 20
    assert all(0 <= x - 50 * (k + 1) < stride for k, x in enumerate(at))


def test_a_mark_is_passed_once_whatever_the_steps() -> None:
    marks = EvenMarks(1000, 3)
    assert marks.passed(333, 334)  # 333.3: means over seeds need not be whole
    assert marks.passed(333.3, 333.4)
    assert not marks.passed(334, 666)
    assert marks.passed(0, 1000)


def test_half_of_the_marks_are_even_on_a_logarithmic_axis() -> None:
    at = passed(Marks(1 << 16, 1, 32), 1 << 16, 1)
    assert sum(x <= 256 for x in at) >= 8
    assert sum(x > 1 << 15 for x in at) >= 8
    assert at[-1] == 1 << 16
