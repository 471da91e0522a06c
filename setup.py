"""Packaging of vmae2_ds: metadata, bounds a user needs, extras; what was tested stands in constraints.txt.

`ds_configs/` lies at the top of the checkout, where people look for it, and is installed as `vmae2_ds/ds_configs`, so
that a name such as `zero3` is also found from a wheel.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "vmae2_ds" / "__init__.py").read_text(), re.MULTILINE)
README = HERE / "README.md"

REQUIRES = [
    "torch>=2.6",  # get_total_norm, safe_globals
    "torchvision>=0.21",
    "deepspeed>=0.19.8",  # 0.19.3 lacks what engine/step.py takes the norm with: docs/DEEPSPEED.md
    "timm>=1.0.9,<2",
    "numpy>=1.26",
    "av>=12",
    "fsspec>=2023.1",  # tar shards behind URLs; torch needs it as well
    "webdataset>=0.2.86,<2",
    'tomli>=2; python_version < "3.11"',
    'decord>=0.6,<0.7; platform_machine == "x86_64" or platform_machine == "AMD64"',  # no wheels elsewhere: reader=pyav
    "pydantic>=2.7,<3",  # 2.7: use_attribute_docstrings
    "tyro>=1.0,<2",
    "safetensors>=0.4",
    "tensorboard>=2.15",
    "matplotlib>=3.8",
    "pillow>=10",
    "jinja2>=3.1",
    "rich>=13",
    "psutil>=5.9",
]

TRACKERS = {
    "wandb": ["wandb>=0.31,<1"],
    "mlflow": ["mlflow-skinny>=3.17,<4"],  # the client without the server's packages, which are ten times as large
    "comet": ["comet_ml>=3.58,<4"],
}
EXTRAS = {
    **TRACKERS,
    "flash": ["flash-attn>=2.6,<3"],
    "torchcodec": ["torchcodec>=0.5"],  # and FFmpeg's shared libraries
    "hf": ["transformers>=4.48"],
    "bench": ["transformers>=4.48"],
    "dev": [
        "hypothesis>=6.100",
        "mypy>=1.11",
        "pre-commit>=3.5",
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.5",
        "ruff>=0.6",
        "setuptools>=64",  # the packaging test builds a wheel without fetching anything
        "wheel",
        *(package for client in TRACKERS.values() for package in client),
    ],
}

setup(
    name="vmae2_ds",
    version=VERSION[1] if VERSION else "0",
    description="VideoMAE V2 pre-training on DeepSpeed: dual masking, ZeRO, and tools that make scaling predictable",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    author="vmae2_ds developers",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    packages=[*find_packages(include=["vmae2_ds", "vmae2_ds.*"]), "vmae2_ds.ds_configs"],
    package_dir={"vmae2_ds.ds_configs": "ds_configs"},
    package_data={"vmae2_ds": ["**/*.html", "**/*.toml"], "vmae2_ds.ds_configs": ["*.json", "*.md"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["vmae2 = vmae2_ds.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
