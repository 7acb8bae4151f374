"""Linear layers by oneDNN instead of MKL, where that is faster: float32 without gradients on AMD processors.

torch multiplies float32 matrices with MKL, which does not use all that AMD processors have: oneDNN was twice as fast at
the sizes of small encoders (torch 2.13, Zen 5). Sums are of the same precision, in another order. On other processors
nothing changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@functools.lru_cache(maxsize=1)
def onednn_pays_off() -> bool:
    """Whether this processor is an AMD one, and torch has both libraries and the operation, which is tried once."""
    information = Path("/proc/cpuinfo")
    if not information.is_file() or "AuthenticAMD" not in information.read_text(encoding="utf-8", errors="ignore"):
        return False
    states, weight = torch.linspace(-1, 1, 24).view(4, 6), torch.linspace(1, 2, 12).view(2, 6)
    try:
        return torch.backends.mkl.is_available() and torch.allclose(_linear(states, weight), states @ weight.T)  # type: ignore[no-untyped-call]
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False  # the operation is torch's own affair: another version may lack it


def _linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``states @ weight.T + bias`` by oneDNN, float32 (..., N) from (..., K) and (N, K)."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return made


def fast_linear() -> AbstractContextManager[Any]:
    """Within this, float32 linear layers on the CPU compute by oneDNN; for use without gradients.

    Nothing is changed on other processors, on another device, or where autocast chooses another precision.
    """
    return _OneDnn() if onednn_pays_off() and not torch.is_autocast_enabled("cpu") else nullcontext()


class _OneDnn(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear and not kwargs:
            weight = args[1]
            if weight.dtype == torch.float32 and weight.device.type == "cpu":
                return _linear(*args)
        return func(*args, **(kwargs or {}))
