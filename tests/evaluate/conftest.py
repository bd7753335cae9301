import pytest

from gpt2x.config import HardwareConfig, TokenizerConfig
from gpt2x.runtime.device import set_up_device


@pytest.fixture(scope="session")
def hardware() -> HardwareConfig:
    hardware = HardwareConfig(
        name="cpu",
        device_target="CPU",
        precision="fp32",
        memory_gb=None,
        peak_tflops=None,
        devices_per_node=1,
        flash_attention=False,
        source="test",
    )
    set_up_device(hardware)
    return hardware


@pytest.fixture(scope="session")
def shakespeare_dir(shared_data):
    return shared_data / "checkpoints" / "shakespeare-a"


@pytest.fixture(scope="session")
def shakespeare(shakespeare_dir, hardware):
    from gpt2x.pretrained import load_pretrained

    return load_pretrained(str(shakespeare_dir), hardware, TokenizerConfig(name="checkpoint"))


@pytest.fixture(scope="session")
def text_file(shared_data, tmp_path_factory):
    """The first 6,000 characters of tinyshakespeare."""
    path = tmp_path_factory.mktemp("text") / "play.txt"
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    path.write_text(text[:6000], encoding="utf-8")
    return path
