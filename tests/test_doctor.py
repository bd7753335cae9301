"""`gpt2x doctor`: it passes here, and notices what is wrong."""

import json
import platform

import pytest

from gpt2x.commands import doctor
from gpt2x.doctor import decoding, matrix, operators, report, versions
from gpt2x.errors import UserError
from gpt2x.generate.decoder import Decoder
from gpt2x.runtime import machine
from tests.support.configs import ROOT
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


# As Huawei's installers write them
FILES = {
    "usr/local/Ascend/driver/version.info": "Version=25.5.1\nascendhal_version=7.35.23\npackage_version=25.5.1\n",
    "usr/local/Ascend/firmware/version.info": "Version=7.8.0.5.216\nfirmware_version=1.0\npackage_version=25.5.1\n",
    f"usr/local/Ascend/cann/{platform.machine()}-linux/ascend_toolkit_install.info":
        "package_name=Ascend-cann-toolkit\nversion=9.1.0\ninnerversion=V100R001C23\n",
}  # fmt: skip
CARDS = """\tNPU ID    Chip ID    Chip Logic ID    Chip Name
\t0         0          0                Ascend 910B3
\t0         1          -                Mcu
\t1         0          1                Ascend 910B3
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A machine with CANN, driver and firmware; returns the folder that stands for `/`."""
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    for name, content in FILES.items():
        write(tmp_path / name, content)
    return tmp_path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def found(root):
    """Status and detail of the checks of Huawei's software."""
    checks = [check for check in versions.version_checks(False, root) if check.name in ("CANN", "driver", "firmware")]
    return {finding.name: (finding.status, finding.detail) for finding in map(report.examine, checks)}


def test_versions_are_read_from_files(installed, monkeypatch):
    expected = {"cann": "9.1.0", "driver": "25.5.1", "firmware": "25.5.1"}
    assert machine.ascend_versions(installed) == expected
    assert expected.items() <= versions.machine_facts(installed).items()
    write(installed / "home/compiler/version.info", "Version=8.5.0.2.220\nversion_dir=8.5.0\n")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(installed / "home"))
    assert machine.ascend_versions(installed)["cann"] == "8.5.0"
    assert machine.ascend_versions(installed / "nowhere") == {"cann": "8.5.0"}


def test_versions_that_fit_together_pass(installed):
    assert found(installed) == {name: ("ok", version) for name, version in
                                {"CANN": "9.1.0", "driver": "25.5.1", "firmware": "25.5.1"}.items()}  # fmt: skip


def test_versions_that_do_not_fit_are_named(installed):
    driver, _, toolkit = [installed / name for name in FILES]
    write(driver, "package_version=25.0.rc1.1\n")
    assert found(installed)["driver"] == ("failed", "25.0.rc1.1; CANN 9.1.0 works with 25.2 25.3 25.5 25.7 26.0 26.1")
    write(toolkit, "version=8.1.RC1\n")
    assert found(installed)["CANN"] == (
        "failed", "8.1.RC1; MindSpore 2.10.0 accepts 9.1 9.0 8.5.2 8.5 8.3 8.2")  # fmt: skip


def test_what_is_not_installed_is_named_by_its_file(tmp_path, monkeypatch):
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    findings = found(tmp_path)
    assert findings["driver"] == ("failed", "no version in /usr/local/Ascend/driver/version.info")
    assert findings["CANN"][0] == "failed"
    assert findings["firmware"][0] == "skipped"


def test_npus_are_counted_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.npus() is None
    write(tmp_path / "npu-smi", f"#!/bin/sh\necho '{CARDS}'\n")
    (tmp_path / "npu-smi").chmod(0o755)
    assert machine.npus() == "2 x 910B3"


def test_libraries_for_a_different_processor_are_noticed(monkeypatch):
    assert versions.architecture() == platform.machine()
    monkeypatch.setattr(versions.platform, "machine", lambda: "riscv64")
    with pytest.raises(report.CheckFailedError, match=r"this is riscv64, and MindSpore has _c_expression"):
        versions.architecture()


def test_the_list_of_versions_is_that_of_mindspore_and_of_the_page():
    from mindspore.run_check._check_version import AscendEnvChecker

    minors = {".".join(entry.cann.split(".")[:2]) for entry in matrix.TOOLKITS}
    assert minors == set(AscendEnvChecker("").version)
    assert matrix.toolkit(matrix.RECOMMENDED)
    assert matrix.toolkit("8.5.2").drivers != matrix.toolkit("8.5.0").drivers
    assert matrix.table() in (ROOT / versions.SETUP).read_text(encoding="utf-8")
    image = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    assert f"ARG CANN={matrix.RECOMMENDED}\n" in image
    assert f"py{matrix.TESTED['python']}\n" in image
    assert f"mindspore=={matrix.TESTED['mindspore']}" in image


def test_a_run_far_from_its_plan_is_noticed(tmp_path):
    assert "plan: 100" in doctor.Measured(60, 100, 11, 10).judge()
    with pytest.raises(report.CheckFailedError, match="less than 50% of the planned speed"):
        doctor.Measured(40, 100, 10, 10).judge()
    with pytest.raises(report.CheckFailedError, match="more than 115% of the planned memory"):
        doctor.Measured(100, 100, 12, 10).judge()
    atlas = doctor.read_option("hardware", "atlas_800t_a2", doctor.HardwareConfig)
    measured = doctor.measure(doctor.planned_config(atlas, tmp_path), [{"perf/tokens_per_s": 1.0}] * 2)
    assert measured.planned_tokens_per_s > 10_000
    assert measured.planned_memory_gb > 5


@pytest.mark.run
def test_a_decoder_that_forgets_is_noticed(hardware, monkeypatch):
    monkeypatch.setattr(decoding, "Decoder", Forgetful)
    with pytest.raises(report.CheckFailedError, match="logits of 6 steps differ by"):
        decoding.compare_decoding(CPU)


class Forgetful(Decoder):
    """A decoder that sees nothing but the newest token."""

    def construct(self, ids, positions, last):
        return super().construct(ids, positions * 0, last)


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
