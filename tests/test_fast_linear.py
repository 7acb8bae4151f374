"""Linear layers by another library: the same numbers, only where they pay off, and the module is as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from boom_utils import fast_linear


@pytest.fixture
def on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        fast_linear._linear(torch.ones(2, 3), torch.ones(4, 3))
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        pytest.skip("this torch has no linear layers of oneDNN")
    monkeypatch.setattr(fast_linear, "onednn_pays_off", lambda: True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """What was computed by oneDNN."""
    found, own = list[torch.dtype](), fast_linear._linear
    monkeypatch.setattr(fast_linear, "_linear", lambda *args: (found.append(args[0].dtype), own(*args))[1])
    return found


def layers(columns: int = 256, bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(columns, columns, bias=bias), nn.GELU(), nn.Linear(columns, columns))


@pytest.mark.usefixtures("on_amd")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 256), (1, 7, 256), (2, 3, 256)])
def test_values_are_those_of_float64_as_nearly_as_torch_s_own(
    shape: tuple[int, ...], bias: bool, calls: list[torch.dtype]
) -> None:
    module = layers(bias=bias)
    states = torch.linspace(-1, 1, 256).sin().expand(shape).contiguous()
    with torch.inference_mode():
        with fast_linear.fast_linear():
            found = module(states)
        assert len(calls) == 2
        own = module(states)
        exact = module.double()(states.double())
    assert len(calls) == 2 and found.shape == own.shape
    assert (found - exact).abs().max() <= 4 * (own - exact).abs().max() + 1e-7


@pytest.mark.usefixtures("on_amd")
def test_what_is_of_another_precision_or_under_autocast_stays_as_it_is(calls: list[torch.dtype]) -> None:
    with fast_linear.fast_linear():
        layers().to(torch.bfloat16)(torch.ones(2, 256, dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16), fast_linear.fast_linear():
        layers()(torch.ones(2, 256))
    assert not calls


def test_on_other_processors_nothing_changes(monkeypatch: pytest.MonkeyPatch, calls: list[torch.dtype]) -> None:
    monkeypatch.setattr(fast_linear, "onednn_pays_off", lambda: False)
    with fast_linear.fast_linear():
        layers()(torch.ones(2, 256))
    assert not calls
