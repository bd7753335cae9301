"""The set-up of a device: the calls that Ascend gets, by MindSpore's signatures and in its documented order."""

import inspect
import re
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import pytest

from gpt2x.commands import entry
from gpt2x.commands.start_checks import require_visible
from gpt2x.config import ParallelConfig, TrainConfig
from gpt2x.errors import UserError
from gpt2x.runtime import device
from gpt2x.runtime.role import Role, read_role
from tests.ascend.frontend import hardware
from tests.support.decide import refusal

FUNCTIONS = {
    "set_device": ms,
    "set_context": ms,
    "set_deterministic": ms,
    "set_memory": ms.runtime,
    "set_cpu_affinity": ms.runtime,
}


@pytest.fixture
def calls(monkeypatch):
    """Calls of MindSpore's functions, which do nothing here but check their arguments; name and arguments by name."""
    made = []

    def recorder(name, function):
        signature = inspect.signature(function)

        def record(*arguments, **named):
            made.append((name, signature.bind(*arguments, **named).arguments))

        return record

    for name, module in FUNCTIONS.items():
        monkeypatch.setattr(module, name, recorder(name, getattr(module, name)))
    monkeypatch.setattr("gpt2x.parallel.mesh.Mesh", lambda *_, **__: made.append(("init", {})))
    monkeypatch.setattr(device, "CPUSET", Path(__file__))
    clear()
    yield made
    clear()


def clear():
    device.set_up_ascend.cache_clear()
    device.bind_cores.cache_clear()


def open_mesh(role=Role(), **changes):
    entry.open_mesh(TrainConfig(hardware=hardware(**changes)), role)


def test_ascend_is_set_up_before_processes_meet(calls):
    open_mesh(Role(rank=11, device_id=3), deterministic=True, bind_cores=True, jit_level="O1", pool_gb=57.5)
    graph_mode, *rest = calls
    assert graph_mode == ("set_context", {"kwargs": {"mode": ms.GRAPH_MODE}})
    assert rest == [
        ("set_device", {"device_target": "Ascend", "device_id": 3}),
        ("set_memory", {"max_size": "57.5GB"}),
        ("set_context", {"kwargs": {"jit_config": {"jit_level": "O1"}}}),
        ("set_deterministic", {"deterministic": True}),
        ("init", {}),
        ("set_cpu_affinity", {"enable_affinity": True}),
    ]


def test_ascend_by_default(calls):
    """MindSpore's pool has what the plan counts on; nothing that slows down or is experimental is switched on."""
    open_mesh()
    names = [name for name, _ in calls]
    assert names == ["set_context", "set_device", "set_memory", "set_context", "init"]
    assert calls[2][1] == {"max_size": "59GB"}
    assert calls[3][1] == {"kwargs": {"jit_config": {"jit_level": "O0"}}}
    assert hardware().usable_gb == 59


def test_a_second_set_up_repeats_only_what_mindspore_allows(calls):
    open_mesh()
    device.set_up_device(replace(hardware(), precision="fp32"))
    assert [name for name, _ in calls].count("set_memory") == 1


def test_sizes_have_the_form_that_mindspore_documents():
    from mindspore.runtime import memory

    for pool_gb in (59.0, 57.5, 28 + 1 / 3):
        assert re.fullmatch(memory._MEMORY_PATTERN, f"{pool_gb:g}GB")


def test_cores_are_not_bound_without_the_file_that_mindspore_reads(calls, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(device, "CPUSET", tmp_path / "cpuset.cpus")
    open_mesh(bind_cores=True)
    assert "set_cpu_affinity" not in dict(calls)
    assert "hardware.bind_cores=true has no effect here" in " ".join(capsys.readouterr().out.split())


def test_the_cpu_gets_none_of_it(calls):
    entry.open_mesh(TrainConfig(hardware=replace(hardware(), device_target="CPU", name="cpu")), Role(device_id=1))
    assert calls == [
        ("set_context", {"kwargs": {"mode": ms.GRAPH_MODE}}),
        ("set_device", {"device_target": "CPU", "device_id": 1}),
        ("init", {}),
    ]


def test_the_number_of_the_device_is_that_on_its_node():
    """msrun and the launcher set DEVICE_ID for each process; MindSpore negotiates if nobody does."""
    second_node = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "16", "MS_NODE_ID": "11", "RANK_ID": "11"}
    assert read_role(second_node | {"DEVICE_ID": "3"}) == Role(rank=11, device_id=3, msrun_workers=16)
    assert read_role(second_node).device_id is None
    assert read_role({"DEVICE_ID": "5"}) == Role(), "as some clusters set it for all processes"


def test_a_layout_with_more_processes_than_visible_devices(monkeypatch):
    config = TrainConfig(hardware=hardware(), parallel=ParallelConfig(name="dp4", data=4))
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    require_visible(config)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "2,3,5,7")
    require_visible(config)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "2,3, 5,7")  # CANN stops at the space
    with pytest.raises(UserError, match=r"^parallel=dp4 starts 4 .*ASCEND_RT_VISIBLE_DEVICES=2,3, 5,7 shows 2"):
        require_visible(config)


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["hardware.jit_level=O1"], "hardware.jit_level=O1 is for Ascend: MindSpore fuses no operators on the CPU; use "
                                    "hardware.jit_level=O0."),
        (["hardware.bind_cores=true"], "hardware.bind_cores=true is for Ascend: processes on the CPU share its cores "
                                       "without it; use hardware.bind_cores=false."),
        (["hardware.pool_gb=3"], "hardware.pool_gb=3.0 is for Ascend: "),
        (["hardware=atlas_800t_a2", "hardware.pool_gb=65"], "hardware.pool_gb=65.0 exceeds hardware.memory_gb=64.0; "),
        (["hardware=atlas_800t_a2", "hardware.memory_gb=null"], "hardware.memory_gb=null: only the CPU's memory can"),
    ],
)  # fmt: skip
def test_what_a_device_cannot_do(overrides, start):
    assert refusal("train", *overrides).startswith(start)
