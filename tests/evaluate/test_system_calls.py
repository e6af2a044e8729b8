"""The filter of system calls: its list against the kernel's headers, its program by a second reading, and in a box."""

import errno
import platform
import re
import shutil
import struct
import subprocess

import pytest

from megagpt.errors import ConfigError
from megagpt.evaluate.sandbox import Limits, SandboxJob, SandboxRunner
from megagpt.evaluate.system_calls import system_call_filter

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "arm": 0x40000028}
ALLOW, KILL, ABSENT = 0x7FFF0000, 0x80000000, 0x00050000 | errno.ENOSYS
CLOSED = """
unshare setns mount umount2 pivot_root chroot open_tree move_mount fsopen fsmount mount_setattr shmget shmat
shmctl msgget semget mq_open memfd_create memfd_secret socket bind listen connect accept accept4 setsockopt
clone3 execveat ptrace process_vm_readv process_vm_writev pidfd_open pidfd_getfd kcmp bpf perf_event_open
userfaultfd io_uring_setup keyctl add_key request_key vmsplice splice tee inotify_init1 fanotify_init signalfd4
timerfd_create open_by_handle_at name_to_handle_at mknodat mkdirat linkat symlinkat renameat2 unlinkat ftruncate
fallocate fchmod fchownat setxattr prctl personality init_module finit_module kexec_load reboot swapon quotactl
remap_file_pages mlock mlock2 mbind set_mempolicy landlock_create_ruleset seccomp timer_create
"""
NEEDED = """
read write openat close mmap munmap mprotect brk futex exit exit_group rt_sigaction rt_sigprocmask execve
clock_gettime getrandom getpid lseek newfstatat ppoll epoll_create1 pipe2 setuid setgid setgroups prlimit64
"""


def numbers(machine: str) -> dict[str, int]:
    """The kernel's own, from its headers (package linux-libc-dev)."""
    header = "asm/unistd_64.h" if machine == "x86_64" else "asm-generic/unistd.h"
    if shutil.which("gcc") is None or platform.machine() != "x86_64":
        pytest.skip("needs gcc and the headers of x86_64")
    # 64-bit machines with the generic numbers, as arch/arm64/include/uapi/asm/unistd.h has it.
    source = "".join(
        f"#define __ARCH_WANT_{name}\n" for name in ("RENAMEAT", "NEW_STAT", "SET_GET_RLIMIT", "SYS_CLONE3")
    )
    made = subprocess.run(
        ["gcc", "-E", "-dM", "-"], input=f"{source}#include <{header}>\n", capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"the kernel's headers are not installed: {made.stderr}")
    defined = dict(re.findall(r"#define (\w+) (\w+)$", made.stdout, re.MULTILINE))

    def value(text: str) -> int | None:
        return int(text) if text.isdigit() else value(defined[text]) if text in defined else None

    found = {name[5:]: value(text) for name, text in defined.items() if name.startswith("__NR_")}
    return {name: number for name, number in found.items() if number is not None}


