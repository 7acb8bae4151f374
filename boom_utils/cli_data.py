"""The commands ``boom data``: fetch, convert, sample, overlap."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

log = logging.getLogger("boom_utils.cli")


def add_data(commands: Any) -> None:
    """Add them to the parser of ``boom``."""
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
        action.add_argument(
            "--profile", default="smoke", metavar="P", help="name of a profile, or a .yaml file (smoke)"
        )
        action.add_argument("--on-bad-line", choices=("error", "skip"), help="instead of what the profile says")
        action.set_defaults(command=command)


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
