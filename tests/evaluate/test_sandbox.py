"""Hostile programs are contained and never pass; without a sandbox nothing runs unless that is asked for."""

import hashlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from megagpt.errors import ConfigError
from megagpt.evaluate.sandbox import Limits, SandboxJob, SandboxRunner, Verdict

REFERENCE = "def f(x):\n    return x + 1\n"
TESTS = "assert f(20) == 21\nassert f(-7) == -6\n"
MARK = 61  # an unusual limit, by which the processes of these tests are found
LIMITS = Limits(wall_seconds=3, cpu_seconds=1, memory_mib=256, open_files=MARK)
PATIENT = replace(LIMITS, wall_seconds=60)
"""For programs that are to pass, on a machine that is busy."""

FORGED = {
    "equals everything": "class A:\n    def __eq__(s, o): return True\ndef f(x): return A()",
    "an int that equals everything": "class A(int):\n    def __eq__(s, o): return True\ndef f(x): return A()",
    "exits with success": "import os\nos._exit(0)",
    "exits with success when called": "import os\ndef f(x): os._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "sys.exit when called": "import sys\ndef f(x): sys.exit(0)",
    "prints verdicts": (
        "import os\nfor d in range(3000):\n    try: os.write(d % 30, b'{\"passed\": true}\\n')\n"
        "    except OSError: pass"
    ),
    "verdicts at exit": (
        "import atexit, os\natexit.register(lambda: [os.write(d, b'{\"passed\": true}\\n') for d in (1, 3, 4)])"
    ),
    "walks the frames": (
        "import sys\nframe = sys._getframe()\nwhile frame:\n"
        "    for v in [*frame.f_locals.values(), *frame.f_globals.values()]:\n"
        "        if isinstance(v, list): v.append('passed')\n"
        "        if isinstance(v, dict): v.update(passed=True)\n"
        "    frame = frame.f_back"
    ),
    "patches the runner": (
        "import sys\nm = sys.modules['__main__']\nm.encode = lambda v: True\n"
        "m.run_tests = m.read_answer = lambda *a: True\n"
        "def f(x): return x"
    ),
    "patches builtins": (
        "import builtins\nbuiltins.AssertionError = type('A', (), {})\nbuiltins.compile = print\ndef f(x): 0"
    ),
    "reads its pipes": "import os\nfor d in range(3, 30):\n    try: os.read(d, 10**6)\n    except OSError: pass",
    "deep answers": (
        "import os\nfor d in (3, 4):\n    try: os.write(d, b'[' * 60000 + b'\\n')\n    except OSError: pass"
    ),
    "wrong": "def f(x): return x",
    "empty": "",
    "right once": "calls = []\ndef f(x):\n    calls.append(x)\n    return x + len(calls)",
}

HOSTILE = {
    "endless loop": "while True: pass",
    "sleeps": "import time\ntime.sleep(1000)",
    "ignores signals": (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except Exception: pass\n"
        "while True: signal.pause()"
    ),
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "threads": "import threading, time\nfor _ in range(500): threading.Thread(target=time.sleep, args=(9,)).start()",
    "memory": "b = bytearray(2 ** 30)",
    "memory, slowly": "b = []\nwhile True: b.append(bytes(2 ** 20))",
    "memory of children": (
        "import os, time\nfor _ in range(10):\n    if os.fork() == 0:\n        b = bytearray(b'x') * (120 << 20)\n"
        "        time.sleep(1000)\ntime.sleep(1000)"
    ),
    "disk": "while True:\n    for n in range(100): open(f'/tmp/{n}', 'wb').write(bytes(2 ** 20))",
    "output": "import os\nfor _ in range(1024): os.write(1, bytes(2 ** 20))",
    "output as an answer": "def f(x): return 'x' * (20 << 20)",
    "output into its pipes": (
        "import os\nfor _ in range(64):\n    for d in (3, 4):\n        try: os.write(d, b'x' * 2 ** 20)\n"
        "        except OSError: pass"
    ),
    "orphan": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)\n"
        "    os._exit(0)\n"
        "os._exit(0)"
    ),
    "another program": "import subprocess\nsubprocess.Popen(['/usr/bin/sleep', '98761'], start_new_session=True)",
    "kills everybody": "import os\nfor p in (-1, 1, os.getppid()):\n    try: os.kill(p, 9)\n    except OSError: pass",
}

