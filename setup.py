"""Which folders are installed as what: `kernels/` and `configs/` as megagpt.kernels and megagpt.configs.

The rest of what a package says of itself is in pyproject.toml.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["megagpt", "megagpt.*"]),
        "megagpt.configs",
        "megagpt.kernels",
        *(f"megagpt.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"megagpt.configs": "configs", "megagpt.kernels": "kernels"},
    package_data={
        "megagpt.configs": ["*.yaml", "*/*.yaml"],
        "megagpt.evaluate": ["*.css", "*.js"],
        "megagpt.evaluate.in_context": ["published.json"],
        "megagpt.evaluate.in_context.tasks": ["*.yaml", "*/*.yaml"],
        "megagpt.plan": ["devices.yaml"],
        "megagpt.serve": ["page/*"],
    },
)
