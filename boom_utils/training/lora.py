"""LoRA through peft: adapters for training, merged into the base at the end.

The result is an ordinary encoder folder: merging, scoring and loading elsewhere need to know nothing of adapters.
"""

from __future__ import annotations

from typing import Any

from boom_utils.config import LoraConfig
from boom_utils.errors import TrainingError


def add_adapters(transformer: Any, config: LoraConfig) -> Any:
    """Freeze ``transformer`` and put trainable float32 adapters on its target modules (authors' 4B script).

    Their first values come from torch's global generator: seed and restore it around the call.

    Raises:
        TrainingError: A target module is not in the model.
    """
    from peft import LoraConfig as PeftConfig
    from peft import TaskType, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, _ in transformer.named_modules()}
    missing = [target for target in config.target_modules if target not in names]
    if missing:
        raise TrainingError(
            f"LoRA targets are not in this model: {', '.join(missing)}",
            where=type(transformer).__name__,
            expected="names of linear layers, such as " + ", ".join(_linear_names(transformer)),
            fix="set training.lora.target_modules",
        )
    settings = PeftConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.target_modules),
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    return get_peft_model(transformer, settings)


def merge_adapters(transformer: Any) -> Any:
    """The plain transformer with the adapters added to its weights (scaling alpha / r)."""
    return transformer.merge_and_unload()


def _linear_names(transformer: Any) -> list[str]:
    import torch

    linear = (name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear))
    return sorted({name.rsplit(".", 1)[-1] for name in linear})
