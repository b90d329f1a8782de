"""Packaging of minidl."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="minidl",
    version="0.1.0",
    description="A deep learning framework whose every kernel can be read",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(
        include=["minidl", "minidl.*", "kernels", "kernels.*", "architectures", "architectures.*"]
    ),
    package_data={
        "minidl.data": ["digits/*"],
        "kernels.cuda": ["*.cu", "*.cuh"],
        "kernels.study": ["*.css", "*.js"],
    },
    install_requires=[
        "numpy>=2.0",
        "numba>=0.60",
        "scipy>=1.11",
        "threadpoolctl>=3.5",
        "click>=8.1",
        "rich>=13",
        "matplotlib>=3.8",
        "pillow>=10",
        "safetensors>=0.4",
    ],
    extras_require={
        "test": ["pytest>=8", "hypothesis>=6.100", "ruff>=0.6", "onnx>=1.16", "onnxruntime>=1.18",
                 "graphviz>=0.20"],
        "onnx": ["onnx>=1.16"],
        # Tests that look at pages in a browser; they need chromium and chromedriver too.
        "browser": ["selenium>=4.20"],
        # Pictures of graphs; the program dot comes from the system's package graphviz.
        "graph": ["graphviz>=0.20"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "latex2mathml>=3.77",
                 "graphviz>=0.20"],
        # Independent oracles for tests and benchmarks; never imported by the product.
        "oracle": ["torch>=2.2"],
        # mpich: the MPI library and mpiexec, for machines that bring none.
        "distributed": ["mpi4py>=4", "mpich>=4"],
        # With NVIDIA's libraries: a machine needs its driver alone.
        "cuda12": ["cupy-cuda12x[ctk]>=14"],
        "cuda13": ["cupy-cuda13x[ctk]>=14"],
        # Compiles the CUDA kernels where there is no GPU, for the tests.
        "nvrtc": ["cupy-cuda12x>=14", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12"],
    },
)