# Looks and undoes: it must do no harm on the day that a box does not hold.
PROBE = '''
import os, socket
def f(tree, port):
    """Names of what could be done."""
    done = []
    def attempt(name, act):
        try:
            if act(): done.append(name)
        except Exception: pass
    def write(folder):
        os.close(os.open(folder + "/megagpt_probe", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(folder + "/megagpt_probe")
        return True
    attempt("environment", lambda: set(os.environ) - {"PYTHONHASHSEED", "PWD", "LC_CTYPE"})
    for p in ("1", "self", str(os.getppid())):
        attempt("environment of " + p, lambda: "MEGAGPT_SECRET" in open(f"/proc/{p}/environ").read())
    attempt("loopback", lambda: socket.create_connection(("127.0.0.1", port), 1))
    attempt("interfaces", lambda: [name for _, name in socket.if_nameindex() if name != "lo"])
    attempt("read", lambda: open(tree + "/file").read())
    attempt("list", lambda: os.listdir(tree))
    attempt("symlink", lambda: os.symlink(tree, "link") or open("link/file").read())
    attempt("symlink to the root", lambda: os.symlink("/proc/1/root", "root") or open("root" + tree + "/file"))
    for folder in (tree, "/", "/dev", "/dev/shm", "/usr", "/usr/lib", os.path.dirname(os.__file__)):
        attempt("write " + folder, lambda: write(folder))
    for path in ("/etc/passwd", "/etc/shadow", "/home", "/root/.ssh", "/var", "/sys"):
        attempt("see " + path, lambda: os.path.exists(path))
    attempt("other processes", lambda: len([p for p in os.listdir("/proc") if p.isdigit()]) > 3)
    attempt("user", lambda: 0 in os.getresuid() + os.getresgid())
    status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
    attempt("capabilities", lambda: int(status["CapEff"], 16) or int(status["CapPrm"], 16))
    attempt("new privileges", lambda: status["NoNewPrivs"] != "1")
    attempt("limits", lambda: __import__("resource").setrlimit(7, (4096, 4096)) is None)
    return done
'''


@pytest.fixture(scope="module")
def runner() -> SandboxRunner:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    runner = SandboxRunner(limits=PATIENT)
    alone = "import os\ndef f(): return os.getpid() < 10 and len([p for p in os.listdir('/proc') if p.isdigit()]) < 4"
    assert runner.run(SandboxJob(alone, alone, ("f",), "assert f()")).passed, (
        "no box: the hostile programs must not run"
    )
    return runner


@pytest.fixture(scope="module")
def strict(runner) -> SandboxRunner:
    """For programs that are not to pass; only where `runner` has seen that there are boxes."""
    return SandboxRunner(limits=LIMITS)


@pytest.fixture
def tree(tmp_path) -> Path:
    """A folder outside of the boxes that anybody who reached it could change."""
    folder = tmp_path / "tree"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "file").write_text("secret")
    (folder / "file").chmod(0o666)
    return folder


