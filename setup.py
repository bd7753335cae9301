"""Two build steps that pyproject.toml cannot state: conf/ within the wheel, and a word about missing kernels."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Copies the repository's conf/ into the package of a wheel (`gpt2x.config.options.CONF`)."""

    def run(self) -> None:
        """Copy the modules, then conf/; an editable installation reads the repository's."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("conf", Path(self.build_lib, "gpt2x", "conf"), dirs_exist_ok=True)


class BuildExt(build_ext):
    """Builds the C++ kernels, and says so if they do not compile: gpt2x works without them, several times slower."""

    def run(self) -> None:
        """Build, then name what is missing."""
        super().run()
        missing = missing_kernels(self)
        if missing:
            sys.stderr.write(
                f"warning: {', '.join(missing)} did not compile. gpt2x works without its C++ kernels, but slower. "
                "Install a C++20 compiler (g++ 12) and build again.\n"
            )


class BdistWheel(bdist_wheel):
    """Names a wheel without kernels `py3-none-any`: pip shows the name, while it hides what the build prints."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of the wheel's name."""
        if missing_kernels(self.get_finalized_command("build_ext")):
            self.root_is_pure = True
            return "py3", "none", "any"
        return super().get_tag()


def missing_kernels(build: build_ext) -> list[str]:
    """Return the names of the extension modules that were not built."""
    return [name.name for name in build.extensions if not Path(build.get_ext_fullpath(name.name)).is_file()]


setup(cmdclass={"build_py": BuildPy, "build_ext": BuildExt, "bdist_wheel": BdistWheel})
