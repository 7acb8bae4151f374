"""Kernels that have the heavy libraries imported when they begin: forked from a process that holds them.

To import torch, transformers and mteb costs a kernel some ten seconds of processor time, and every notebook has a
kernel of its own. The first kernel of a run starts as usual, while the libraries are imported beside it.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from boom_utils.artifacts import process_alive

HEAVY = ("boom_utils.evaluation.run", "boom_utils.training.member", "matplotlib.pyplot", "ipykernel.kernelapp")


@dataclass
class ForkedKernel:
    """A kernel that is no child of this process, with what jupyter_client asks of a `subprocess.Popen`."""

    pid: int
    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        """None while it runs."""
        return None if process_alive(self.pid) else 1

    wait = poll

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


@dataclass
class KernelServer:
    """The process that kernels are forked from; it begins with the first kernel that is asked for.

    Args:
        modules: Imported before the first fork.
    """

    modules: Sequence[str] = HEAVY
    _process: subprocess.Popen[str] | None = None
    _is_ready: bool = field(default=False, init=False)

    def fork(self, argv: Sequence[str], folder: str | None, environment: Mapping[str, str]) -> ForkedKernel | None:
        """A kernel in ``folder``; None while the libraries are being imported, or where that went wrong."""
        if self._process is None:
            command = [sys.executable, "-P", "-m", __name__, *self.modules]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        asked, said = self._process.stdin, self._process.stdout
        assert asked is not None and said is not None
        self._is_ready = self._is_ready or (bool(select.select([said], [], [], 0)[0]) and said.readline() == "ready\n")
        if not self._is_ready or self._process.poll() is not None:
            return None
        asked.write(json.dumps([argv, folder, dict(environment)]) + "\n")
        asked.flush()
        return ForkedKernel(int(said.readline()))

    def close(self) -> None:
        """End the process; kernels that still run end with it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def can_fork() -> bool:
    """Whether a process with these libraries can be forked: what a GPU's driver has opened does not survive that."""
    return sys.platform == "linux" and not any(
        map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128"))
    )


class OwnKernel(AsyncKernelManager):  # type: ignore[misc]
    """Starts the kernel with this interpreter, whatever Python the kernel registered with Jupyter belongs to."""

    server: ClassVar[KernelServer | None] = None
    """Where kernels are forked from; without it every kernel is a new process."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """How this interpreter starts a kernel."""
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")

    async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
        server = self.server
        kernel = None if server is None else server.fork(kernel_cmd[3:], options.get("cwd"), options["env"])
        if kernel is None:
            await super()._async_launch_kernel(kernel_cmd, **options)
        else:
            self.provisioner.process, self.provisioner.pid, self.provisioner.pgid = kernel, kernel.pid, kernel.pid


@contextmanager
def forked_kernels(several: bool) -> Iterator[None]:
    """Kernels that begin inside are forked, if there are to be several and this machine bears it."""
    OwnKernel.server = KernelServer() if several and can_fork() else None
    try:
        yield
    finally:
        if OwnKernel.server is not None:
            OwnKernel.server.close()
        OwnKernel.server = None


def serve(modules: Sequence[str]) -> None:
    """Import the modules, then fork a kernel for every line of standard input."""
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # kernels that end leave nothing behind
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run_kernel(*json.loads(line))
        print(pid, flush=True)  # noqa: T201


def run_kernel(argv: Sequence[str], folder: str | None, environment: Mapping[str, str]) -> None:
    """Be a kernel to the end, as a process that ``ipykernel_launcher`` began would be."""
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # standard output is how the server answers
    os.environ.clear()
    os.environ |= environment
    if folder is not None:
        os.chdir(folder)
    sys.argv = [str(Path(sys.executable)), *argv]
    IPKernelApp.parent_handle.default_value = os.getppid()
    IPKernelApp.launch_instance(list(argv))
    sys.exit()


if __name__ == "__main__":
    serve(sys.argv[1:])
