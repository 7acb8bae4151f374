"""Linear layers by oneDNN instead of MKL, where that is faster: float32 without gradients on AMD processors.

torch multiplies float32 matrices with MKL, which does not use all that AMD processors have: oneDNN was twice as fast at
the sizes of small encoders (torch 2.13, Zen 5). Sums are of the same precision, in another order. On other processors
nothing changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


@functools.lru_cache(maxsize=1)
def onednn_pays_off() -> bool:
    """Whether this processor is an AMD one, and torch has both libraries and the operation, which is tried once."""
    information = Path("/proc/cpuinfo")
    if not information.is_file() or "AuthenticAMD" not in information.read_text(encoding="utf-8", errors="ignore"):
        return False
    states, weight = torch.linspace(-1, 1, 24).view(4, 6), torch.linspace(1, 2, 12).view(2, 6)
    try:
        return torch.backends.mkl.is_available() and torch.allclose(_linear(states, weight, None), states @ weight.T)  # type: ignore[no-untyped-call]
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False  # the operation is torch's own affair: another version may lack it


def _linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``states @ weight.T + bias`` by oneDNN, float32 (..., N) from (..., K) and (N, K)."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return made


@contextmanager
def fast_linear(module: torch.nn.Module) -> Iterator[None]:
    """Let the float32 linear layers of a module compute by oneDNN; for use without gradients.

    Nothing is changed on other processors, on another device, or where autocast chooses another precision.
    """
    changed = _changeable(module) if onednn_pays_off() and not torch.is_autocast_enabled("cpu") else []
    try:
        for layer in changed:
            # An attribute of the instance hides the method of the class until it is taken away again.
            layer.__dict__["forward"] = _forward(layer)
        yield
    finally:
        for layer in changed:
            layer.__dict__.pop("forward", None)


def _changeable(module: torch.nn.Module) -> list[torch.nn.Linear]:
    return [
        layer
        for layer in module.modules()
        if type(layer) is torch.nn.Linear
        and "forward" not in layer.__dict__
        and layer.weight.dtype == torch.float32
        and layer.weight.device.type == "cpu"
    ]


def _forward(layer: torch.nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda states: _linear(states, layer.weight, layer.bias)
