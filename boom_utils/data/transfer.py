"""One file over https: resumed where it broke off, tried again where that can help, and compared before it counts.

Redirects are followed by hand, so that none leads to another scheme. No address but that of the manifest is shown in an
error: a server may redirect to one that holds a signature.
"""

from __future__ import annotations

import email.utils
import logging
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from urllib.parse import urljoin, urlsplit

import httpx

from boom_utils.artifacts import derive_seed
from boom_utils.data.remote_files import LOOPBACK, RemoteFile, describe
from boom_utils.data.stored_files import MIB, PartialFile, Target, failure
from boom_utils.progress import progress

log = logging.getLogger(__name__)

MOST_REDIRECTS = 5
LONGEST_PAUSE = 60.0
"""Seconds between two attempts of our own choice."""
LONGEST_RETRY_AFTER = 600.0
"""Seconds a server may ask us to wait; more is reported instead."""
UNKNOWN_SIZE_LIMIT = 64 * 2**30
"""Bytes of a file of which neither manifest nor server state the size."""
SHOWN_FROM = 16 * MIB
"""Files smaller than this have no progress of their own."""
REDIRECTS = (301, 302, 303, 307, 308)
WORTH_RETRYING = (408, 425, 429)


class _WithoutQueries(logging.Filter):
    """httpx logs every address it asks for; the query of a redirect may be a signature."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                part.copy_with(query=None) if isinstance(part, httpx.URL) else part for part in record.args
            )
        return True


logging.getLogger("httpx").addFilter(_WithoutQueries())


class _PassingError(Exception):
    """The attempt failed in a way that may pass.

    Args:
        what: How it failed.
        after: Seconds the server asks to wait.
    """

    def __init__(self, what: str, after: float | None = None) -> None:
        super().__init__(what)
        self.after = after


class Transfer:
    """Downloads files through one client; may be used by several threads at once.

    Args:
        client: Follows no redirects by itself.
        attempts: In a row without progress, before a file is given up.
        loopback: Also accept redirects to a test server on this machine.
        pause: Waits a number of seconds between attempts.
        stopped: Set when all work is to end.
    """

    def __init__(
        self,
        client: httpx.Client,
        *,
        attempts: int,
        loopback: bool,
        pause: Callable[[float], object],
        stopped: Event,
    ) -> None:
        self._client, self._attempts, self._loopback = client, attempts, loopback
        self._pause, self._stopped = pause, stopped

    def get(self, target: Target) -> None:
        """Download one file; it has its final name afterwards.

        Raises:
            DownloadError: It cannot be had, or what came is not the file the manifest names.
        """
        with PartialFile(target) as partial:
            if not partial.complete():
                self._receive(partial)
            partial.finish()

    def _receive(self, partial: PartialFile) -> None:
        file, failures, furthest = partial.target.file, 0, partial.size
        jitter = random.Random(derive_seed(os.getpid(), "download", file.url))
        while True:
            try:
                self._attempt(partial)
                return
            except _PassingError as problem:
                if partial.size >= furthest + MIB:  # a long file over a bad line comes in many pieces
                    furthest, failures = partial.size, 0
                failures += 1
                if failures >= self._attempts:
                    kept = f"{partial.size} bytes so far, sha256 {partial.sha256}; they are kept"
                    raise failure(
                        file,
                        f"no success in {failures} attempts: {problem}",
                        found=kept if partial.size else "nothing",
                    ) from problem
                seconds = problem.after
                if seconds is None:
                    seconds = min(LONGEST_PAUSE, 2.0 ** (failures - 1)) * jitter.uniform(0.5, 1.0)
                log.info("%s: %s; again in %.1f s", file.path.name, problem, seconds)
                self._pause(seconds)
                self._go_on(file)

    def _go_on(self, file: RemoteFile) -> None:
        if self._stopped.is_set():
            raise failure(file, "stopped before the file was complete", fix="run again")

    def _attempt(self, partial: PartialFile) -> None:
        """Ask once, from where the bytes end.

        Raises:
            _PassingError: Something went wrong that may go better next time.
            DownloadError: Something went wrong that will not.
        """
        size, file = partial.target.file.bytes, partial.target.file
        if not partial.resumable() or (size is not None and partial.size >= size):
            partial.restart()
        headers = {"Accept-Encoding": "identity"}
        if partial.size:
            headers["Range"] = f"bytes={partial.size}-"
            if partial.etag:
                headers["If-Range"] = partial.etag
        try:
            with self._answer(file, headers) as response:
                total = _accept(response, partial)
                limit = next(known for known in (size, total, UNKNOWN_SIZE_LIMIT) if known is not None)
                self._store(response, partial, limit)
        except httpx.TransportError as error:
            if "location header" in str(error):  # httpx looks at it too, and quotes it
                raise failure(file, "the server redirects to something that is no url") from None
            raise _PassingError(f"the connection failed ({type(error).__name__}: {error})") from error
        expected = size if size is not None else total or 0
        if partial.size < expected:
            raise _PassingError(f"the body ended after {partial.size} of {expected} bytes")
        if partial.wrong():
            _refuse(response, partial)

    def _store(self, response: httpx.Response, partial: PartialFile, limit: int) -> None:
        def blocks() -> Iterator[bytes]:
            for block in response.iter_raw():
                self._go_on(partial.target.file)
                yield block

        stored = partial.store(blocks(), limit)
        label = f"{partial.target.file.path.name} (MiB)"
        shown = SHOWN_FROM <= limit < UNKNOWN_SIZE_LIMIT
        for _ in progress(stored, math.ceil((limit - partial.size) / MIB), label) if shown else stored:
            pass

    @contextmanager
    def _answer(self, file: RemoteFile, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """The answer at the end of all redirects, its body not read yet."""
        url = file.url
        for _ in range(MOST_REDIRECTS + 1):
            with self._client.stream("GET", url, headers=headers) as response:
                if response.status_code not in REDIRECTS:
                    yield response
                    return
                url = self._redirect(file, url, response.headers.get("Location"))
        raise failure(file, f"more than {MOST_REDIRECTS} redirects", fix="correct the url in the manifest")

    def _redirect(self, file: RemoteFile, url: str, location: str | None) -> str:
        try:
            target = urljoin(url, location or "")
            parts = urlsplit(target)
            httpx.URL(target)
        except (ValueError, httpx.InvalidURL):
            raise failure(file, "the server redirects to something that is no url") from None
        local = self._loopback and parts.scheme == "http" and parts.hostname == LOOPBACK
        if not location or (parts.scheme != "https" and not local) or "@" in parts.netloc:
            raise failure(
                file,
                "the server redirects to an address that is not safe",
                expected="an https address without credentials",
                found=f"{parts.scheme}://{parts.hostname}",
            )
        return target


def _accept(response: httpx.Response, partial: PartialFile) -> int | None:
    """Look at the head of an answer and make the partial file ready for its body.

    Returns:
        Bytes of the whole file, as the server states it.
    """
    file, status = partial.target.file, response.status_code
    if status == 416:
        partial.restart()
        raise _PassingError("the server has no such range; starting anew")
    if status in WORTH_RETRYING or status >= 500:
        after = retry_after(response.headers.get("Retry-After"))
        if after is not None and after > LONGEST_RETRY_AFTER:
            raise failure(file, f"the server answers {status} and asks to come back in {after:.0f} s")
        raise _PassingError(f"the server answers {status} {response.reason_phrase}", after)
    if status not in (200, 206):
        kind = ", with an HTML page" if _html(response) else ""
        raise failure(
            file,
            f"the server answers {status} {response.reason_phrase}",
            found=f"no file{kind}",
            fix="correct the url in the manifest, or set BOOM_MIRROR=<folder> to read <folder>/<host>/<path> instead",
        )
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise failure(
            file,
            "the server packed the file although it was asked not to",
            expected=f"{describe(file)}, without Content-Encoding",
            found=f"Content-Encoding {encoding[:40]!r}",
        )
    total = _start(response, partial)
    if (file.bytes is not None and total not in (None, file.bytes)) or (file.sha256 is None and _html(response)):
        _refuse(response, partial, total)
    if total is None and file.sha256 is None and file.bytes is None and not _chunked(response):
        raise failure(file, "nobody states how long the file is: a part of it would look like all of it")
    return total


def _start(response: httpx.Response, partial: PartialFile) -> int | None:
    if response.status_code == 206:
        given = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        if partial.size == 0 or given is None or int(given[1]) != partial.size:
            partial.restart()
            raise _PassingError("the server sends another range than it was asked for; starting anew")
        partial.joined = True
        return None if given[2] == "*" else int(given[2])
    etag = response.headers.get("ETag", "")
    partial.restart(etag if re.fullmatch(r'"[\x21\x23-\x7e]{1,500}"', etag) else None)
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch(r"\d{1,18}", length) and not _chunked(response) else None


def _refuse(response: httpx.Response, partial: PartialFile, stated: int | None = None) -> None:
    """Raise for a file that is not the one the manifest names; bytes of two answers are given one more chance.

    Args:
        response: Where it came from.
        partial: All bytes of it, or none.
        stated: Its size as the server states it, when that is what is wrong.
    """
    page = "an HTML page (an error page, or one to sign in at) instead of a file" if _html(response) else "another file"
    found = f"sha256 {partial.sha256}, {partial.size} bytes"
    if stated is not None or partial.size == 0:
        found = f"{'unknown' if stated is None else stated} bytes according to the server; not downloaded"
    joined, file = partial.joined, partial.target.file
    if joined:
        partial.restart()
        raise _PassingError("the parts do not fit together; starting anew")
    partial.discard()
    raise failure(
        file,
        f"the server sent {page}",
        found=found,
        fix="look at the url; if the file was changed at its source, correct the manifest, "
        "or set BOOM_MIRROR=<folder> to read <folder>/<host>/<path> instead",
    )


def retry_after(text: str | None, now: float | None = None) -> float | None:
    """Seconds of a Retry-After header: a number of them, or an HTTP date."""
    if text is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}\s*", text):
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
    return max(0.0, moment - (time.time() if now is None else now))


def _html(response: httpx.Response) -> bool:
    """Whether the answer is a page, though the url does not name one."""
    kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
    return kind == "text/html" and not response.request.url.path.lower().endswith((".html", ".htm"))


def _chunked(response: httpx.Response) -> bool:
    return "chunked" in response.headers.get("Transfer-Encoding", "").lower()


def make_client(timeout: float, *, loopback: bool) -> httpx.Client:
    """A client that follows no redirects, asks for plain bytes and heeds proxies and SSL_CERT_FILE.

    Args:
        timeout: Seconds without a byte before a connection counts as broken.
        loopback: For a test server on this machine, which no proxy reaches.
    """
    return httpx.Client(timeout=timeout, follow_redirects=False, trust_env=not loopback)
