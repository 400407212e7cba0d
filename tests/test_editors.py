"""What editors show of the measures, whose decorators change what they are called with."""

import ast
import importlib
import inspect
import pydoc
from pathlib import Path

import jedi
import pytest

import reptrans

MEASURED = ("cca", "cka", "shapes")


@pytest.mark.parametrize("module", MEASURED)
def test_stubs_say_what_the_decorated_measures_take(module):
    own = importlib.import_module(f"reptrans.similarity.{module}")
    stub = ast.parse(Path(own.__file__).with_suffix(".pyi").read_text("utf-8"))
    shown = {node.name: ast.unparse(node) for node in stub.body if isinstance(node, ast.FunctionDef)}
    public = {name: found for name, found in vars(own).items()
              if getattr(found, "__module__", "") == own.__name__ and not name.startswith("_")}  # fmt: skip
    assert set(shown) == set(public)
    for name, found in public.items():
        text = f"def {name}{inspect.signature(found)}: ...".replace("torch.Tensor", "Tensor")
        assert ast.unparse(ast.parse(text)) == shown[name]


@pytest.mark.parametrize("name", sorted(reptrans.MEASURES))
def test_editors_and_help_show_two_representations(name):
    code = f"from reptrans.similarity import {name}\n{name}("
    (shown,) = jedi.Script(code).get_signatures()
    assert [p.name for p in shown.params][:2] == ["x", "y"] and shown.name == name
    function = reptrans.MEASURES[name].function
    assert [p.name for p in shown.params] == list(inspect.signature(function).parameters)
    assert f"{name}(x: torch.Tensor, y: torch.Tensor" in pydoc.render_doc(function, renderer=pydoc.plaintext)
