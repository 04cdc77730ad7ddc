"""Lists the packages to install; all other settings are in pyproject.toml."""

from setuptools import find_packages, setup

recipes = ["llm_jax.configs", *(f"llm_jax.configs.{name}" for name in find_packages("configs"))]
setup(
    packages=[*find_packages(include=["llm_jax*"]), *recipes],
    package_dir={"llm_jax.configs": "configs"},
    package_data={"llm_jax.pod": ["jobs/*"], "llm_jax.data": ["*.json"]},
)
