"""What the demo calls a success."""

from __future__ import annotations

from ckptd.demo.process import Line
from ckptd.demo.verdict import TOLERANCE, Step, judge, read_steps, stretches, wrong_losses

REFERENCE = {n: 6.0 - 0.1 * n for n in range(1, 13)}


def made(first: int, last: int, world: int, seconds: float = 0.0) -> list[Step]:
    """Steps without a break, with the right losses."""
    return [Step(seconds + n, n, REFERENCE[n], world) for n in range(first, last + 1)]


def test_lines_of_training_are_found_among_others() -> None:
    lines = [
        Line(0.5, "a-agent", "starting world=2"),
        Line(1.0, "a-agent", "[default0]:step=1 loss=5.674211 world=2"),
        Line(1.5, "coordinator", '{"event": "regroup", "step": 1}'),
        Line(2.0, "a-agent", "step=2 loss=nan world=2"),
        Line(2.5, "a-agent", "step=2 loss=5.500000 world=2 "),
    ]
    first, broken, second = read_steps(lines)
    assert (first, second) == (Step(1.0, 1, 5.674211, 2), Step(2.5, 2, 5.5, 2))
    assert broken.step == 2 and broken.loss != broken.loss


def test_a_stretch_ends_where_steps_repeat_or_the_world_changes() -> None:
    parts = stretches([*made(1, 6, 2), *made(5, 8, 1), *made(9, 12, 2)])
    assert [(part.first.step, part.last.step, part.first.world) for part in parts] == [(1, 6, 2), (5, 8, 1), (9, 12, 2)]
    assert stretches([]) == []


def test_a_world_of_the_same_size_that_steps_back_is_a_new_stretch() -> None:
    assert len(stretches([*made(1, 6, 2), *made(5, 8, 2)])) == 2


def test_success() -> None:
    assert judge([*made(1, 6, 2), *made(5, 8, 1), *made(9, 12, 2)], REFERENCE, [4, 8], 12) == []


def test_losses_within_tolerance_only() -> None:
    steps = made(1, 4, 2)
    inside = Step(9.0, 5, REFERENCE[5] + 0.9 * TOLERANCE, 2)
    outside = Step(9.0, 5, REFERENCE[5] - 1.1 * TOLERANCE, 2)
    assert wrong_losses([*steps, inside], REFERENCE) == []
    [problem] = wrong_losses([*steps, outside], REFERENCE)
    assert problem.startswith("step 5 in a world of 2 had loss 5.49989")


def test_a_loss_that_is_no_number_is_wrong() -> None:
    assert wrong_losses([Step(1.0, 1, float("nan"), 2)], REFERENCE)


def test_a_step_that_the_undisturbed_run_does_not_have_is_wrong() -> None:
    assert wrong_losses([Step(1.0, 13, 1.0, 2)], REFERENCE)


def test_each_restore_must_be_of_the_newest_commit() -> None:
    steps = [*made(1, 10, 2), *made(5, 12, 1)]
    assert judge(steps, REFERENCE, [8], 12) == ["a world of 1 went on after step 4, the newest committed was 8"]
    assert judge([*made(1, 10, 2), *made(1, 12, 1)], REFERENCE, [8], 12) == [
        "a world of 1 went on after step 0, the newest committed was 8"
    ]


def test_a_skipped_step_shows() -> None:
    assert judge([*made(1, 6, 2), *made(8, 12, 2)], REFERENCE, [], 12) == ["training was interrupted 1 times, expected 0"]


def test_training_must_reach_its_end() -> None:
    assert judge(made(1, 11, 2), REFERENCE, [], 12) == ["training did not end at step 12"]
    assert "training did not end at step 12" in judge([], REFERENCE, [], 12)
