"""Says about how long a target of the Makefile will take on this machine, from its speed in matrix products.

python tools/demo_time.py train --ranks 2
"""

import argparse
import multiprocessing
import time

from megagpt.errors import ConfigError
from megagpt.log import run_tool

REFERENCE = 124e9
"""Floating-point operations a second, in the products below, of the core that WORK is expressed in."""

WORK = {"train": 700.0, "code": 1140.0, "chatgpt": 1025.0}
"""Seconds that one such core would need for each target, without installation: the times on two quiet cores
(docs/benchmarks/performance.md), which together made 275e9 operations a second."""

SHAPE = (512, 256, 1024)
"""Rows, inner size and columns of a product, as in the demo's feed-forward layers."""

SECONDS = 1.0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=list(WORK), help="target of the Makefile")
    parser.add_argument("--ranks", type=int, default=2, help="processes that train")
    parser.add_argument("--need-gpu", action="store_true", help="refuse to go on where PyTorch finds no GPU")
    options = parser.parse_args()
    if options.need_gpu:
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("DEVICE=cuda needs a GPU that PyTorch can use, and it finds none: leave DEVICE out")
        print(f"{torch.cuda.get_device_name()}: docs/benchmarks/performance.md has the planned times")
        return
    if options.target is None or options.ranks < 1:
        parser.error("name a target, and at least 1 for --ranks")
    rate = machine_rate(options.ranks)
    seconds = WORK[options.target] * REFERENCE / rate
    print(
        f"make {options.target} takes about {describe(seconds)} from here on this machine: {options.ranks} processes at"
        f" {rate / 1e9:.0f} GFLOP/s now. Other work on the machine makes it longer."
    )


def describe(seconds: float) -> str:
    """Seconds in words, rounded: to minutes from two minutes on."""
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def machine_rate(ranks: int) -> float:
    """Floating-point operations a second of `ranks` processes together, one thread each, at this moment."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(ranks) as pool:
        return sum(pool.map(process_rate, [SECONDS] * ranks, chunksize=1))


def process_rate(seconds: float) -> float:
    """Floating-point operations a second of this process in matrix products, over so many seconds of the clock."""
    import torch

    torch.set_num_threads(1)
    rows, inner, columns = SHAPE
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    left @ right  # the first product also loads libraries
    products, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        left @ right
        products += 1
    return 2 * rows * inner * columns * products / spent


if __name__ == "__main__":
    run_tool(main)
