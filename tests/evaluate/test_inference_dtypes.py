"""Matrices that inference stores in the compute dtype give what products of fp32 parameters gave."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest

from gpt2x import pretrained
from gpt2x.config import TokenizerConfig
from gpt2x.evaluate.scoring import Scorer


@pytest.mark.run
def test_fp16_matrices_score_as_fp32_parameters_in_fp16(shakespeare_dir, hardware, monkeypatch):
    fp16 = replace(hardware, precision="fp16")
    scores = []
    for store in (lambda net: net, pretrained.with_inference_dtypes):
        monkeypatch.setattr(pretrained, "with_inference_dtypes", store)
        net = pretrained.load_pretrained(str(shakespeare_dir), fp16, TokenizerConfig(name="checkpoint")).net
        ids = np.random.default_rng(0).integers(0, 100, (2, 17)).astype(np.int32)
        scores.append(Scorer(net, 2).score(ids))
    assert net.h[0].mlp.c_fc.weight.dtype == ms.float16
    assert net.wte.weight.dtype == net.h[0].mlp.c_fc.bias.dtype == ms.float32
    assert (scores[0] == scores[1]).all()


def test_fp32_is_stored_as_it_is(shakespeare):
    assert {parameter.dtype for parameter in shakespeare.net.get_parameters()} == {ms.float32}
