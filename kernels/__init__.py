"""megagpt's kernels, one folder an op. Imported as `megagpt.kernels`; nothing here imports the rest of megagpt.

A folder holds `reference.py`, the op in plain PyTorch; `kernel.py`, the same in Triton, with how it is launched; and
`op.py`, the public function and the `torch.library` ops (`torch.ops.megagpt.*`) that join the two.
"""
