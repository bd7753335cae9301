"""Places on a machine that jobs of a sweep share, and the lines of jobs beside each other."""

import io
import os
import threading

import pytest

from gpt2x.runtime.shares import FOLDER, PREFIX, cores_of, place, prefixed, share_of_cores


@pytest.mark.parametrize(
    ("cores", "places", "expected"),
    [
        ([0, 1, 2, 3], 2, [[0, 1], [2, 3]]),
        ([0, 1, 2, 3, 4], 2, [[0, 1], [2, 3]]),
        ([3, 7], 2, [[3], [7]]),
        ([3, 7], 4, [[3], [7], [3], [7]]),
    ],
)
def test_each_place_has_an_equal_share(cores, places, expected):
    assert [cores_of(cores, number, places) for number in range(places)] == expected


def test_a_job_waits_for_a_place_and_gets_the_one_that_is_free(tmp_path):
    with place(tmp_path, 2) as first, place(tmp_path, 2) as second:
        assert {first, second} == {0, 1}
        found = []

        def wait():
            with place(tmp_path, 2) as third:
                found.append(third)

        thread = threading.Thread(target=wait)
        with place(tmp_path, 3) as other:  # a sweep with more places
            assert other == 2
            thread.start()
            thread.join(0.5)
            assert not found
    thread.join()
    assert found[0] in (0, 1)


def test_a_process_has_all_its_cores_again_after_the_job(tmp_path):
    before = os.sched_getaffinity(0)
    with share_of_cores(tmp_path, 2, "3 | "):
        assert os.environ[PREFIX] == "3 | "
        assert len(os.sched_getaffinity(0)) == max(1, len(before) // 2)
        assert os.environ["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert os.sched_getaffinity(0) == before
    assert PREFIX not in os.environ
    with share_of_cores(tmp_path / "alone", 1, "3 | "):
        assert PREFIX not in os.environ
    assert not (tmp_path / "alone" / FOLDER).exists()


def test_lines_are_copied_with_their_prefix(tmp_path):
    path = tmp_path / "out"
    with path.open("wb") as target:
        prefixed(io.BytesIO(b"step 1\nstep 2\r\nno end"), target.fileno(), "7 | ").join()
    assert path.read_bytes() == b"7 | step 1\n7 | step 2\n7 | no end\n"
