"""Means of the weights along one training, at no further step: of all steps exponentially, or of the last checkpoints.

The steps themselves are those of a training without a mean. What is averaged are the trainable weights (of LoRA the
adapters), in float32, each once however many modules share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from boom_utils.hyperparameters import WeightAverage
from boom_utils.training.probe import probed_steps


class MeanWeights:
    """The mean of the weights so far, beside those that are trained.

    An exponential mean starts at the weights before the first step and is not corrected for it, as in torch's
    ``AveragedModel`` and other libraries (a correction as in Adam is for means that start at zero): the start keeps
    a share of ``ema ** steps``.

    Args:
        parameters: The trainable ones, by name.
        average: Which mean; None averages nothing.
        total: Steps of the training.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], average: WeightAverage | None, total: int) -> None:
        self._parameters = parameters if average is not None else {}
        self.weights = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._steps = averaged_steps(average, total)
        decay = average.ema if average is not None else None
        self._update = get_ema_multi_avg_fn(decay) if decay else get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]

    def add(self, done: int) -> None:
        """Let the weights after ``done`` steps count, if they are to."""
        if done in self._steps:
            self._update([*self.weights.values()], [*self._parameters.values()], self._steps.index(done))

    @torch.no_grad()
    def use(self) -> None:
        """Put the mean in the place of the weights."""
        for name, mean in self.weights.items():
            self._parameters[name].copy_(mean)


def averaged_steps(average: WeightAverage | None, total: int) -> Sequence[int]:
    """Numbers of steps done after which the weights count, ascending.

    The last ``last`` checkpoints stand at the ends of so many equal stretches of the second half of the steps. A half
    of fewer steps than that has a checkpoint after each.

    >>> averaged_steps(WeightAverage(last=5), 100)
    (60, 70, 80, 90, 100)
    """
    if average is None:
        return ()
    if average.last is None:
        return range(1, total + 1)
    half = total - total // 2
    return tuple(total - half + done for done in probed_steps(average.last + 1, half)[1:])
