"""The operator alone, without the rest of the project.

`pip install ./models/ops` compiles nothing: the sources of the CPU kernel are installed and compiled at the first call.
`python models/ops/setup.py build_ext --inplace` compiles the kernel ahead of time into the package's own folder.
"""

import os
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent


class build_kernel(build_ext):
    """Compile for the torch of this interpreter, by the same function as at the first call."""

    def run(self) -> None:
        if not self.inplace:
            raise SystemExit("setup.py build_ext compiles into the package's folder alone: add --inplace")
        sys.path.insert(0, str(HERE))
        from ms_deform_attn import build

        try:
            print(build.compile_into(build.PACKAGE))
        except (build.BuildError, OSError) as error:
            raise SystemExit(f"ms_deform_attn: {error}") from error


os.chdir(HERE)  # from elsewhere setuptools would read that folder's pyproject.toml
setup(
    name="ms_deform_attn",
    version="0.1.0",
    description="Multi-scale deformable attention as a torch operator for CPU and CUDA, with its module.",
    packages=["ms_deform_attn"],
    package_data={"ms_deform_attn": ["csrc/*.cpp", "csrc/*.h"]},
    python_requires=">=3.10",
    install_requires=["torch>=2.9"],  # which brings filelock
    cmdclass={"build_ext": build_kernel},
)
