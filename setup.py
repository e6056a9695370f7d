"""What pyproject.toml cannot say: `configs/` is a package of data inside `bita`."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["bita*"]), "bita.configs"], package_dir={"bita.configs": "configs"})
