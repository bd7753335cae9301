"""`gpt2x doctor`: it passes here, and notices what is wrong."""

import json

import pytest

from gpt2x.commands import doctor
from gpt2x.doctor import operators, report, versions
from gpt2x.errors import UserError
from tests.support.models import CPU
from tests.support.processes import start


@pytest.mark.launch
def test_every_check_passes_here(tmp_path):
    done = start("-m", "gpt2x", "doctor", "--output", str(tmp_path / "report"))
    found = json.loads((tmp_path / "report" / "doctor.json").read_text(encoding="utf-8"))
    assert {f["status"] for f in found["findings"]} == {"ok", "skipped"}
    assert {f["area"] for f in found["findings"]} == {"versions", "device", "operators", "collectives", "training"}
    assert found["verdict"] in done.stdout + done.stderr
    assert "What to try next" not in (tmp_path / "report" / "doctor.md").read_text(encoding="utf-8")


def case(name):
    return next(each for each in operators.cases(CPU) if each.name == name)


@pytest.mark.run
@pytest.mark.parametrize("name", ["dropout", "attention with dropout"])
def test_a_mask_of_other_numbers_is_noticed(hardware, monkeypatch, name):
    """As if int32 did not wrap around: the check writes the hash once more, in 32 bits."""
    assert operators.compare(case(name), CPU).startswith("differs by ")
    monkeypatch.setattr(operators, "MIX_1", 3)
    with pytest.raises(report.CheckFailedError, match="differs by"):
        operators.compare(case(name), CPU)


def test_a_failed_check_has_advice_and_does_not_stop_the_others():
    def fail():
        raise ValueError("first line\nsecond line")

    checks = [
        report.Check("a", "one", fail, "try this"),
        report.Check("a", "two", fail, "try this"),
        report.Check("b", "three", lambda: "fine", "never"),
    ]
    found = report.Report({"python": "3.11"}, [report.examine(check) for check in checks])
    assert [f.status for f in found.findings] == ["failed", "failed", "ok"]
    assert found.findings[0].detail == "ValueError: first line"
    assert found.advice() == {"try this": ["one", "two"]}
    assert "- one, two: try this" in found.markdown()
    assert found.verdict() == "1 checks passed, 2 failed, 0 do not apply here."


def test_versions_are_read_from_files(tmp_path):
    path = tmp_path / "version.info"
    with pytest.raises(report.NotHereError, match="missing"):
        versions.version_in(path)
    path.write_text("Version=25.2.0\n", encoding="utf-8")
    assert versions.version_in(path) == "25.2.0"


def test_a_device_that_is_not_there_ends_the_checks(tmp_path):
    found = report.Report({})
    hardware = doctor.read_option("hardware", "atlas_800t_a2", doctor.HardwareConfig)
    for check in doctor.checks(hardware, 0, tmp_path, found):
        found.findings.append(report.examine(check))
    assert found.findings[-1].area == "device"
    assert "no Ascend device" in found.findings[-1].detail


def test_an_odd_number_of_processes_is_rejected():
    with pytest.raises(UserError, match="--processes=3 must be even"):
        doctor.main(["--processes", "3"])
