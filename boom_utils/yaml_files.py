"""YAML files, and what is in them as a pydantic model: all problems of a file are reported together.

Unknown keys are refused with the nearest valid name, and so are keys given twice.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from boom_utils.errors import BoomError, bullet_list, nearest

Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], raw: Any, where: str, error: type[BoomError]) -> Model:
    """Validate ``raw`` as ``model``; every problem is in the one error that is raised.

    Raises:
        BoomError: Of the class ``error``, naming ``where``, the key of each problem and the nearest valid name.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as caught:
        problems = [_explain(model, problem) for problem in caught.errors()]
        raise error(
            f"{len(problems)} problem(s) in {where}", found=bullet_list(problems), fix="correct the keys named above"
        ) from None


def _explain(model: type[BaseModel], problem: Mapping[str, Any]) -> str:
    location = problem["loc"]
    key = ".".join(str(part) for part in location) or "(whole file)"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(str(location[-1]), _keys_at(model, location[:-1]))}"
    given = problem.get("input")
    shown = f" (found {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{key}: {problem['msg']}{shown}"


def _keys_at(model: Any, location: Iterable[str | int]) -> set[str]:
    """Valid keys of the (possibly nested, possibly repeated) model at a location of a validation error."""
    for part in location:
        if isinstance(part, str) and hasattr(model, "model_fields") and part in model.model_fields:
            model = model.model_fields[part].annotation
        while not hasattr(model, "model_fields") and typing.get_args(model):
            model = next((arg for arg in typing.get_args(model) if arg not in (type(None), Ellipsis)), None)
    return set(getattr(model, "model_fields", {}))


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, but a key given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build one mapping, refusing repeated keys."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, error: type[BoomError]) -> Any:
    """Read a YAML file (safe loader, no repeated keys).

    Raises:
        BoomError: Of the class ``error``, with line and column.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as caught:
        raise error(f"{path.name} is not valid YAML", where=path.name, found=caught, fix="correct the line") from None
