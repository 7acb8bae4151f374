"""The command ``boom``. Exit codes: 0 ok, 1 a stage failed, 2 user error, 130 interrupted."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from boom_utils.errors import BoomError, ConfigError
from boom_utils.progress import log_to_stdout, quick_processes

if TYPE_CHECKING:
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
    fix = _REMEDIES.get(
        error.errno or 0, "look at this file or folder: is it there, of the right kind, on a sound disk"
    )
    return BoomError(what, where=" -> ".join(files) or None, fix=fix if files or error.errno else None)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="boom",
        description="Reproduction kit for BOOM (arXiv 2602.05787).",
        epilog="Environment: BOOM_HOME is the workspace (default workspace/), BOOM_MIRROR a folder that data files are "
        "read from instead of the network, HF_HUB_OFFLINE=1 forbids the network. Exit codes: 0 ok, 1 a stage failed, "
        "2 user error, 130 interrupted.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_build(commands)
    _add_plan(commands)
    _add_train(commands)
    _add_merge(commands)
    _add_evaluate(commands)
    _add_data(commands)
    _add_reports(commands)
    _add_publishing(commands)
    _with_profile(commands.add_parser("check", help="versions, devices, disk space, corpus sources"), _check)
    return parser


def _with_profile(parser: argparse.ArgumentParser, command: Any) -> None:
    """Let a command know a profile."""
    shown = "name of a profile, or a .yaml file (smoke)"
    parser.add_argument("--profile", type=_profile, default="smoke", metavar="P", help=shown)
    parser.set_defaults(command=command)


def _profile(argument: str) -> str:
    """Notebooks and jobs run in other folders: a profile that is a file has its whole path."""
    return str(Path(argument).resolve()) if argument.endswith((".yaml", ".yml")) else argument


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="execute the notebooks of a profile headless; up-to-date work is skipped")
    _with_profile(run, _run)
    run.add_argument("--only", action="append", default=[], metavar="NN", help="only this notebook; may be repeated")
    run.add_argument("--from", dest="start", metavar="NN", help="this notebook and all after it")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="value for a notebook parameter")
    run.add_argument("--results", type=Path, metavar="DIR", help="where <profile>/ with tables and figures goes")
    run.add_argument(
        "--force-unlock", action="store_true", help="take over the lock of a run on a machine that is gone"
    )


def _add_build(commands: Any) -> None:
    build = commands.add_parser("build", help="make named artifacts of a study, and what they are made of")
    build.add_argument("nodes", nargs="+", metavar="NODE", help="name of an artifact: member/full, scores/boom/sts")
    _with_profile(build, _build)
    build.add_argument("--receipt", type=Path, metavar="FILE", help="write key, digest and seconds of each there")


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser("plan", help="what a study would cost: examples, steps, tokens, FLOPs, time, disk")
    _with_profile(plan, _plan)
    plan.add_argument("--json", action="store_true", help="as JSON, with the graph of artifacts and their inputs")
    plan.add_argument("--jobs", type=Path, metavar="FILE", help="only write the jobs of a cluster (workflow/Snakefile)")
    plan.add_argument("--gpus", type=int, metavar="N", help="most devices of such a job; 0: processors only")
    plan.add_argument("--query-tokens", type=float, metavar="N", help="mean tokens of a query (its limit)")
    plan.add_argument("--passage-tokens", type=float, metavar="N", help="mean tokens of a passage (its limit)")
    plan.add_argument(
        "--device-tflops", type=float, default=989.0, metavar="N", help="peak of a rented device (989: H100, bf16)"
    )
    plan.add_argument("--mfu", type=float, default=0.4, metavar="X", help="share of that peak that is reached (0.4)")
    plan.add_argument(
        "--tokens-per-second", type=float, metavar="N", help="speed of one device here (measured in a few steps)"
    )


def _add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train one member of a profile; goes on from its last checkpoint")
    train.add_argument("member", metavar="MEMBER", help="name of a member in the profile")
    _with_profile(train, _train)
    train.add_argument("--nproc", type=int, metavar="N", help="devices (CPU: processes) to use (every CUDA device)")
    train.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="FIELD",
        help="go on from a checkpoint although this field differs; may be repeated",
    )


def _add_merge(commands: Any) -> None:
    merge = commands.add_parser("merge", help="merge models by a mergekit recipe, or say what a merge would do")
    merge.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="recipe in mergekit's YAML")
    merge.add_argument(
        "out", type=Path, nargs="?", metavar="OUT", help="folder of the merged model (with --plan: of the report)"
    )
    merge.add_argument(
        "--plan", action="store_true", help="merge nothing: print norms, angles and what the merge would give"
    )
    merge.add_argument("--shard-gb", type=float, default=5.0, metavar="N", help="most gigabytes in one weight file (5)")
    merge.add_argument("--threads", type=int, metavar="N", help="threads (one for each processor, at most 16)")
    merge.set_defaults(command=_merge)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate", help="score a model on a profile's tasks, benchmarks too, with its prompts"
    )
    evaluate.add_argument("model", metavar="MODEL", help="an encoder folder, or the name of a model of the profile")
    _with_profile(evaluate, _evaluate)
    evaluate.add_argument(
        "--tasks", nargs="+", action="extend", default=[], metavar="T", help="only these tasks, or benchmarks"
    )
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="results in mteb's JSON; what is up to date stays")


def _add_data(commands: Any) -> None:
    data = commands.add_parser("data", help="the data of a corpus").add_subparsers(required=True, metavar="ACTION")
    fetch = data.add_parser("fetch", help="download the files of a corpus into the workspace; what is there stays")
    corpus = fetch.add_mutually_exclusive_group(required=True)
    corpus.add_argument("--manifest", metavar="NAME", help="all of this data manifest (a name, or a .yaml file)")
    corpus.add_argument("--profile", metavar="P", help="what this profile trains on and evaluates")
    fetch.add_argument("--only", nargs="+", action="extend", default=[], metavar="DATASET", help="only these datasets")
    fetch.add_argument("--offline", action="store_true", help="use no network, as with HF_HUB_OFFLINE=1")
    fetch.set_defaults(command=_fetch)
    for name, command, help_text in (
        ("convert", _convert, "make training rows and evaluation sets of a profile; fetches what is missing"),
        ("sample", _sample, "draw the subsets of a profile"),
        ("overlap", _overlap, "evaluated texts that training rows hold, and the domain of every task"),
    ):
        action = data.add_parser(name, help=help_text)
        _with_profile(action, command)
        action.add_argument("--on-bad-line", choices=("error", "skip"), help="instead of what the profile says")


def _add_reports(commands: Any) -> None:
    """The commands that read what was found; neither needs torch or a workspace."""
    report = commands.add_parser(
        "report", help="tables, figures, claims and the page of a profile, from its results alone"
    )
    _with_profile(report, _report)
    report.add_argument("--results", type=Path, metavar="DIR", help="holds <profile>/ (the project's results/)")
    report.add_argument(
        "--mteb", type=Path, metavar="DIR", help="also write mteb's own results there (mteb.ResultCache)"
    )
    trace = commands.add_parser("trace", help="what a table, figure, score or artifact was made from, back to the data")
    trace.add_argument("file", type=Path, metavar="FILE", help="below results/<profile>/, or a folder of the workspace")
    trace.add_argument("--all", dest="whole", action="store_true", help="name every artifact and file, not a few")
    trace.set_defaults(command=_trace)


def _add_publishing(commands: Any) -> None:
    card = commands.add_parser("card", help="print the card of a model, with its scores as far as they are made")
    push = commands.add_parser("push", help="put a model on the Hugging Face hub; shows first what would go there")
    for parser, command in ((card, _card), (push, _push)):
        parser.add_argument("model", metavar="MODEL", help="name of a model in the profile, or a model folder")
        _with_profile(parser, command)
    push.add_argument("--repo", required=True, metavar="OWNER/NAME", help="repository; made if there is none")
    push.add_argument("--public", action="store_true", help="let everybody see it; otherwise it is private")
    push.add_argument("--dry-run", action="store_true", help="only show what would go there; asks no server")
    push.add_argument("--yes", action="store_true", help="do not ask before uploading (for scripts)")


def _opened(options: argparse.Namespace, **more: Any) -> Study:
    """The study that is about to be run."""
    from boom_utils.config import load_profile
    from boom_utils.study.graph import Study, say_precision

    study = Study(load_profile(options.profile), **more)
    say_precision(study.profile)
    return study


def _train(options: argparse.Namespace) -> None:
    from boom_utils.study.models import Execution

    if options.nproc is not None and options.nproc < 1:
        raise ConfigError("--nproc is the number of processes", expected="1 or more", found=options.nproc)
    execution = Execution(options.nproc, tuple(options.allow_change))
    artifact = _opened(options, execution=execution).build(f"member/{options.member}")
    for name in ("steps", "examples", "precision", "tokens_per_second", "peak_memory_mb", "mean_loss_last_tenth"):
        log.info("  %s: %s", name, artifact.facts.get(name))
    log.info("%s", artifact.path)


def _build(options: argparse.Namespace) -> None:
    from boom_utils.artifacts import write_json

    study = _opened(options)
    nodes = {name: study.node(name) for name in options.nodes}  # an unknown name is an error before anything is made
    made = {name: study.workspace.build(node) for name, node in nodes.items()}
    if options.receipt is not None:
        receipt = {
            name: {"key": artifact.key, "digest": artifact.digest, "seconds": artifact.record["wall_seconds"]}
            for name, artifact in made.items()
        }
        write_json(options.receipt, receipt)


def _run(options: argparse.Namespace) -> None:
    from boom_utils.study.runner import RunOptions, run

    _show_notebook_output()
    values = dict(_assignment(text) for text in options.set)
    chosen = RunOptions(options.only, options.start, values, options.results, options.force_unlock)
    for name, place in run(_opened(options), options.profile, chosen).items():
        log.info("%s: %s", name, place)


def _plan(options: argparse.Namespace) -> None:
    import json

    from boom_utils.config import load_profile
    from boom_utils.study.graph import Study
    from boom_utils.study.plan import Assumptions, plan_study, plan_text

    given = (options.query_tokens, options.passage_tokens, options.device_tflops, options.mfu)
    if any(number is not None and not 0 < number < float("inf") for number in (*given, options.tokens_per_second)):
        raise ConfigError("the numbers of boom plan are above 0")
    if options.mfu > 1:
        raise ConfigError("--mfu is a share of the peak", expected="at most 1", found=options.mfu)
    if options.json:  # nothing else goes to stdout
        logging.getLogger("boom_utils").setLevel(logging.ERROR)
        log.setLevel(logging.INFO)
    study = Study(load_profile(options.profile))
    made = plan_study(study, Assumptions(*given, options.tokens_per_second))
    if options.jobs is not None:
        _write_jobs(study, made, options)
        return
    log.info("%s", json.dumps(made.as_json(), indent=1, allow_nan=False) if options.json else plan_text(made))


def _write_jobs(study: Study, plan: StudyPlan, options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from boom_utils.artifacts import write_json
    from boom_utils.study.jobs import jobs_of

    if options.gpus is not None and options.gpus < 0:
        raise ConfigError("--gpus is a number of devices", expected="0 or more", found=options.gpus)
    jobs = jobs_of(study, plan, options.gpus)
    place = {"profile": options.profile, "workspace": str(study.workspace.root.resolve())}
    write_json(options.jobs, {**place, "jobs": [asdict(job) for job in jobs]})
    log.info("%s: %d jobs for %d nodes", options.jobs, len(jobs), len(study.nodes))


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ConfigError("--set takes NAME=VALUE", found=text)
    return name, value


def _show_notebook_output() -> None:
    """Let what notebooks log (not their tables and pictures) through to the terminal."""
    logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbconvert: every figure without an alternative text
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.INFO)
    logger.addFilter(_is_progress)


def _is_progress(record: logging.LogRecord) -> bool:
    """Whether a line of papermill's log is output of a notebook's stages."""
    text = record.getMessage()
    record.msg, record.args = "    " + text.rstrip(), None
    return ": started" in text or ": done in" in text or " to go" in text


def _merge(options: argparse.Namespace) -> None:
    from boom_utils.artifacts import naming
    from boom_utils.merging.recipe import load_recipe
    from boom_utils.merging.writer import MergeOptions, merge

    if options.shard_gb <= 0 or (options.threads is not None and options.threads < 1):
        raise ConfigError("--shard-gb and --threads are numbers above 0")
    if options.plan:
        _plan_merge(options)
        return
    if options.out is None:
        raise ConfigError(
            "name the folder of the merged model", fix="boom merge RECIPE.yaml OUT, or --plan to look only"
        )
    chosen = MergeOptions(max_shard_bytes=int(options.shard_gb * 1e9), threads=options.threads)
    with naming(options.out):
        facts = merge(load_recipe(options.recipe), options.out, chosen)
    for member in facts["members"]:
        weight = "" if member["weight"] is None else f": weight {member['weight']}"
        used = "" if member["used_weight"] is None else f", used as {member['used_weight']:.4f}"
        log.info("  %s%s%s", member["name"], weight, used)
    for name, note in facts["notes"].items():
        log.info("  %s: %s", name, note)
    if facts["left_out"]:
        log.info("  no files of a model, left where they are: %s", ", ".join(facts["left_out"]))
    log.info(
        "%s: %d tensors, %d parameters, %s",
        options.out,
        facts["tensors"],
        facts["parameters"],
        ", ".join(facts["dtype"]),
    )


def _plan_merge(options: argparse.Namespace) -> None:
    from boom_utils.artifacts import write_json
    from boom_utils.merging.gram import save_grams
    from boom_utils.merging.planner import plan
    from boom_utils.merging.recipe import load_recipe
    from boom_utils.reporting.merge_plan import plan_text

    table, described = plan(load_recipe(options.recipe), options.threads)
    log.info("%s", plan_text(described["geometry"], described["forecasts"]))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        save_grams(options.out / "grams.npz", table)
        write_json(options.out / "plan.json", described)
        log.info("%s: grams.npz, plan.json", options.out)


def _evaluate(options: argparse.Namespace) -> int:
    from boom_utils.study.evaluating import evaluate_model

    done = evaluate_model(_opened(options), options.model, options.tasks, options.out)
    log.info("%s\n%s", done.table, done.folder)
    return 1 if done.failed else 0


def _check(options: argparse.Namespace) -> int:
    from boom_utils.study.check import check_machine

    return check_machine(options.profile)


def _fetch(options: argparse.Namespace) -> None:
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the library is imported
    from boom_utils.study.fetching import fetch_corpus

    fetch_corpus(options.manifest, options.profile, options.only)


def _data_study(options: argparse.Namespace) -> Any:
    from boom_utils.config import load_profile
    from boom_utils.study.graph import Study

    profile = load_profile(options.profile)
    if options.on_bad_line is not None:
        corpus = profile.corpus.model_copy(update={"on_bad_line": options.on_bad_line})
        profile = profile.model_copy(update={"corpus": corpus})
    return Study(profile)


def _summary(study: Any) -> Any:
    from boom_utils.reporting.results import read_json_object

    return read_json_object(study.build("examples").path / "summary.json")


def _convert(options: argparse.Namespace) -> None:
    from boom_utils.reporting.corpus import corpus_text

    study = _data_study(options)
    log.info("%s", corpus_text(study.manifest, _summary(study)))
    log.info("%s", study.build("examples").path)


def _sample(options: argparse.Namespace) -> None:
    from boom_utils.data.sampling import load_subset
    from boom_utils.reporting.corpus import subset_frame

    drawn = {name: artifact.path for name, artifact in _data_study(options).build_all("subset/").items()}
    log.info("%s", subset_frame({name: load_subset(path) for name, path in drawn.items()}).to_string())
    log.info("%s", next(iter(drawn.values())).parent)


def _overlap(options: argparse.Namespace) -> None:
    from boom_utils.reporting.corpus import overlap_text

    log.info("%s", overlap_text(_summary(_data_study(options))))


def _report(options: argparse.Namespace) -> None:
    from boom_utils.artifacts import PROJECT_ROOT, default_workspace
    from boom_utils.config import load_profile
    from boom_utils.reporting.report import regenerate

    name = options.profile
    if name.endswith((".yaml", ".yml")):
        name = load_profile(name).name
    root = options.results or PROJECT_ROOT / "results"
    if options.results is None and not (root / name).is_dir() and (default_workspace() / "results" / name).is_dir():
        root = default_workspace() / "results"  # where a run puts them when the project cannot be written
    log.info("report: %s", regenerate(name, root, options.mteb))


def _trace(options: argparse.Namespace) -> None:
    from boom_utils.reporting.trace import trace_text

    log.info("%s", trace_text(options.file, whole=options.whole))


def _card(options: argparse.Namespace) -> None:
    from boom_utils.study.push import find_model

    log.info("%s", find_model(options.model, options.profile).card.rstrip("\n"))


def _push(options: argparse.Namespace) -> None:
    from boom_utils.study.push import find_model, prepare, push

    upload = prepare(find_model(options.model, options.profile), options.repo, public=options.public)
    log.info("%s", upload.text())
    if options.dry_run:
        return
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody is there to be asked", fix="--yes uploads without asking, --dry-run only looks")
        if not _agreed(f"upload this to {options.repo}? [y/N] "):
            log.info("nothing was uploaded")
            return
    log.info("%s", push(upload))


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
