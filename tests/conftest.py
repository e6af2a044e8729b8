"""Settings shared by all tests."""

import os
import random
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
# Ranks look up each other's names when they connect, and a name server that does not answer costs 5 s each time.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")

import torch
from hypothesis import settings

settings.register_profile("busy", deadline=None)  # seconds of one example say more of the machine than of the code
settings.load_profile("busy")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before kernels are imported
ROOT = Path(__file__).parent.parent
# For spawned ranks to find test modules (as tests.*), `dist`, and the command lines.
FOLDERS = [str(ROOT / folder) for folder in ("tests", "tests/kernels", "tools", "")]
sys.path += [folder for folder in FOLDERS if folder not in sys.path]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data sets beside the project; tests that need them are skipped where they are absent."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the data sets are not beside the project (../shared/data)")
    return path


@pytest.fixture(scope="session")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a tiny run with warm-up, batch ramp and dropout, on a corpus that it passes through several times."""
    import numpy as np

    from megagpt.data.indexed import write_corpus
    from megagpt.data.tokenizer import train_tokenizer

    folder: Path = tmp_path_factory.mktemp("corpus")
    words = random.Random(0)
    texts = [" ".join(words.choices(["to", "be", "or", "not", "that", "is"], k=40)) for _ in range(120)]
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.save(folder / "tokenizer.json")
    documents = [np.array([*tokenizer.encode(text), tokenizer.end_of_text_id], np.int32) for text in texts]
    lengths = np.array([len(document) for document in documents], np.int32)
    about = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    write_corpus(folder / "text", [(lengths, np.concatenate(documents))], len(documents), about)
    return [
        "model=tiny",
        f"model.vocab_size={tokenizer.vocab_size}",
        "model.sequence_length=32",
        "model.num_layers=4",
        "model.hidden_dropout=0.1",
        "model.attention_dropout=0.1",
        f"data.tokenizer={folder}/tokenizer.json",
        f"data.corpora=[{{path: {folder}/text}}]",
        "data.split=[0.8,0.1,0.1]",
        "optim.lr=1e-3",
        "optim.precision=fp32",
        "optim.global_batch_size=16",
        "optim.ramp_start=8",
        f"optim.ramp_tokens={32 * 8 * 6}",
        f"optim.warmup_tokens={32 * 8 * 5}",
        f"optim.decay_tokens={32 * 16 * 18}",
        "checkpoint.interval=5",
        "stage.eval_interval=0",
        "stage.sample_prompts=[]",
    ]


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """Names of the Triton kernels launched so far, in order."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    names = []
    for kind in (InterpretedFunction, JITFunction):

        def run(self, *args, _run=kind.run, **kwargs):
            names.append(self.fn.__name__)
            return _run(self, *args, **kwargs)

        monkeypatch.setattr(kind, "run", run)
    return names


class FailuresAtOnce:
    """Names each failed test when it fails: a run that is cut short still says what it found."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message.partition("\n")[0][:200] if crash else ""
            self.config.get_terminal_writer().line(f"\nFAILED {report.when} of {report.nodeid}: {reason}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="run tests marked so, and all cases of some others")


@pytest.fixture(scope="session")
def thorough(pytestconfig: pytest.Config) -> bool:
    """Whether a test of many cases tries all of them, as `make test-thorough` does, and not a part."""
    return pytestconfig.getoption("--thorough")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # pytest-xdist tells its controller of what workers saw
        config.pluginmanager.register(FailuresAtOnce(config))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give slow tests time on a busy machine, unless they say how much they need, and begin with their files.

    What waits for time-outs and for Slurm then does so beside what computes, and no long test is left for the end.
    """
    if not config.getoption("--thorough"):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="one of `make test-thorough`"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    for item in slow:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))
    files = {item.path for item in slow}
    items.sort(key=lambda item: item.path not in files)
