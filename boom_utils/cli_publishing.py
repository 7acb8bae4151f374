"""The commands ``boom card`` and ``boom push``."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from boom_utils.errors import ConfigError

log = logging.getLogger("boom_utils.cli")


def add_publishing(commands: Any) -> None:
    """Add the two commands to the parser of ``boom``."""
    card = commands.add_parser("card", help="print the card of a model, with its scores as far as they are made")
    push = commands.add_parser("push", help="put a model on the Hugging Face hub; shows first what would go there")
    for command in (card, push):
        command.add_argument("model", metavar="MODEL", help="name of a model in the profile, or a model folder")
        command.add_argument(
            "--profile", default="smoke", metavar="P", help="name of a profile, or a .yaml file (smoke)"
        )
    push.add_argument("--repo", required=True, metavar="OWNER/NAME", help="repository; made if there is none")
    push.add_argument("--public", action="store_true", help="let everybody see it; otherwise it is private")
    push.add_argument("--dry-run", action="store_true", help="only show what would go there; asks no server")
    push.add_argument("--yes", action="store_true", help="do not ask before uploading (for scripts)")
    card.set_defaults(command=_card)
    push.set_defaults(command=_push)


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
