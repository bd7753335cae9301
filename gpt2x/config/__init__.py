"""The typed configuration: keys, rules across keys, and the options of `conf/` (imports no mindspore).

- `schema`, `schema_devices`, `schema_sweeps`: every key as a field of a dataclass.
- `metadata`: what is recorded about a key.
- `keys`: dotted keys, and checks of single values. `rules`, `rules_inspection`: what must fit together.
- `options`: the YAML files of `conf/`. `files`: configurations to and from YAML.
- `help`, `reference`: `--help`, and the tables of docs/configuration.md.
- `messages`: Hydra's errors for the user. `expected`: what a value must be. `similar`: the key that a name means.
- `layout`: coordinates, micro batches and stages of a layout.
- `patterns`: the modules that `lora.targets` names and the tensors that `trainer.frozen` names.
"""

from gpt2x.config.schema import (
    CommonConfig,
    DatasetConfig,
    EvaluateConfig,
    EvaluationConfig,
    GenerationConfig,
    HardwareConfig,
    LaunchConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PathsConfig,
    PredictConfig,
    PrepareConfig,
    ScheduleConfig,
    SweepConfig,
    TaskConfig,
    TokenizerConfig,
    TrackedConfig,
    TrackerConfig,
    TrainConfig,
    TrainerConfig,
)

__all__ = [
    "CommonConfig",
    "DatasetConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "GenerationConfig",
    "HardwareConfig",
    "LaunchConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PathsConfig",
    "PredictConfig",
    "PrepareConfig",
    "ScheduleConfig",
    "SweepConfig",
    "TaskConfig",
    "TokenizerConfig",
    "TrackedConfig",
    "TrackerConfig",
    "TrainConfig",
    "TrainerConfig",
]
