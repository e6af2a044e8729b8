"""Muon for the matrices inside the layers, AdamW for everything else.

Muon makes the momentum of a matrix orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon). The update is
scaled to the size of Adam's updates (Liu et al., arXiv 2502.16982), so that both use the same learning rate and weight
decay. A matrix is orthogonalised as a whole: the ranks that hold its parts send them to one rank, which sends the parts
of the result back. The matrices are distributed over the ranks, so that all ranks work at the same time.
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.config.schema import Config, ModelConfig
from megagpt.model.parameters import Box
from megagpt.parallel.common import MOMENTS, MOMENTUM

COEFFICIENTS = 3.4445, -4.775, 2.0315
"""Coefficients of Jordan's quintic, which maps singular values from (0, 1] to about 1."""

STEPS = 5
"""Iterations of the quintic."""

SMALLEST_NORM = 1e-7
"""Lower limit of the norm that a matrix is divided by."""

MATRICES = ("linear_qkv.weight", "linear_proj.weight", "linear_fc1.weight", "linear_fc2.weight")
"""Endings of the names of the matrices that Muon updates."""


def is_hidden_matrix(name: str) -> bool:
    """Whether Muon updates the parameter with this global name, that is, whether it is a matrix inside a layer."""
    return name.startswith("decoder.layers.") and name.endswith(MATRICES)


@dataclass(frozen=True)
class Matrix:
    """A matrix inside a layer, and this rank's part of it."""

    name: str
    """Global name."""
    boxes: list[list[Box]]
    """For each tensor-parallel rank, the boxes that its flattened parameter consists of, in order."""
    main: Tensor | None
    """This rank's fp32 elements, with their gradient in `grad`; None if this rank has none."""
    span: tuple[int, int]
    """Range of the elements of `main` in this rank's flattened parameter."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole matrix."""
        return self.boxes[0][0].global_shape


