"""Fixtures: a tiny encoder, a small profile, and a network that is not there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # toy models gain nothing by more, and the smoke study runs beside
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A suite that a shell started in the background ignores Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
import torch
import yaml
from hub_server import REVISION, HubServer
from hypothesis import settings
from made_up_results import with_controls, write_made_up_results
from smoke_run import Run, Started
from torch import Tensor

from boom_utils import packing
from boom_utils.artifacts import PROJECT_ROOT, Artifact, sha256_file
from boom_utils.config import PROFILES, TinyBase
from boom_utils.data.examples import TrainingExample
from boom_utils.data.tokens import TextRules, TokenTable, write_tokens
from boom_utils.experiments import Experiments
from boom_utils.hyperparameters import TrainingConfig
from boom_utils.models import Encoder
from boom_utils.reporting.results import Results, read_results
from boom_utils.training.base_model import random_encoder
from boom_utils.training.gradients import TrainingJob
from boom_utils.training.plan import DatasetRules, PlanInput, PlanOptions, plan_batches

# The same examples on every run, so that a failure is the change's. HYPOTHESIS_PROFILE=default draws new ones.
settings.register_profile("kit", derandomize=True, deadline=None)  # no test goes by the clock
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "kit"))

SHARED = PROJECT_ROOT.parent / "shared"
HANGS = 3600
"""Seconds after which another process is taken to hang: no test measures how fast a machine is."""
TEXTS = [
    "return the mean of an array along an axis",
    "sort the values of a frame in place",
    "raise an error when the file is missing",
    "compute the inverse of a square matrix",
    "draw a histogram of the residuals",
    "split a string into words at white space",
    "fit a linear model to the training data",
    "read a table from a text file",
]


QUESTIONS = {
    "family": "retrieval",
    "role": "train",
    "prompt": "Retrieve the answer to the question.",
    "in_batch_negatives": True,
    "halve_batch": False,
    "instruction_on_passages": False,
    "group_size": "train_group_size",
    "example_type": "normal",
    "description": "Question -> its answer.",
}
"""What the manifests of tests say of a plain retrieval dataset."""


def damaged(artifact: Artifact) -> list[str]:
    """Names of the files of an artifact that are not the recorded ones."""
    outputs = artifact.record["outputs"]
    return [name for name, facts in outputs.items() if sha256_file(artifact.path / name) != facts["sha256"]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate-golden", action="store_true", help="write golden files anew instead of comparing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the smoke study come last: it runs beside the others. Those of CUDA are skipped without one."""
    items.sort(key=_needs_smoke)
    for item in items:
        if item.get_closest_marker("cuda") is not None and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


def _needs_smoke(item: pytest.Item) -> bool:
    return "smoke" in getattr(item, "fixturenames", ()) and item.get_closest_marker("notebooks") is not None


