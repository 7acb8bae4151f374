"""YAML files, and what is in them as a pydantic model: all problems of a file are reported together.

Unknown keys are refused with the nearest valid name, and so are keys given twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from boom_utils.errors import BoomError, bullet_list, nearest

Model = TypeVar("Model", bound=BaseModel)
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=64)]


class Frozen(BaseModel):
    """Base of every config: immutable, unknown keys refused, no NaN or infinity, no `problems`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    def problems(self) -> Iterator[str]:
        """What does not fit together, although every value by itself is right."""
        yield from ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if found := list(self.problems()):
            raise ValueError("\n".join(found))
        return self


def repeated(groups: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Names that are given twice among those of one kind."""
    for kind, names in groups.items():
        yield from (f"{kind} '{name}' is named twice" for name, count in Counter(names).items() if count > 1)


def parse(
    model: type[Model], raw: Any, where: str, error: type[BoomError], fix: str = "correct the keys named above"
) -> Model:
    """Validate ``raw`` as ``model``; every problem is in the one error that is raised.

    Raises:
        BoomError: Of the class ``error``, naming ``where``, the key of each problem and the nearest valid name.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as caught:
        found: Sequence[Any] = caught.errors()
        said = [_explain(model, problem) for problem in found if not _follows(problem, found)]
        problems = [line for one in said for line in one]
        raise error(f"{len(problems)} problem(s) in {where}", found=bullet_list(problems), fix=fix) from None


def _follows(problem: Mapping[str, Any], problems: Sequence[Any]) -> bool:
    """Whether it only follows from others: pydantic also calls a list too short whose entries are wrong."""
    place, others = problem["loc"], [other["loc"] for other in problems]
    return problem["type"] == "too_short" and any(other[: len(place)] == place != other for other in others)


def _explain(model: type[BaseModel], problem: Mapping[str, Any]) -> list[str]:
    location = problem["loc"]
    place = ".".join(str(part) for part in location) + ": " if location else ""
    if problem["type"] == "extra_forbidden":
        return [f"{place}unknown key{nearest(str(location[-1]), _keys(model))}"]
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return [f"{place}expected lines of `key: value`, found {type(problem.get('input')).__name__}"]
    given = problem.get("input")
    shown = f" (found {given!r})" if isinstance(given, str | int | float | bool) else ""
    lines = str(problem["msg"]).removeprefix("Value error, ").splitlines()
    return [f"{place}{line}{shown}{_nearest_choice(problem)}" for line in lines]


def _nearest_choice(problem: Mapping[str, Any]) -> str:
    """Which of the few values a key may have is closest to the one it has."""
    context = problem.get("ctx", {})
    choices = re.findall(r"'([^']+)'", str(context.get("expected_tags" if "tag" in context else "expected", "")))
    return nearest(str(context.get("tag", problem.get("input"))), choices)


def _keys(model: type[BaseModel]) -> set[str]:
    """All keys of a model, and of the models in it."""
    schema = model.model_json_schema()
    return {key for part in (schema, *schema.get("$defs", {}).values()) for key in part.get("properties", ())}


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is


class _UniqueKeys(_SafeLoader):  # type: ignore[misc]
    """YAML's safe loader, but a key given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build one mapping, refusing repeated keys."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def read_yaml(path: Path, error: type[BoomError]) -> Any:
    """Read a YAML file (safe loader, no repeated keys).

    Raises:
        BoomError: Of the class ``error``, with line and column.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as caught:
        mark, problem = getattr(caught, "problem_mark", None), getattr(caught, "problem", None)
        where = f"{path.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else path.name
        fix = "correct the line, or the one before"
        raise error(f"{path.name} is not valid YAML", where=where, found=problem or caught, fix=fix) from None


def file_of(name: str, folder: Path, shipped: Path, what: str, error: type[BoomError], where: object = None) -> Path:
    """The YAML file of a name, which is that of a file of the kit, or a path relative to a folder; named ``where``.

    Raises:
        BoomError: Of the class ``error``: there is none.
    """
    path = folder / name if name.endswith((".yaml", ".yml")) else shipped / f"{name}.yaml"
    if not path.is_file():
        names = sorted(one.stem for one in shipped.glob("*.yaml"))
        expected = f"one of {', '.join(names)}, or the path of a .yaml file"
        raise error(f"there is no {what} '{name}'{nearest(name, names)}", where=where, expected=expected)
    return path


def joined(below: Any, above: Any, error: type[BoomError]) -> Any:
    """What one file says with the values of another in it.

    Mappings are joined key by key; null takes away what was there, so that the default holds; anything else takes the
    place of what was there. A key ``name+`` adds to the list ``name`` of entries with names: an entry takes the place
    of its namesake, or comes last.

    Raises:
        BoomError: Of the class ``error``: ``name+`` adds to something else.
    """
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    found = dict(below)
    for key, value in above.items():
        name = str(key).removesuffix("+")
        if name == key:
            found[name] = joined(below.get(name), value, error)
            continue
        lists: tuple[Any, Any] = (below.get(name), value)
        if not all(isinstance(one, list) and all(isinstance(e, dict) and "name" in e for e in one) for one in lists):
            known = sorted(str(one) for one in below if isinstance(below[one], list))
            what = f"'{key}' cannot add to '{name}'{nearest(name, known)}"
            expected = "a list whose entries have names: subsets+, members+, merges+ or ensembles+"
            raise error(what, expected=expected, fix=f"write '{name}' with all that it is to hold, or correct the name")
        found[name] = [*{entry["name"]: entry for one in lists for entry in one}.values()]
    return {key: value for key, value in found.items() if value is not None}
