"""Intervals, held against figures from tables."""

import math

import pytest

from interlace.methods.shared import intervals


def test_the_mean_of_five_has_the_interval_of_student() -> None:
    middle, interval = intervals.mean([1.0, 2.0, 3.0, 4.0, 5.0])
    assert middle == 3
    assert interval == pytest.approx((3 - 1.9632, 3 + 1.9632), abs=1e-3)  # 2.7764 * sqrt(2.5 / 5)


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (7, 2.447), (11, 2.228), (31, 2.042), (201, 1.972)])
def test_quantiles_of_student(n: int, quantile: float) -> None:
    values = [float(one % 2) for one in range(n)]
    middle, interval = intervals.mean(values)
    spread = math.sqrt(sum((one - middle) ** 2 for one in values) / (n - 1) / n)
    assert interval is not None
    assert (interval[1] - middle) / spread == pytest.approx(quantile, rel=2e-3)


def test_a_share_of_all_is_not_certain() -> None:
    value, interval = intervals.share(12, 12)
    assert value == 1
    assert interval == pytest.approx((0.757, 1.0), abs=1e-3)  # Wilson


def test_of_nothing_there_is_none() -> None:
    assert intervals.mean([1.0])[1] is None
    assert math.isnan(intervals.mean([])[0])
    assert intervals.share(0, 0)[1] is None
