"""The filter of system calls for boxes of `megagpt.evaluate.sandbox`, as a program for the kernel.

It lists the allowed calls, so all others are forbidden, also calls of future kernels: namespaces and mounts, shared
memory of System V and POSIX, memfds, changes to files, sockets of every address family (except pairs of Unix sockets
with default buffer sizes, by which asyncio wakes itself), keys, tracing, io_uring, bpf. A program may start threads but
no processes, so the limits of one process are the limits of the box. The filter applies to every user, including root,
and cannot be removed (seccomp(2)).
"""

import struct

from megagpt.errors import ConfigError

_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""{machine: kernel constant AUDIT_ARCH_... of linux/audit.h}, in the order of the columns of `_NUMBERS`."""

_NUMBERS = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
preadv2 327 286, pwritev2 328 287, lseek 8 62, close 3 57, close_range 436 436, open 2 -, openat 257 56,
openat2 437 437, stat 4 -, lstat 6 -, fstat 5 80, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48,
faccessat2 439 439, getdents64 217 61, readlink 89 -, readlinkat 267 78, fadvise64 221 223, fcntl 72 25, dup 32 23,
dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, getcwd 79 17, chdir 80 49, fchdir 81 50, mmap 9 222, munmap 11 215,
mprotect 10 226, mremap 25 216, madvise 28 233, mincore 27 232, brk 12 214, membarrier 324 283, execve 59 221,
exit 60 93, exit_group 231 94, wait4 61 260, waitid 247 95, kill 62 129, tkill 200 130, tgkill 234 131, getpid 39 172,
getppid 110 173, gettid 186 178, getpgid 121 155, getpgrp 111 -, getsid 124 156, setsid 112 157, getuid 102 174,
geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148, getresgid 120 150, getgroups 115 158,
setuid 105 146, setgid 106 144, setgroups 116 159, prlimit64 302 261, getrlimit 97 163, setrlimit 160 164,
getrusage 98 165, times 100 153, sysinfo 99 179, uname 63 160, getpriority 140 141, setpriority 141 140,
sched_yield 24 124, sched_getaffinity 204 123, sched_setaffinity 203 122, sched_getparam 143 121,
sched_getscheduler 145 120, sched_get_priority_max 146 125, sched_get_priority_min 147 126, getcpu 309 168,
getrandom 318 278, arch_prctl 158 -, futex 202 98, set_robust_list 273 99, get_robust_list 274 100,
set_tid_address 218 96, rseq 334 293, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, restart_syscall 219 128,
pause 34 -, alarm 37 -, setitimer 38 103, getitimer 36 102, nanosleep 35 101, clock_nanosleep 230 115,
clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -, poll 7 -, ppoll 271 73, select 23 -,
pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22,
epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19, sendto 44 206, recvfrom 45 207, sendmsg 46 211, recvmsg 47 212,
shutdown 48 210, getsockname 51 204, getpeername 52 205, getsockopt 55 209, clone 56 220, socketpair 53 199,
ioctl 16 29
"""
"""Allowed system calls: name, number on x86_64, number on aarch64 ("-" if there is none), from asm/unistd.h."""

_CLONE_THREAD, _CLONE_NEW = 0x00010000, 0x7E020000  # _CLONE_NEW: the flags of all kinds of namespaces
_AF_UNIX = 1
_TCGETS, _FIONBIO, _FIONREAD, _FIONCLEX, _FIOCLEX = 0x5401, 0x5421, 0x541B, 0x5450, 0x5451
_CHECKED = {
    "clone": (0, _CLONE_THREAD | _CLONE_NEW, (_CLONE_THREAD,)),
    "socketpair": (0, 0xFFFFFFFF, (_AF_UNIX,)),
    "ioctl": (1, 0xFFFFFFFF, (_TCGETS, _FIONBIO, _FIONREAD, _FIONCLEX, _FIOCLEX)),
}
"""{call: (index of an argument, bit mask, allowed values of the masked argument)}."""

_LOAD, _AND, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06  # linux/bpf_common.h
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # bytes into struct seccomp_data (linux/seccomp.h)
_ALLOW, _KILL, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050000 | 38
"""The filter's verdicts. After ENOSYS, C libraries try an older call, such as clone instead of clone3."""


def system_call_filter(machine: str) -> bytes:
    """The filter for `machine` in the format of bubblewrap's `--seccomp`: instructions of classic BPF.

    Raises ConfigError for a machine that is not in `_MACHINES`.
    """
    if machine not in _MACHINES:
        raise ConfigError(
            f"the sandbox supports {' and '.join(_MACHINES)}, but this machine is {machine}: evaluate on a supported "
            "machine, or set sandbox=none to run programs that nobody has read without protection"
        )
    column = list(_MACHINES).index(machine)
    code = [_instruction(_LOAD, _MACHINE), *_if_not(_MACHINES[machine], [_instruction(_RETURN, _KILL)])]
    code.append(_instruction(_LOAD, _NUMBER))
    for entry in _NUMBERS.split(","):
        name, *numbers = entry.split()
        if numbers[column] != "-":
            code += _if(int(numbers[column]), _checks(name))
    return b"".join([*code, _instruction(_RETURN, _ENOSYS)])


def _checks(name: str) -> list[bytes]:
    """Instructions for an allowed call; they always end with a verdict."""
    if name not in _CHECKED:
        return [_instruction(_RETURN, _ALLOW)]
    index, bits, values = _CHECKED[name]
    code = [_instruction(_LOAD, _ARGUMENTS + 8 * index), _instruction(_AND, bits)]  # the lower half of 64 bits
    for value in values:
        code += _if(value, [_instruction(_RETURN, _ALLOW)])
    return [*code, _instruction(_RETURN, _ENOSYS)]


def _if(value: int, then: list[bytes]) -> list[bytes]:
    """Run `then` if the loaded word equals `value`, else skip it."""
    return [_instruction(_JUMP_IF_EQUAL, value, no=len(then)), *then]


def _if_not(value: int, then: list[bytes]) -> list[bytes]:
    return [_instruction(_JUMP_IF_EQUAL, value, yes=len(then)), *then]


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """struct sock_filter of linux/filter.h; yes, no: number of instructions to skip if the test holds or fails."""
    return struct.pack("=HBBI", code, yes, no, value)