@pytest.fixture(scope="session", autouse=True)
def started_smoke(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started | None]:
    """The smoke study, begun before the first test if any of the chosen ones needs it."""
    if not any(map(_needs_smoke, request.session.items)):
        yield None
        return
    started = Started.begin(tmp_path_factory.mktemp("smöke run"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def smoke(started_smoke: Started) -> Run:
    """The finished smoke study."""
    return started_smoke.finished(HANGS)


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the made-up study: read by many tests, changed by none."""
    return write_made_up_results(tmp_path_factory.mktemp("results") / "made-up")


@pytest.fixture(scope="session")
def results(made_up: Path) -> Results:
    """The made-up study."""
    return read_results(made_up)


@pytest.fixture(scope="session")
def controlled(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The made-up study with the controls that BOOM is compared with."""
    return with_controls(results, tmp_path_factory.mktemp("results") / "controlled")


@pytest.fixture(scope="session")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The made-up study with three seeds of two models."""
    seeds = {"full": (0.01, -0.02), "boom": (0.015, -0.005)}
    return read_results(write_made_up_results(tmp_path_factory.mktemp("results") / "pooled", seeds))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to other machines fail; those on this machine (Jupyter kernels) work."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):  # type: ignore[index]
            raise OSError(f"tests have no network: {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


def plain_smoke() -> dict[str, Any]:
    """The smoke profile without its ablations: members, BOOM, schedules, and one update."""
    content: dict[str, Any] = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    kept = ("s20", "s40", "s60", "s80", "full", "seq-datasets", "two-stage", "update", "retrained")
    content["members"] = [one for one in content["members"] if one["name"] in kept]
    content["merges"] = [one for one in content["merges"] if one["name"] in ("plain-mean", "boom", "boom-updated")]
    content["subsets"] = [one for one in content["subsets"] if one["name"] != "new-only"]
    del content["interaction"]
    return only_known(content)


def only_known(content: dict[str, Any]) -> dict[str, Any]:
    """A profile's content whose experiments name the members and merges that are left in it."""
    known = [one["name"] for one in (*content["members"], *content["merges"])]
    experiments = Experiments.model_validate(content["experiments"]).of(known)
    return {**content, "experiments": experiments.model_dump(mode="json")}


def tiny_config(**changes: object) -> TinyBase:
    """A base of a few thousand parameters."""
    pretraining = TrainingConfig(
        learning_rate=1e-3, per_device_train_batch_size=4, query_max_len=32, passage_max_len=32, temperature=0.05
    )
    options: dict[str, object] = {
        "kind": "tiny_qwen3",
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_seq_length": 48,
        "pretraining": pretraining,
    }
    return TinyBase.model_validate({**options, **changes})


TOY = TrainingConfig(
    learning_rate=1e-2,
    per_device_train_batch_size=4,
    temperature=0.1,
    train_group_size=3,
    query_max_len=40,
    passage_max_len=40,
    tokens_per_micro_batch=64,
    save_steps=3,
)


def toy_tokens(encoder: Encoder, path: Path) -> TokenTable:
    """Eight examples whose positive repeats the query; two long, six short."""
    examples = [
        TrainingExample(text, (f"{text} {text}" * (1 + 2 * (number % 4 == 0)),), (TEXTS[number - 1], TEXTS[number - 2]))
        for number, text in enumerate(TEXTS)
    ]
    write_tokens(path, examples, TextRules("Instruct: find it\nQuery: ", "", 40, 40), encoder.tokenize)
    return TokenTable(path)


def toy_job(
    encoder: Encoder, folder: Path, rules: DatasetRules | None = None, config: TrainingConfig = TOY
) -> TrainingJob:
    """Two steps an epoch of four queries a process, on one dataset ``toy``."""
    table, rules = toy_tokens(encoder, folder / "toy.arrow"), rules or DatasetRules()
    given = PlanInput(rules, np.arange(8, dtype=np.uint32), table.positive_counts, table.negative_counts)
    options = PlanOptions(
        config.per_device_train_batch_size, config.train_group_size, config.num_train_epochs, config.processes
    )
    return TrainingJob({"toy": table}, {"toy": rules}, plan_batches({"toy": given}, options), config)


@pytest.fixture
def encoder() -> Encoder:
    return random_encoder(TEXTS, tiny_config(), {"toy": "Instruct: find it\nQuery: "})


@pytest.fixture
def encoder_folder(encoder: Encoder, tmp_path: Path) -> Path:
    encoder.save(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture(autouse=True)
def global_random_state_is_left_alone() -> Iterator[None]:
    """Promise 18, in every test: nothing draws from torch's or NumPy's global generator."""
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]  # noqa: NPY002
    yield
    after = torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    assert torch.equal(before[0], after[0]), "torch's global random state was touched"
    assert np.array_equal(before[1], after[1]), "NumPy's global random state was touched"


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models, rows and recipes of the kinds that users bring, with what should come of them."""
    maker = SHARED / "cases" / "make_cases.py"
    if not maker.is_file():
        pytest.skip("the cases that users bring (../shared/cases) are not on this machine")
    out = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, str(maker), str(out)], check=True, capture_output=True, timeout=HANGS)
    return out


def bert_folder(
    folder: Path, *, pooling: str = "mean", normalize: bool = True, kind: str = "bert", modules: Any = None, **said: Any
) -> Path:
    """A tiny random model as sentence-transformers itself saves one: a BERT with [CLS] and [SEP], 64 positions.

    Args:
        folder: Gets it.
        pooling: Of the usual modules, as ``normalize``.
        normalize: Whether they end with it.
        kind: Of transformer.
        modules: Makes other modules behind the transformer.
        said: What else the model is told.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import BertWordPieceTokenizer
    from transformers import AutoConfig, AutoModel, BertTokenizerFast

    words = BertWordPieceTokenizer()
    words.train_from_iterator(TEXTS, vocab_size=300, show_progress=False)
    plain = folder.with_name(f"{folder.name}-plain")
    tokenizer = BertTokenizerFast(tokenizer_object=words._tokenizer, model_max_length=64)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ends = {} if kind == "bert" else {"pad_token_id": 0, "eos_token_id": 3, "embedding_size": 32}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), max_position_embeddings=64, **sizes, **ends)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        usual = [Pooling(32, pooling_mode=pooling), *([Normalize()] if normalize else [])]
        behind = usual if modules is None else modules()
        whole = [Transformer(str(plain), max_seq_length=48), *behind]
        SentenceTransformer(modules=whole, device="cpu", **said).save(str(folder))
    return folder


