"""The devices that a run can be planned for, from `devices.yaml` and from the user's file."""

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from megagpt.config.nearest import nearest
from megagpt.config.regular import require_file
from megagpt.errors import ConfigError
from megagpt.train.flops import PEAK_TFLOPS

GIB = 2**30
GB = 1e9


@dataclass(frozen=True)
class Device:
    """One GPU in its node; see `devices.yaml` for the origin of every number."""

    name: str
    memory_gib: float
    """Memory that a process can allocate, GiB."""
    peak_tflops: float
    """Dense TFLOP/s in bf16."""
    peak_fp32_tflops: float
    """TFLOP/s in fp32, outside the tensor cores."""
    memory_gbs: float
    """Memory bandwidth, GB/s."""
    intra_node_gbs: float
    """Link to the other GPUs of the node, GB/s in one direction."""
    inter_node_gbs: float
    """Link to other nodes, GB/s in one direction."""
    host_gbs: float
    """Link to the host's memory, GB/s in one direction."""
    gpus_per_node: int
    reserved_gib: float
    """Memory of the CUDA context, workspaces and NCCL, GiB."""
    fragmentation: float
    """Share of the memory that the allocator cannot use."""
    matmul: float
    """Fraction of the peak that a large matrix product reaches."""
    matmul_half_size: float
    """Size of a dimension at which a matrix product reaches half of `matmul`."""
    memory: float
    """Fraction of the memory bandwidth that is reached."""
    attention: float
    """Fraction of the peak that fused attention reaches."""
    intra_node: float
    """Fraction of the link inside a node that collectives reach."""
    inter_node: float
    """Fraction of the link between nodes that is reached."""
    host: float
    """Fraction of the host's link that is reached."""
    overhead: float
    """Additional time for operations that are not modelled, as a fraction of the modelled computing time."""

    @property
    def usable_bytes(self) -> float:
        """Bytes that tensors can use."""
        return (self.memory_gib * (1 - self.fragmentation) - self.reserved_gib) * GIB

    @property
    def memory_rate(self) -> float:
        """Memory bandwidth of element-wise kernels, bytes/s."""
        return self.memory_gbs * self.memory * GB

    def peak_flops(self, itemsize: int) -> float:
        """Peak FLOP/s with numbers of `itemsize` bytes: 2 or 4."""
        return (self.peak_tflops if itemsize == 2 else self.peak_fp32_tflops) * 1e12

    def link_rate(self, ranks_per_node: int, nodes: int) -> float:
        """Bytes/s that each rank sends in a ring over `nodes` nodes with `ranks_per_node` ranks on each.

        NCCL runs one ring per network adapter of a node, so the bandwidths of the node's adapters add up.
        """
        inside = self.intra_node_gbs * self.intra_node * GB
        between = self.inter_node_gbs * self.inter_node * GB * ranks_per_node
        if nodes == 1:
            return inside
        return min(inside, between) if ranks_per_node > 1 else between


def load_devices(path: str | Path | None = None) -> dict[str, Device]:
    """{name: device} of `devices.yaml`, with the file at `path` adding devices or changing fields.

    Raises ConfigError that names the file, the device, and the field that is missing, unknown or not a positive number.
    """
    entries = _read(resources.files(__package__).joinpath("devices.yaml"))
    defaults = entries.pop("defaults")
    if path is not None:
        for name, values in _read(Path(path)).items():
            entries[name] = {**entries.get(name, defaults), **values} if isinstance(values, dict) else values
    return {name: _device(path or "devices.yaml", name, values) for name, values in entries.items()}


def find_device(name: str, devices: dict[str, Device]) -> Device:
    """The device called `name`; h100, H100 and h100-80 all mean H100-80. Raises ConfigError for an unknown name."""
    wanted = name.upper()
    found = [
        device for device in devices.values() if wanted in (device.name.upper(), device.name.upper().split("-")[0])
    ]
    if found:
        return found[0]
    close = nearest(wanted, list(devices))
    hint = f"did you mean {close}? " if close else ""
    raise ConfigError(
        f"--device {name} is not known; {hint}the devices are {', '.join(devices)} (--devices adds others)"
    )


def _read(path: Any) -> dict[str, Any]:
    try:
        values = yaml.safe_load((require_file(path) if isinstance(path, Path) else path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a readable list of devices: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must map device names to their fields, as megagpt/plan/devices.yaml does")
    return values


def _known_peaks(name: str) -> dict[str, float]:
    """Peak TFLOP/s of this kind of device; the kind is the name up to the first dash, such as H100 of H100-80."""
    bf16, fp32 = PEAK_TFLOPS.get(name.upper().split("-")[0], (None, None))
    peaks = {"peak_tflops": bf16, "peak_fp32_tflops": fp32}
    return {field: peak for field, peak in peaks.items() if peak is not None}


def _device(path: Any, name: str, values: Any) -> Device:
    fields = {field.name for field in dataclasses.fields(Device)} - {"name"}
    given = _known_peaks(name) | (values if isinstance(values, dict) else {})
    problems = [f"lacks {field}" for field in sorted(fields - set(given))]
    problems += [f"has the unknown field {field}" for field in sorted(map(str, set(given) - fields))]
    problems += [
        f"has {field}={value!r}, which is not a number above 0"
        for field, value in given.items()
        if field in fields and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0)
    ]
    if problems:
        raise ConfigError(f"{path}: the device {name} {', '.join(problems)}: see megagpt/plan/devices.yaml")
    return Device(name, **given)
