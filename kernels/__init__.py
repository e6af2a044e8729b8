"""megagpt's kernels, one folder per op. Import them as `megagpt.kernels`; they do not import the rest of megagpt.

A folder has `reference.py`, the op in plain PyTorch; `kernel.py`, the Triton kernels and the functions that launch
them; `op.py`, the public function and the `torch.library` ops (`torch.ops.megagpt.*`) that use both; and `cases.py`,
the launches for tools/kernel_report.py.
"""
