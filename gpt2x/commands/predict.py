"""`predict.py`: prompts from the command line or a file; what the model makes of them to the terminal or JSON lines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gpt2x.config import PredictConfig
from gpt2x.config.files import save_config
from gpt2x.generate.output import results, say
from gpt2x.generate.prompts import read_prompts
from gpt2x.generate.speculative import check_draft
from gpt2x.parallel.agreement import require_same
from gpt2x.parallel.mesh import Mesh
from gpt2x.pretrained import choose_adapter, load_pretrained, open_pretrained
from gpt2x.runtime import launch
from gpt2x.runtime.device import set_up_device
from gpt2x.runtime.hydra_job import output_dir
from gpt2x.tasks.registry import inference_for


def run(config: PredictConfig) -> None:
    """Answer the prompts of `config` as the model's task does: complete them, or classify them.

    Raises:
        UserError: for a mistake in prompts, output, model or decoding options; all but those that need the model's
            tokenizer before anything is loaded.
    """
    prompts = read_prompts(config)
    with results(None if launch.worker_rank() else config.output, len(prompts)) as lines:
        set_up_device(config.hardware)
        mesh = Mesh(config.parallel, config.hardware.device_target)
        require_same(mesh, "the hash of all prompts", hashlib.sha256(json.dumps(prompts).encode()).hexdigest())
        adapters = choose_adapter(config.adapters, config.adapter)
        check_draft(config)
        pretrained = load_pretrained(str(config.load), config.hardware, config.tokenizer, mesh, adapters)
        inference = inference_for(pretrained.model)
        inference.check_prompts(config, prompts, pretrained.source, adapters, pretrained.model)
        summary = inference.predict(config, prompts, pretrained, adapters, mesh, lines)
    if mesh.is_main:
        say(summary)


def prepare_launch(config: PredictConfig) -> Path:
    """Check prompts and model, once for all processes; return a run directory with `config.yaml` for them.

    Raises:
        UserError: no prompts, a file that cannot be read, no model, or a model that does not fit the layout.
    """
    prompts = read_prompts(config)
    adapters = choose_adapter(config.adapters, config.adapter)
    check_draft(config, verify=True)
    source, _, model = open_pretrained(str(config.load), config.tokenizer, config.parallel, adapters)
    inference_for(model).check_prompts(config, prompts, source, adapters, model)
    run_dir = output_dir()
    save_config(config, run_dir / "config.yaml")
    return run_dir
