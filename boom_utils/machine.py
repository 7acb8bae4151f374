"""What this machine can do: the precisions it has instructions for, how fast it trains.

torch is imported where it is needed: a profile that states its precision is read without it.
"""

from __future__ import annotations

import functools
import logging
import time
import timeit
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_INSTRUCTIONS = {
    "bf16": ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16"),
    "fp16": ("amx_fp16", "avx512_fp16", "fp16_arith"),
}
"""Under the names of `torch.cpu.get_capabilities`, x86 and ARM."""


def dtype_of(precision: str) -> torch.dtype:
    """Type of tensors of a precision."""
    import torch

    found: torch.dtype = getattr(torch, _TORCH_NAMES[precision])
    return found


def autocast(precision: str, device: str, *, cache: bool = True) -> Any:
    """Context of forward passes: nothing in fp32, else autocast; weights stay float32.

    Args:
        precision: Of matrix products and attention.
        device: Kind of device.
        cache: Keeps the copies of weights for all passes of the context.
    """
    import torch

    return nullcontext() if precision == "fp32" else torch.autocast(device, dtype_of(precision), cache_enabled=cache)


@functools.lru_cache
def native_by(precision: str) -> str | None:
    """What computes in bf16 or fp16 here, a CUDA device or instructions of the processor; None: it is emulated."""
    import torch

    if torch.cuda.is_available():
        able = precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cuda.get_device_name() if able else None
    known = torch.cpu.get_capabilities()
    return ", ".join(name for name in _INSTRUCTIONS[precision] if known.get(name)) or None


@functools.lru_cache
def on_this_machine(precision: Precision) -> Precision:
    """``auto`` as bf16 where the machine has it, else as fp32, with one log line that says why; others as they are."""
    if precision != "auto":
        return precision
    by = native_by("bf16")
    if by is None:
        log.info("precision auto: fp32, because this machine has no bf16 instructions")
        return "fp32"
    log.info("precision auto: bf16, because this machine has it (%s)", by)
    return "bf16"


def warn_of_emulation(precisions: Iterable[str]) -> None:
    """One warning for every precision that this machine only emulates."""
    for precision in sorted({*precisions} - {"fp32"}):
        if native_by(precision) is None:
            cost = "only emulated on this machine, many times slower than fp32; auto would take fp32"
            log.warning("precision %s is %s", precision, cost)


def machine_name() -> str:
    """What a measured speed belongs to: device or processor, threads, and torch's version."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    processor = torch.cpu.get_capabilities().get("cpu_name", "processor")
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"


_STEP_FLOPS = 1e10
_REPEATS = 6


def measure(shape: Mapping[str, Any], precision: str, length: int) -> dict[str, float]:
    """The size of a model by its shape, and how fast this machine trains it and encodes with it, by a part of it.

    It takes some seconds. On processors their own time counts: other work on the machine makes nothing slower.

    Args:
        shape: A configuration of `transformers` as a mapping.
        precision: Of the passes.
        length: Tokens of a text.

    Returns:
        ``parameters``, ``matrices`` (those of them that every token meets: all but embeddings and a head),
        ``flops_per_second`` in the matrices' products of training, 6 a weight and token, and
        ``encoding_flops_per_second``, 2 a weight and token.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        whole = AutoModel.from_config(AutoConfig.for_model(**shape))
    # All layers of an encoder take the same time; token embeddings take next to none.
    part = {"num_hidden_layers": min(2, whole.config.num_hidden_layers), "vocab_size": 1000, "pad_token_id": 0}
    config = AutoConfig.for_model(**{**shape, "layer_types": None, **part})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[]):
        model = AutoModel.from_config(config, dtype=torch.float32).to(device).train()
        weights = _matrices(model)
        rows = int(min(64, max(1, _STEP_FLOPS // (6 * weights * length))))
        tokens_NL = torch.ones(rows, length, dtype=torch.int64, device=device)

        def train() -> None:
            with autocast(precision, device):
                states_NLD = model(input_ids=tokens_NL).last_hidden_state
            states_NLD.float().mean().backward()

        trained = 6 * weights * tokens_NL.numel() / _seconds(train, device)
        model.eval().to(dtype_of(precision))
        with torch.inference_mode():
            encoded = 2 * weights * tokens_NL.numel() / _seconds(lambda: model(input_ids=tokens_NL), device)
    sizes = {"parameters": whole.num_parameters(), "matrices": _matrices(whole)}
    return {**sizes, "flops_per_second": float(trained), "encoding_flops_per_second": float(encoded)}


def _seconds(step: Callable[[], object], device: str) -> float:
    """What a step takes at best, the first one of which warms up; on processors, time that they spend on it."""
    import torch

    if device == "cpu":
        return min(timeit.repeat(step, timer=time.process_time, number=1, repeat=_REPEATS)) / torch.get_num_threads()

    def finished() -> None:
        step()
        torch.cuda.synchronize()

    return min(timeit.repeat(finished, number=1, repeat=_REPEATS))


def _matrices(model: torch.nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "pooler" not in name)
