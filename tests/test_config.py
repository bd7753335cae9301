"""Every option composes without mindspore, and every mistake is answered with key, value and fix."""

import subprocess
import sys

import pytest

from gpt2x.commands.configuration import save_config
from gpt2x.config import ModelConfig
from gpt2x.config.files import load_config
from gpt2x.config.options import known_models
from gpt2x.errors import UserError
from gpt2x.model import stats
from tests.support.configs import OPTIONS, ROOT, typed

PARAMETERS = {
    "gpt2_small": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "gpt2_13b": 12_853_386_240,
    "gpt2_52b": 51_966_533_632,
}


def entry_of(group: str, option: str) -> str:
    return "predict" if (group, option) == ("experiment", "predict_small") else "train"


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{group}={option}" for group, option in OPTIONS])
def test_every_option_composes(group, option):
    extra = ["load=somewhere", "prompts=[a]"] if entry_of(group, option) == "predict" else ["load=somewhere"]
    overrides = [f"{group}={option}", *extra]
    if option == "gpt2_52b":
        overrides.append("trainer.seq_len=128")
    if option == "classification":
        overrides.append("dataset=sst2")
    if option == "instruction":
        overrides.append("dataset=alpaca")
    if group == "parallel":  # a model and a batch that every layout divides
        overrides += ["model.num_layers=16", "model.num_heads=8", "trainer.global_batch_size=512"]
    config = typed(entry_of(group, option), *overrides)
    if group not in ("experiment", "debug", "paths", "hparams_search"):
        assert getattr(config, group).name == option


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "prepare"])
def test_every_entry_point_composes(name):
    extra = {"evaluate": ["load=x"], "predict": ["load=x", "prompts=[a]"]}.get(name, [])
    assert typed(name, *extra)


