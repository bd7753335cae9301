"""Predictions of what others have published: benchmarks/public_numbers.py."""

import pytest

from benchmarks import public_numbers
from benchmarks.public_numbers import PublicNumber


@pytest.fixture(scope="module")
def numbers() -> list[PublicNumber]:
    return public_numbers.public_numbers()


def test_every_public_number_is_predicted_within_a_tenth(numbers):
    assert {number.published for number in numbers} >= {1376, 1286, 21}
    wrong = {number.what: f"{number.error:+.1%}" for number in numbers if abs(number.error) > 0.1}
    assert not wrong


def test_numbers_that_calibrate_are_met_closely(numbers):
    calibrating = [number for number in numbers if number.role != "held out"]
    assert len(calibrating) == 5, "as many as there are figures of conf/hardware that they calibrate"
    assert all(abs(number.error) < 0.005 for number in calibrating)


def test_a_number_that_calibrates_nothing_tests_the_speed_of_a_third_program(numbers):
    tests = [number for number in numbers if number.role == "held out"]
    assert [number.unit for number in tests] == ["GB", "GB", "tokens/s", "GB"]


def test_gpt2x_has_rows_of_its_own():
    table = public_numbers.own_table()
    assert [row[1] for row in table.rows] == ["atlas_800t_a2", "atlas_900_a3", "atlas_800t_a2"]
    assert all(float(row[2].replace(",", "")) > 0 for row in table.rows)
