"""Puts csrc/ into wheels; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithSources(build_py):
    """A wheel carries the C++ files inside the package; an editable install finds them beside it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("csrc", Path(self.build_lib) / "sparsemm" / "csrc", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithSources})
