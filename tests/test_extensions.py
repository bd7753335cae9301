"""Extensions: a new file is a new option, with settings of its own; nothing is imported to list the names."""

import sys
from dataclasses import dataclass, field

import pytest

from gpt2x.errors import UserError
from gpt2x.extensions import Extensions, settings


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """An importable package `garden.shapes` with two options, two helpers and a module that cannot be imported."""
    folder = tmp_path / "garden" / "shapes"
    folder.mkdir(parents=True)
    (tmp_path / "garden" / "__init__.py").write_text("raise ImportError('listing names must not import')")
    (folder / "__init__.py").write_text("")
    (folder / "_helper.py").write_text("")
    (folder / "base.py").write_text("")
    (folder / "circle.py").write_text("SHAPE = 'round'")
    (folder / "square.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "garden"]:
        del sys.modules[name]


def test_the_names_are_the_files_and_listing_them_imports_nothing(shapes):
    assert Extensions("garden.shapes", "SHAPE").names() == ["circle", "square"]
    (shapes / "star.py").write_text("SHAPE = 'pointed'")
    assert Extensions("garden.shapes", "SHAPE").names() == ["circle", "square", "star"]


def test_an_option_is_loaded_by_its_name(shapes):
    (shapes.parent / "__init__.py").write_text("")
    assert Extensions("garden.shapes", "SHAPE").load("circle") == "round"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("circel", "paint.shape=circel does not exist; did you mean circle? choose one of: circle, square."),
        ("base", "paint.shape=base does not exist; choose one of: circle, square."),
        ("square", "paint.shape=square: .*square.py does not define SHAPE"),
    ],
)
def test_a_wrong_name_or_module_is_one_clear_error(shapes, name, message):
    (shapes.parent / "__init__.py").write_text("")
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        Extensions("garden.shapes", "SHAPE", key="paint.shape").load(name)


@dataclass
class Settings:
    gamma: float
    steps: list[int] = field(default_factory=lambda: [1, 2])
    kind: str | None = None


@dataclass
class NoSettings:
    pass


def test_settings_are_typed():
    assert settings(Settings, {"gamma": 1, "kind": "x"}, "schedule.settings") == Settings(1.0, [1, 2], "x")
    assert isinstance(settings(Settings, {"gamma": 1}, "schedule.settings").gamma, float)
    assert settings(NoSettings, None, "schedule.settings") == NoSettings()


@pytest.mark.parametrize(
    ("cls", "mapping", "message"),
    [
        (Settings, {"gama": 1.0}, "a.b.gama does not exist; did you mean gamma? settings are: gamma, steps, kind."),
        (Settings, {"gamma": "high"}, "a.b.gamma=high must be a number."),
        (Settings, {"gamma": None}, "a.b.gamma=null must be a number."),
        (Settings, {"gamma": 1.0, "steps": 3}, "a.b.steps=3 must be a list of whole numbers such as [1,2]."),
        (Settings, {}, "a.b.gamma has no value; give a.b.gamma=VALUE."),
        (NoSettings, {"gamma": 1.0}, "a.b.gamma does not exist; it has no settings."),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_clear_error(cls, mapping, message):
    with pytest.raises(UserError) as error:
        settings(cls, mapping, "a.b")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