def verdict(program: bytes, machine: str, number: int, *arguments: int) -> int:
    """What the kernel's interpreter of classic BPF would say (linux/bpf_common.h), read anew."""
    data = struct.pack("=IIQ6Q", number, AUDIT_ARCH[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    code, at, accumulator = list(struct.iter_unpack("=HBBI", program)), 0, 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        if operation == 0x20:  # ld [k]
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x54:  # and #k
            accumulator &= value
        elif operation == 0x15:  # jeq #k
            at += yes if accumulator == value else no
        else:
            assert operation == 0x06  # ret #k
            return value


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_list_says_what_it_seems_to(machine):
    program, known = system_call_filter(machine), numbers(machine)
    names = {number: name for name, number in known.items()}
    allowed = {names[number] for number in range(600) if verdict(program, machine, number) == ALLOW}
    assert not allowed & set(CLOSED.split())
    assert set(NEEDED.split()) <= allowed
    assert len(program) // 8 <= 4096  # BPF_MAXINSNS
    for name in ("fork", "vfork", "clone", "socketpair", "ioctl"):
        assert name not in allowed  # without arguments
    for number in (*range(600), 0x40000000, 0x40000000 + known["read"], 2**32 - 1):
        if names.get(number) not in allowed:
            assert verdict(program, machine, number) == ABSENT
    for other in AUDIT_ARCH.keys() - {machine}:  # such as int 0x80 in a program of 64 bits
        assert {verdict(program, other, number) for number in range(600)} == {KILL}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_arguments_are_checked(machine):
    program, known = system_call_filter(machine), numbers(machine)
    thread = 0x3D0F00  # what glibc starts threads with
    assert verdict(program, machine, known["clone"], thread) == ALLOW
    for flags in (
        17,
        0x4100 | 17,
        0x01200011,
        0x10000000 | 17,
        thread | 0x10000000,
        thread | 0x20000,
        thread | 0x40000000,
    ):
        assert verdict(program, machine, known["clone"], flags) == ABSENT
    families = [family for family in range(64) if verdict(program, machine, known["socketpair"], family) == ALLOW]
    assert families == [1]
    assert verdict(program, machine, known["ioctl"], 0, 0x5401) == ALLOW  # isatty
    assert verdict(program, machine, known["ioctl"], 0, 0x5412) == ABSENT  # TIOCSTI, CVE-2017-5226


def test_other_machines_are_refused():
    with pytest.raises(ConfigError, match=r"supports x86_64 and aarch64, but this machine is riscv64: .*sandbox=none"):
        system_call_filter("riscv64")


@pytest.fixture(scope="module")
def run():
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    runner = SandboxRunner(limits=Limits(wall_seconds=60, memory_mib=256))

    def run(program: str, tests: str) -> str:
        return runner.run(SandboxJob(program, "", ("f",), tests)).reason

    return run


def test_closed_calls_are_absent_in_a_box(run):
    """As root and as any other user: the tests are run as both."""
    known = numbers(platform.machine())
    closed = {name: known[name] for name in [*CLOSED.split(), "fork", "vfork"] if name in known}
    program = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "def f(number):\n    result = libc.syscall(number, 0, 0, 0, 0, 0, 0)\n    return result, ctypes.get_errno()\n"
    )
    tests = f"found = {{name: f(number) for name, number in {closed!r}.items()}}\n"
    tests += (
        f"wrong = {{name: got for name, got in found.items() if got != (-1, {errno.ENOSYS})}}\nassert not wrong, wrong"
    )
    assert run(program, tests) == ""


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("fork", "os.fork()"),
        ("a user namespace", "libc(l.unshare(0x10000000))"),
        ("a program of its own", "subprocess.run(['/usr/bin/true'])"),
        ("a memfd", "os.memfd_create('x')"),
        ("POSIX shared memory", "shared_memory.SharedMemory(create=True, size=99)"),
        ("System V shared memory", "libc(l.shmget(0, 2 ** 20, 0o1600))"),
        ("a file", "open('/tmp/x', 'w')"),
        ("a folder", "os.mkdir('/tmp/x')"),
        ("an internet socket", "socket.socket()"),
        ("VSOCK", "socket.socket(40, socket.SOCK_STREAM)"),
        ("netlink", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)"),
        ("large socket buffers", "socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 ** 24)"),
    ],
)
def test_what_a_program_cannot_make(run, name, act):
    program = (
        "import ctypes, os, socket, subprocess\nfrom multiprocessing import shared_memory\n"
        "l = ctypes.CDLL(None, use_errno=True)\n"
        "def libc(result):\n    if result < 0: raise OSError(ctypes.get_errno(), 'no')\n    return result\n"
        f"def f():\n    {act}\n    return 'made it'\n"
    )
    tests = "try:\n    made = f()\nexcept OSError as error:\n    made = error.errno\nassert made in (30, 38), made"
    assert run(program, tests) == ""


def test_what_programs_need_works(run):
    program = """
import asyncio, concurrent.futures, decimal, hashlib, random, re, sqlite3, sys, time

async def soon(x):
    await asyncio.sleep(0.001)
    return x + 1

def f(x):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        squares = list(pool.map(lambda n: n * n, range(x)))
    table = sqlite3.connect(":memory:")
    return [
        asyncio.run(soon(x)), squares, table.execute("select 1 + 1").fetchone(), hashlib.md5(b"x").hexdigest(),
        str(decimal.Decimal(1) / 3)[:5], sorted(re.findall("[a-z]", "bXa")), random.Random(0).random() < 1,
        open("/proc/self/status").readline()[:4], sys.stdin.isatty(), time.time() > 0,
    ]
"""
    want = [5, [0, 1, 4, 9], (2,), "9dd4e461268c8034f5c8564e155c67a6", "0.333", ["a", "b"], True, "Name", False, True]
    assert run(program, f"got = f(4)\nassert got == {want}, got") == ""


def test_kernel_memory_beside_the_address_space_is_small(run):
    """Sockets hold what is written into them: as many as there may be open files, each as much as by default."""
    program = (
        "import socket\ndef f():\n    held, kept = 0, []\n    try:\n        while True:\n"
        "            a, b = socket.socketpair()\n            kept += [a, b]\n            a.setblocking(False)\n"
        "            try:\n                while True: held += a.send(bytes(2 ** 16))\n"
        "            except BlockingIOError: pass\n"
        "    except OSError: return held\n"
    )
    assert run(program, "held = f()\nassert 0 < held < 64 * 2 ** 20, held") == ""


def test_the_filter_is_on(run):
    program = "def f(): return [line for line in open('/proc/self/status') if line.startswith('Seccomp:')]"
    assert run(program, "assert f() == ['Seccomp:\\t2\\n'], f()") == ""