@pytest.mark.launch
def test_composition_imports_nothing_heavy():
    code = (
        "import sys; from gpt2x.commands.hydra_entry import compose_config;"
        "import gpt2x.commands.entry; compose_config('train', ['model=gpt2_52b', 'trainer.seq_len=64']);"
        "heavy = {'mindspore', 'torch', 'mlflow', 'matplotlib', 'numpy', 'psutil', 'tokenizers'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_parameter_counts_from_config(name, expected):
    assert stats.num_params(known_models()[name]) == expected


def test_a_lower_bound_of_the_flops():
    small = known_models()["gpt2_small"]
    assert stats.train_flops_per_token(small, 1024) == pytest.approx(6 * 123.5e6 + 3 * 12 * 2 * 768 * 1024, rel=0.01)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.num_heads=3"], ["model.hidden_size=128", "model.num_heads=3", "1, 2, 4, 8"]),
        (["trainer.seq_len=512"], ["trainer.seq_len=512", "model.max_seq_len=256", "trainer.seq_len=256"]),
        (
            ["trainer.global_batch_size=6", "trainer.micro_batch_size=4"],
            ["trainer.global_batch_size=6", "trainer.micro_batch_size=4", "1, 2, 3, 6"],
        ),
        (
            ["parallel=dp8", "trainer.global_batch_size=4"],
            ["trainer.global_batch_size=4", "parallel.data=8", "trainer.global_batch_size=8"],
        ),
        (["parallel=tp8"], ["model.num_heads=4", "parallel.tensor=8", "1, 2, 4"]),
        (["parallel=tp2", "model.ffn_size=511"], ["model.ffn_size=511", "parallel.tensor=2"]),
        (["parallel=pp2", "parallel.pipeline=5"], ["parallel.pipeline=5", "model.num_layers=4"]),
        (
            ["parallel=pp2", "trainer.micro_batch_size=2", "trainer.global_batch_size=4"],
            ["parallel.micro_batches=4", "trainer.micro_batch_size=2"],
        ),
        (
            ["parallel=dp2_pp2", "parallel.micro_batches=3", "trainer.global_batch_size=4"],
            ["parallel.micro_batches=3", "trainer.global_batch_size=6"],
        ),
        (["parallel=zero2", "parallel.optimizer_shards=4"], ["parallel.optimizer_shards=4", "parallel.data=2"]),
        (["parallel.sequence_parallel=true"], ["parallel.sequence_parallel=true", "parallel.tensor=1"]),
        (["model.activation=relu"], ["model.activation=relu", "gelu_new, gelu, fast_gelu"]),
        (["model.dropout=1.5"], ["model.dropout=1.5"]),
        (["trainer.max_epochs=null"], ["trainer.max_steps", "trainer.max_epochs"]),
        (["trainer.max_steps=50", "schedule.warmup_steps=2000"], ["schedule.warmup_steps=2000", "50 steps"]),
        (["trainer.profile_steps=[5]"], ["trainer.profile_steps=[5]", "such as [11,13]"]),
        (["trainer.profile_steps=[8,3]"], ["trainer.profile_steps=[8,3]", "use [3,8]"]),
        (["trainer.profile_steps=[0,3]"], ["trainer.profile_steps", "at least 1"]),
        (["trainer.profile_steps=[1,3]"], ["trainer.profile_steps=[1,3]", "compiles", "begin at 2 or later"]),
        (["trainer.profile_steps=[40,60]", "trainer.max_steps=50"], ["[40,60]", "ends after step 50"]),
        (["trainer.profile_steps=[4,6]", "trainer.stop_after_steps=5"], ["[4,6]", "ends after step 5"]),
        (["schedule.warmup_steps=1", "schedule.warmup_ratio=0.1"], ["schedule.warmup_steps=1", "warmup_ratio=0.1"]),
        (["task=finetune"], ["task=finetune", "load=DIR"]),
        (["optimizer.learning_rate=0"], ["optimizer.learning_rate=0"]),
        (
            ["hardware.precision=bf16", "hardware.native_kernels=false"],
            ["hardware.precision=bf16", "hardware.native_kernels=true", "fp32"],
        ),
        (["hardware.mode=pynative", "parallel.recompute=block"], ["hardware.mode=pynative", "recompute=attention"]),
        (["generation.do_sample=false"], ["generation.do_sample=false", "temperature"]),
        (["generation.top_p=0"], ["generation.top_p=0"]),
        (["trainer.grad_clip=0"], ["trainer.grad_clip=0", "null"]),
        (["schedule.power=-1"], ["schedule.power=-1"]),
        (["schedule.num_cycles=0"], ["schedule.num_cycles=0"]),
        (["optimizer.eps=-1"], ["optimizer.eps=-1"]),
        (["trainer.loss_scale_factor=0"], ["trainer.loss_scale_factor=0"]),
        (["model.initializer_range=-1"], ["model.initializer_range=-1"]),
        (["trainer.max_steps=9", "schedule.warmup_ratio=0.99"], ["schedule.warmup_ratio=0.99", "9 steps"]),
        (["+model.colour=red"], ["model.colour"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_mistakes_in_train(overrides, parts):
    with pytest.raises(UserError) as caught:
        typed("train", *overrides)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "overrides", "parts"),
    [
        ("evaluate", [], ["load=null", "random"]),
        ("evaluate", ["load=x", "evaluation.protocols=[strode]"], ["strode", "strided"]),
        ("predict", ["prompts=[a]"], ["load=null"]),
        ("predict", ["load=x"], ["prompts", "prompts_file"]),
        ("predict", ["load=x", "prompts=[a]", "generation.min_new_tokens=99"], ["generation.min_new_tokens=99"]),
    ],
)
def test_mistakes_elsewhere(name, overrides, parts):
    with pytest.raises(UserError) as caught:
        typed(name, *overrides)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.launch
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=gpt2_smal", "error: model=gpt2_smal is not an option; did you mean gpt2_small?"),
        ("trainer.seqlen=3", "error: trainer.seqlen is not a key or a group of the configuration; did you mean"),
        ("modell=gpt2_small", "error: modell is not a key or a group of the configuration; did you mean model?"),
        (
            "trainer.max_steps=many",
            "error: trainer.max_steps=many must be a whole number, at least 1; null means max_epochs.",
        ),
        ("model.num_heads=3", "error: model.hidden_size=128 is not divisible by model.num_heads=3"),
    ],
)
def test_the_command_line_answers_in_one_line(override, message, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), override, f"paths.outputs={tmp_path}/out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.launch
def test_an_output_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    command = [sys.executable, str(ROOT / "train.py"), f"paths.outputs={tmp_path}/file/out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write")
    assert "paths.outputs=" in done.stderr


def test_padded_vocabulary():
    model = ModelConfig(name="x", num_layers=1, num_heads=1, hidden_size=8, max_seq_len=8, pad_vocab_multiple=128)
    assert stats.padded_vocab_size(model) == 50_304
    assert stats.tensor_shapes(model)["wte.weight"] == (50_257, 8)


def test_a_config_survives_its_file(tmp_path):
    config = typed("train", "model=gpt2_small", "trainer.max_steps=7")
    save_config(config, tmp_path / "config.yaml")
    assert load_config("train", tmp_path / "config.yaml") == config
