"""Random inputs, and gradients of a cell with respect to them."""

import numpy as np
from mindspore import nn, ops


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Gradients(nn.Cell):
    """Gradients of sum(cell(inputs) * direction) with respect to all inputs."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.gradient = cell, ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, direction, *inputs):
        return self.gradient(self.cell)(*inputs, direction)
