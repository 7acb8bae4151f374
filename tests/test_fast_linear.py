"""Linear layers by another library: the same numbers, only where they pay off, and the module is as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from boom_utils import fast_linear
from boom_utils.fast_linear import fast_linear as fast


@pytest.fixture
def on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        fast_linear._linear(torch.ones(2, 3), torch.ones(4, 3), None)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        pytest.skip("this torch has no linear layers of oneDNN")
    monkeypatch.setattr(fast_linear, "onednn_pays_off", lambda: True)


def layers(columns: int = 256, bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(columns, columns, bias=bias), nn.GELU(), nn.Linear(columns, columns))


@pytest.mark.usefixtures("on_amd")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 256), (1, 7, 256), (2, 3, 256)])
def test_values_are_those_of_float64_as_nearly_as_torch_s_own(shape: tuple[int, ...], bias: bool) -> None:
    module = layers(bias=bias)
    states = torch.linspace(-1, 1, 256).sin().expand(shape).contiguous()
    with torch.inference_mode():
        with fast(module):
            assert all("forward" in layer.__dict__ for layer in module if isinstance(layer, nn.Linear))
            found = module(states)
        own = module(states)
        exact = module.double()(states.double())
    assert found.shape == own.shape
    assert (found - exact).abs().max() <= 4 * (own - exact).abs().max() + 1e-7


@pytest.mark.usefixtures("on_amd")
def test_the_module_is_as_before_also_after_an_error_and_sees_new_weights() -> None:
    module, states = layers(), torch.ones(2, 256)
    with pytest.raises(RuntimeError, match="stop"), fast(module):
        raise RuntimeError("stop")
    assert not any("forward" in layer.__dict__ for layer in module)
    with torch.inference_mode():
        with fast(module):
            before = module(states)
        for parameter in module.parameters():
            parameter.mul_(2)
        with fast(module):
            after = module(states)
    assert not torch.allclose(before, after)


@pytest.mark.usefixtures("on_amd")
def test_what_is_of_another_precision_or_under_autocast_stays_as_it_is() -> None:
    with fast(module := layers().to(torch.bfloat16)):
        assert not any("forward" in layer.__dict__ for layer in module)
    module = layers()
    with torch.autocast("cpu", dtype=torch.bfloat16), fast(module):
        assert not any("forward" in layer.__dict__ for layer in module)


def test_on_other_processors_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_linear, "onednn_pays_off", lambda: False)
    module = layers()
    with fast(module):
        assert not any("forward" in layer.__dict__ for layer in module)
