"""Which instruction stands before the queries of a task of mteb: the released models', else the task's own.

The instructions of the released models are data of mteb; ``released_prompts.yaml`` holds them as they were at a named
version, so that another version of mteb changes no score silently.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from boom_utils.artifacts import write_text

RELEASED = Path(__file__).with_name("released_prompts.yaml")


@functools.cache
def released_prompts() -> Mapping[str, str]:
    """Task of mteb -> instruction of the released models, as the file says."""
    return dict(yaml.safe_load(RELEASED.read_text(encoding="utf-8"))["instructions"])


def installed_prompts() -> dict[str, Any]:
    """What the installed mteb says of the released models: version, model, revision, template, instructions."""
    from mteb.models.model_implementations import ict_time_and_querit_models as released
    from mteb.types import PromptType

    model, slot = released.boom_4b_v1, "{instruction}"
    instructions = {
        name: str(text["query"] if isinstance(text, dict) else text)
        for name, text in sorted(released.boom_4b_instructions.items())
    }
    return {
        "source": f"{released.__name__} of mteb (Apache-2.0): boom_4b_instructions; of a pair, the query's",
        "mteb_version": importlib.metadata.version("mteb"),
        "model": model.name,
        "revision": model.revision,
        "template": released.instruction_template(slot, PromptType.query),
        "instructions": instructions,
    }


def write_prompts(path: Path = RELEASED) -> None:
    """Write the file anew from the installed mteb."""
    head = "# Instructions of the released models, written by boom_utils.evaluation.prompts.write_prompts.\n"
    write_text(path, head + yaml.safe_dump(installed_prompts(), sort_keys=False, allow_unicode=True, width=120))


def instruction_of(task: Any) -> tuple[str, str]:
    """The instruction of a task of mteb, and where it is from: ``released``, ``task`` or ``kind``.

    Args:
        task: An mteb task.
    """
    metadata = task.metadata
    if metadata.name in released_prompts():
        return released_prompts()[metadata.name], "released"
    own = metadata.prompt.get("query") if isinstance(metadata.prompt, Mapping) else metadata.prompt
    return (str(own), "task") if own else (str(task.abstask_prompt), "kind")