def raw_hub_corpus(repo: str = "owner/data") -> dict[str, Any]:
    """A manifest of two hub datasets, as YAML has it."""

    def dataset(name: str, file: str) -> dict[str, Any]:
        hub = {
            "repo": repo,
            "revision": REVISION,
            "files": [file],
            "licence": "undeclared",
            "homepage": "https://h.org",
        }
        return {"id": name, **QUESTIONS, "hub": hub}

    return {
        "name": "tiny",
        "description": "A corpus of a few small files.",
        "source": {"kind": "hub_files"},
        "benchmarks": ["MTEB(eng, v2)"],
        "datasets": [dataset("nq", "data/nq-*.parquet"), dataset("lines", "lines.jsonl.gz")],
    }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """An empty hub that is asked although the tests are offline, a library that does not wait, a cache of its own."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def naive(parts: tuple[Tensor, ...], starts: Tensor, causal: bool, scale: float, grad: Tensor | None = None) -> Any:
    """Attention text by text and head by head, float (T, H, E); its gradients by the parts where ``grad`` is given."""
    query, key, value = parts
    made, grads = torch.empty_like(query), tuple(torch.zeros_like(part) for part in parts)
    for start, end in pairwise(starts.tolist()):
        for head in range(query.shape[1]):
            other = head * key.shape[1] // query.shape[1]
            q, k, v = query[start:end, head], key[start:end, other], value[start:end, other]
            scores = q @ k.T * scale
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
            shares = scores.softmax(-1)
            made[start:end, head] = shares @ v
            if grad is not None:
                by_shares = grad[start:end, head] @ v.T
                by_scores = shares * (by_shares - (by_shares * shares).sum(-1, keepdim=True)) * scale
                grads[0][start:end, head] += by_scores @ k
                grads[1][start:end, other] += by_scores.T @ q
                grads[2][start:end, other] += shares.T @ grad[start:end, head]
    return made if grad is None else grads


@pytest.fixture
def flash_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """CPU kernels for torch's attention over texts of any lengths: plain ones, with what they were given."""
    given: list[tuple[Any, ...]] = []

    def forward(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, _: Tensor, longest: int, *more: Any) -> Any:
        also_longest, causal, scale, window, gqa = (*more, False)[:5]  # torch leaves out what is as by default
        given.append((q.shape, k.shape, starts, longest, also_longest, causal, window, gqa))
        lse = torch.zeros(q.shape[1], len(q), dtype=torch.float32)
        return naive((q, k, v), starts, causal, scale), lse, torch.zeros(2, dtype=torch.uint64)

    def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *more: Any) -> Any:
        starts, causal, scale = more[2], more[6], more[8]
        return naive((q, k, v), starts, causal, scale, grad)

    monkeypatch.setattr(packing, "_flash_works", lambda device, dtype: True)
    with torch.library._scoped_library("torch_attn", "FRAGMENT") as library:
        library.impl("_varlen_attn", forward, "CPU")
        library.impl("_varlen_attn_backward", backward, "CPU")
        yield given
