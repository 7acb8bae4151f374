"""Writes `boom_utils/evaluation/released_prompts.yaml`: instructions of the released models, from the installed mteb.

A test compares the file with the installed mteb; CONTRIBUTING.md says how to write it anew.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import yaml

from boom_utils.artifacts import write_text
from boom_utils.evaluation.benchmarks import RELEASED


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
    head = "# Instructions of the released models, written by tools/released_prompts.py.\n"
    write_text(path, head + yaml.safe_dump(installed_prompts(), sort_keys=False, allow_unicode=True, width=120))
