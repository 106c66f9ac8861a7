"""`pip install ./models/ops`: the operator alone, without the rest of the project."""

from setuptools import setup

setup(
    name="ms_deform_attn",
    version="0.1.0",
    description="Multi-scale deformable attention as a torch operator for CPU and CUDA, with its module.",
    packages=["ms_deform_attn"],
    python_requires=">=3.10",
    install_requires=["torch>=2.9"],
)
