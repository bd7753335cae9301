"""`predict.py` and `gpt2x predict`: answers to prompts, on the terminal or as JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2x.config import PredictConfig
from gpt2x.generate.output import check_output, results, say
from gpt2x.generate.prompts import Prompt, read_prompts
from gpt2x.generate.speculative import check_draft
from gpt2x.lora.adapter import Adapter
from gpt2x.parallel.agreement import require_same
from gpt2x.parallel.mesh import Mesh
from gpt2x.pretrained import OpenedModel, build_pretrained, choose_adapter, open_pretrained
from gpt2x.runtime.hub import pinned
from gpt2x.runtime.role import Role
from gpt2x.tasks.registry import inference_for


@dataclass(frozen=True)
class Decision:
    """Prompts that can be answered.

    Attributes:
        config: the configuration that was typed.
        run_dir: the run directory; it holds something only if processes are launched.
        prompts: the prompts, before any template.
        opened: the model of `load=`, its weights unread.
        adapters: the adapter that is merged into the model, or none.
    """

    config: PredictConfig
    run_dir: Path
    prompts: list[Prompt]
    opened: OpenedModel
    adapters: Sequence[Adapter]

    @property
    def resolved(self) -> PredictConfig:
        """The configuration, with the commit of a repository of the hub."""
        return replace(self.config, load=pinned(str(self.config.load), self.opened.source.path))


def decide(config: PredictConfig, run_dir: Path, role: Role) -> Decision:
    """Read the prompts and open the model, so that every mistake is reported before a device is set up.

    Raises:
        UserError: for a mistake in prompts, output, model or decoding options.
    """
    prompts = read_prompts(config)
    if role.rank == 0:
        check_output(config.output)
    adapters = choose_adapter(config.adapters, config.adapter)
    check_draft(config, verify=role.decides)
    opened = open_pretrained(str(config.load), config.tokenizer, config.parallel, adapters, verify=role.decides)
    inference_for(opened.model).check_prompts(config, prompts, opened.source, adapters, opened.model)
    return Decision(config, run_dir, prompts, opened, adapters)


def open_run_dir(decision: Decision) -> None:
    """Write nothing: the answers go to the terminal or to `output=`."""


def run(decision: Decision, mesh: Mesh) -> None:
    """Answer the prompts as the model's task does, as one process of the layout.

    Raises:
        UserError: a line of the output cannot be written.
    """
    config, prompts = decision.config, decision.prompts
    with results(config.output if mesh.is_main else None, len(prompts)) as lines:
        require_same(mesh, "the hash of all prompts", hashlib.sha256(json.dumps(prompts).encode()).hexdigest())
        pretrained = build_pretrained(decision.opened, config.hardware, mesh, decision.adapters)
        summary = inference_for(pretrained.model).predict(config, prompts, pretrained, decision.adapters, mesh, lines)
    if mesh.is_main:
        say(summary)
