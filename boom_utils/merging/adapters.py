"""A LoRA adapter and its base seen as one model: its tensors are W + (alpha / r) B A, made as they are read.

Nothing is written and no whole tensor is held: a chunk of W gets the rows of B A that belong to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boom_utils.errors import CheckpointError, bullet_list
from boom_utils.merging.checkpoints import Checkpoint, Values, read_values
from boom_utils.merging.weight_files import OpenFile, TensorInfo, read_header, unified_name
from boom_utils.model_folder import (
    ADAPTER,
    ADAPTER_CONFIG,
    no_weights,
    read_mapping,
    refuse_code_and_pickles,
)

_NAME = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")
# Settings of peft under which the sum is another one, or stands on another base.
_FOREIGN = (
    *("use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "layer_replication", "lora_bias"),
    *("alora_invocation_tokens", "arrow_config", "kasa_config"),
)
_FOREIGN_STARTS = ("pissa", "olora", "loftq", "corda")


@dataclass(frozen=True)
class _Update:
    """What an adapter adds to one weight: scale * b @ a, with a (r, in) and b (out, r)."""

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    scale: float


class AdapterCheckpoint(Checkpoint):
    """A base model with a LoRA adapter added to it.

    Args:
        base: Folder of the base model.
        adapter: Folder of the adapter, as peft saves it.
        label: What messages call it.

    Raises:
        CheckpointError: One of the two cannot be read, or the adapter adds something other than matrices A and B.
    """

    def __init__(self, base: Path, adapter: Path, label: str | None = None) -> None:
        self.adapter = Path(adapter)
        super().__init__(base, label or self.adapter.name)
        refuse_code_and_pickles(self.adapter)
        self._updates = _read_updates(self.adapter, self.tensors)

    @property
    def sources(self) -> tuple[Path, ...]:
        """The base's folder, then the adapter's."""
        return (self.folder, self.adapter)

    def read_into(self, name: str, start: int, values: Values) -> None:
        """As `Checkpoint.read_into`, with the adapter added in float64 and rounded once to what ``values`` holds."""
        super().read_into(name, start, values)
        update = self._updates.get(name)
        if update is None or not values.size:
            return
        width = update.a.shape[1]
        first, last = start // width, -(-(start + values.size) // width)
        added = (update.b[first:last] @ update.a).reshape(-1)[start - first * width :][: values.size]
        values[:] = values.astype(np.float64) + update.scale * added


def _read_updates(folder: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, _Update]:
    config = read_mapping(folder / ADAPTER_CONFIG)
    if not (folder / ADAPTER).is_file():
        raise no_weights(folder, ADAPTER)
    infos = read_header(folder / ADAPTER)
    problems = _foreign(config) + [f"{i.stored} is no LoRA matrix" for i in infos if not _NAME.match(i.stored)]
    sides: dict[str, dict[str, TensorInfo]] = {}
    for info in infos:
        if match := _NAME.match(info.stored):
            sides.setdefault(match["module"], {})[match["side"]] = info
    for module, pair in sides.items():
        problems += _pair_problems(module, pair, tensors)
    if problems or not sides:
        raise CheckpointError(
            "this adapter cannot be added to its base",
            where=folder,
            expected="LoRA matrices A and B for weights of the base, without DoRA, biases or modules of its own",
            found=bullet_list(problems) or "no tensor",
        )
    file = OpenFile(folder / ADAPTER)
    return {
        _weight(module): _Update(_matrix(file, pair["A"]), _matrix(file, pair["B"]), _scale(config, module, pair))
        for module, pair in sides.items()
    }


def _foreign(config: Mapping[str, Any]) -> list[str]:
    problems = [f"{key}: {config[key]!r}" for key in _FOREIGN if config.get(key)]
    plain = {"peft_type": "LORA", "bias": "none"}
    problems += [f"{key}: {config[key]!r}" for key, value in plain.items() if config.get(key, value) != value]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_FOREIGN_STARTS):
        problems.append(f"init_lora_weights: {start!r}, which changes the base")
    return problems


def _weight(module: str) -> str:
    return unified_name(f"{module}.weight")


def _pair_problems(module: str, pair: Mapping[str, TensorInfo], tensors: Mapping[str, TensorInfo]) -> list[str]:
    if set(pair) != {"A", "B"}:
        return [f"{module} has lora_{next(iter(pair))} alone"]
    if _weight(module) not in tensors:
        return [f"the base has no {_weight(module)}"]
    a, b, whole = pair["A"].shape, pair["B"].shape, tensors[_weight(module)].shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != whole:
        return [f"{module}: lora_A {list(a)} and lora_B {list(b)} do not fit a weight of {list(whole)}"]
    return []


def _scale(config: Mapping[str, Any], module: str, pair: Mapping[str, TensorInfo]) -> float:
    """Alpha / r of a module, or alpha / sqrt(r) with rsLoRA; both may be set for modules by name."""
    r, patterns = pair["A"].shape[0], config.get("alpha_pattern") or {}
    # peft's rule: the pattern is the end of the module's name, after a dot.
    named = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = float(next(named, config.get("lora_alpha", r)))
    return float(alpha / (np.sqrt(r) if config.get("use_rslora") else r))


def _matrix(file: OpenFile, info: TensorInfo) -> NDArray[np.float64]:
    """A whole small tensor in float64."""
    values: NDArray[np.float64] = read_values(file, info, 0, np.empty(info.size, np.float64))
    return values.reshape(info.shape)