def left() -> list[str]:
    """Command lines of processes that these tests started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode() if entry.name.isdigit() else ""
        except OSError:
            continue
        found += [line] if f'"RLIMIT_NOFILE": {MARK},' in line or "sleep 98761" in line else []
    return found


def check_nothing_left() -> None:
    deadline = time.monotonic() + 60
    while left() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left()


def test_right_programs_pass(runner):
    assert runner.run(SandboxJob(REFERENCE, REFERENCE, ("f",), TESTS)).passed
    noisy = "import sys, os\nprint('x'); sys.stderr.write('y'); os.write(1, b'z')\n" + REFERENCE
    assert runner.run(SandboxJob(noisy, REFERENCE, ("f",), TESTS)) == Verdict(True, "", pytest.approx(30, abs=30))


@pytest.mark.parametrize("name", FORGED)
def test_a_pass_cannot_be_forged(strict, name):
    verdict = strict.run(SandboxJob(FORGED[name], REFERENCE, ("f",), TESTS))
    assert not verdict.passed
    assert verdict.reason
    assert verdict.seconds < 10 * LIMITS.wall_seconds  # of the 1000 s that some would take


def test_swallowed_exceptions_do_not_pass_a_program_that_has_ended(runner):
    tests = "try:\n    f(1)\nexcept Exception:\n    pass\n"
    assert not runner.run(SandboxJob("import os\ndef f(x): os._exit(0)", REFERENCE, ("f",), tests)).passed
    assert runner.run(SandboxJob("def f(x): raise ValueError", REFERENCE, ("f",), tests)).passed


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program_ends_in_its_limit(strict, tree, name):
    before = hashlib.sha256((tree / "file").read_bytes()).digest()
    verdict = strict.run(SandboxJob(HOSTILE[name], REFERENCE, ("f",), TESTS))
    assert not verdict.passed
    assert verdict.reason
    assert verdict.seconds < 10 * LIMITS.wall_seconds  # of the 1000 s that some would take
    check_nothing_left()
    assert [path.name for path in tree.iterdir()] == ["file"]
    assert hashlib.sha256((tree / "file").read_bytes()).digest() == before
    assert stat.S_IMODE(tree.stat().st_mode) == 0o777


def test_a_program_sees_and_reaches_nothing(runner, tree, monkeypatch):
    monkeypatch.setenv("MEGAGPT_SECRET", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = runner.run(
            SandboxJob(PROBE, REFERENCE, ("f",), f"done = f({str(tree)!r}, {port})\nassert not done, done")
        )
    assert found.passed, found.reason
    assert (tree / "file").read_text() == "secret"


def test_classes_of_the_tests_reach_the_program(runner):
    node = "class Node:\n    def __init__(self, v): self.v, self.next = v, self\n"
    program = node + "def f(node):\n    assert type(node) is Node\n    return node.next.next.v\n"
    assert runner.run(SandboxJob(program, node + "def f(node): 0", ("f",), "assert f(Node(3)) == 3")).passed


def test_works_without_root():
    if os.geteuid() != 0:
        pytest.skip("all other tests run without root here")
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    python, root = Path("/usr/bin/python3"), Path(__file__).parents[2]
    if not python.exists() or not all(parent.stat().st_mode & stat.S_IXOTH for parent in root.parents):
        pytest.skip("another user could not run the project here")
    program = (
        "import sys\nif sys.version_info < (3, 11): sys.exit('old')\n"
        "from megagpt.evaluate.sandbox import SandboxJob, SandboxRunner\nfrom megagpt.errors import ConfigError\n"
        "try: runner = SandboxRunner()\nexcept ConfigError as error: sys.exit(f'old {error}')\n"
        f"assert runner.run(SandboxJob({REFERENCE!r}, {REFERENCE!r}, ('f',), {TESTS!r})).passed\n"
        f"tests = 'done = f(\"{root}\", 1)\\nassert not done, done'\n"
        f"probe = runner.run(SandboxJob({PROBE!r}, {REFERENCE!r}, ('f',), tests))\n"
        "assert probe.passed, probe\n"
    )
    done = subprocess.run(
        [python, "-c", program],
        user=65534,
        group=65534,
        extra_groups=[],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    if done.returncode == 1 and done.stderr.startswith("old"):
        pytest.skip(f"users cannot make boxes here: {done.stderr}")
    assert done.returncode == 0, done.stderr


def test_refuses_without_bubblewrap(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"apt-get install bubblewrap.*sandbox=none"):
        SandboxRunner()
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(ConfigError, match=r"No permissions to create new namespace.*user namespaces.*sandbox=none"):
        SandboxRunner()
    assert SandboxRunner("none").run(SandboxJob(REFERENCE, REFERENCE, ("f",), TESTS)).passed
    with pytest.raises(ConfigError, match="must be bwrap, or none"):
        SandboxRunner("off")


def test_wrong_limits_are_refused():
    with pytest.raises(ConfigError, match="wall_seconds is 0"):
        Limits(wall_seconds=0)


def test_interpreter_is_the_one_of_this_process(runner):
    program = "import sys\ndef f(): return sys.version"
    assert runner.run(SandboxJob(program, program, ("f",), f"assert f() == {sys.version!r}")).passed