class Muon(torch.optim.AdamW):
    """PyTorch's AdamW for all parameters but the matrices, which Muon updates. Steps are collective over `group`."""

    def __init__(
        self,
        adam: torch.optim.AdamW,
        matrices: list[Matrix],
        group: dist.ProcessGroup,
        tensor_rank: int,
        config: Config,
        device: torch.device,
    ) -> None:
        """Take over the parameter groups of `adam` unchanged. Collective over `group`.

        matrices: the same list on all ranks of `group`; together the ranks hold each element of a matrix exactly once.
        tensor_rank: this rank's index in `Matrix.boxes`.
        """
        dtype = torch.bfloat16 if config.optim.precision == "bf16" else torch.float32
        self.nothing = torch.empty(0, dtype=dtype, device=device)
        super().__init__([self.nothing])
        self.param_groups = adam.param_groups  # the constructor would refuse them: they hold parts of parameters
        self.group, self.optim, self.model = group, config.optim, config.model
        # In each round the ranks get matrices of similar size, so that none waits long for another.
        order = sorted(range(len(matrices)), key=lambda index: -math.prod(matrices[index].shape))
        self.matrices = [matrices[index] for index in order]
        held = [(tensor_rank, matrix.span) for matrix in self.matrices]
        self.held: list[list[tuple[int, tuple[int, int]]]] = [[] for _ in range(group.size())]
        dist.all_gather_object(self.held, held, group=group)
        mains = {id(matrix.main) for matrix in matrices if matrix.main is not None}
        self._settings = {
            id(main): settings for settings in self.param_groups for main in settings["params"] if id(main) in mains
        }

    def state_names(self, parameter: Tensor) -> tuple[str, ...]:
        """Names of the state tensors of one of the optimizer's parameters, without its step count."""
        return (MOMENTUM,) if id(parameter) in self._settings else MOMENTS

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters, and drop the gradients of the matrices. Collective over the group.

        Gradients are divided by `grad_scale` if it is set.
        """
        size = self.group.size()
        for first in range(0, len(self.matrices), size):
            self._update(first, self.matrices[first : first + size])
        super().step()  # it skips the matrices, which have no gradients now

    def _update(self, first: int, matrices: list[Matrix]) -> None:
        """Update `matrices`, one round; `first` is the number of the first. Each rank orthogonalises at most one."""
        rank, size = self.group.rank(), self.group.size()
        sent = [self._direction(matrix) for matrix in matrices]
        sent += [self.nothing] * (size - len(sent))
        owned, held = None, [(0, (0, 0))] * size
        if rank < len(matrices):
            owned, held = matrices[rank], [of_rank[first + rank] for of_rank in self.held]
        lengths = [stop - start for _, (start, stop) in held]
        parts = self._exchange(sent, lengths)
        if owned is not None:
            parts = self._orthogonalized(owned, held, parts)
        updates = self._exchange(parts, [len(part) for part in sent])
        for matrix, update in zip(matrices, updates[: len(matrices)], strict=True):
            if matrix.main is not None:
                settings = self._settings[id(matrix.main)]
                matrix.main.mul_(1 - settings["lr"] * settings["weight_decay"])
                matrix.main.sub_(update.view_as(matrix.main), alpha=settings["lr"])

    def _direction(self, matrix: Matrix) -> Tensor:
        """Update the momentum of this rank's elements by their gradient; returns Nesterov's momentum, 1-D."""
        if matrix.main is None:
            return self.nothing
        gradient, matrix.main.grad = matrix.main.grad, None
        if (scale := getattr(self, "grad_scale", None)) is not None:
            gradient = gradient / scale
        momentum, decay = self.state[matrix.main][MOMENTUM], self.optim.muon_momentum
        momentum.lerp_(gradient, 1 - decay)
        return gradient.lerp(momentum, decay).to(self.nothing.dtype).flatten()

    def _exchange(self, parts: list[Tensor], lengths: list[int]) -> list[Tensor]:
        """Send each rank its part [n]; returns the part that each rank sent to this one, with the given lengths."""
        if self.group.size() == 1:
            return parts
        received = parts[0].new_empty(sum(lengths))
        sizes = [len(part) for part in parts]
        dist.all_to_all_single(received, torch.cat(parts), lengths, sizes, group=self.group)
        return list(received.split(lengths))

    def _orthogonalized(
        self, matrix: Matrix, held: list[tuple[int, tuple[int, int]]], parts: list[Tensor]
    ) -> list[Tensor]:
        """The parts [n] of a matrix's momentum from all ranks (see `held`) -> the same parts of its scaled update."""
        locals_ = [parts[0].new_empty(sum(math.prod(box.shape) for box in boxes)) for boxes in matrix.boxes]
        for (rank, (start, stop)), part in zip(held, parts, strict=True):
            locals_[rank][start:stop] = part
        whole = parts[0].new_empty(matrix.shape)
        for view, local in zip(self._views(matrix, whole), _boxed(matrix, locals_), strict=True):
            view.copy_(local)
        for projection in projections(matrix.name, whole, self.model):
            plane = projection.reshape(-1, whole.shape[1])
            scale = self.optim.muon_rms * math.sqrt(max(plane.shape))
            projection.copy_(orthogonalize(plane).mul_(scale).view_as(projection))
        for view, local in zip(self._views(matrix, whole), _boxed(matrix, locals_), strict=True):
            local.copy_(view)
        return [locals_[rank][start:stop] for rank, (start, stop) in held]

    @staticmethod
    def _views(matrix: Matrix, whole: Tensor) -> list[Tensor]:
        return [box.of(whole) for boxes in matrix.boxes for box in boxes]


def _boxed(matrix: Matrix, locals_: list[Tensor]) -> list[Tensor]:
    """The boxes of all tensor-parallel ranks as views of their flattened parameters."""
    views = []
    for boxes, local in zip(matrix.boxes, locals_, strict=True):
        parts = local.split([math.prod(box.shape) for box in boxes])
        views += [part.view(box.shape) for part, box in zip(parts, boxes, strict=True)]
    return views


def projections(name: str, whole: Tensor, model: ModelConfig) -> list[Tensor]:
    """Views [..., in] of the projections that a layer's weight [out, in] consists of; each is one matrix for Muon.

    They are the queries, keys and values of attention, and the gate and value of a gated activation.
    """
    if name.endswith("linear_qkv.weight"):
        groups = whole.view(model.query_groups, -1, model.head_size, whole.shape[1])
        return [groups[:, :-2], groups[:, -2], groups[:, -1]]
    if name.endswith("linear_fc1.weight") and model.is_gated:
        return list(whole.chunk(2))
    return [whole]


def orthogonalize(matrix: Tensor) -> Tensor:
    """[m, n] -> approximately U V^T of its singular value decomposition, in the same dtype.

    The result's singular values are between 0.7 and 1.2; only values that were far below the largest stay smaller.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=SMALLEST_NORM)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T.contiguous() if tall else x
