"""Docstrings keep the rules of plain English that a program can check."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tgan_fast", "benchmarks", "tests", "examples")
FILES = [ROOT / "setup.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

BAD_START = re.compile(r"\s*(of|that|those|by|so|as|what|whose)\b", re.IGNORECASE)
SECTION = re.compile(r"( *)(Args|Attributes|Raises|Returns|Yields):")
NAMES = r"[*.\w]+(, [*.\w]+)*:"
BAD_ARGUMENT = re.compile(rf"({NAMES})?[\s*]*(of|see|that|as given)\b", re.IGNORECASE)


def violations(source):
    """Return "line: text" for each docstring or argument line of Python source that begins with a forbidden word."""
    found = []
    for node in ast.walk(ast.parse(source)):
        docstring = (ast.get_docstring(node, clean=False) if isinstance(node, DOCUMENTED) else None) or ""
        lines = docstring.splitlines()
        bad = [0] if BAD_START.match(docstring) else []
        bad += [place for place in argument_lines(lines) if BAD_ARGUMENT.match(lines[place].lstrip())]
        found += [f"{node.body[0].lineno + place}: {lines[place].strip()}" for place in bad]
    return found


def argument_lines(lines):
    """Yield the indices of a docstring's lines that begin the text on an argument, exception or returned value."""
    indent, first = None, False
    for place, line in enumerate(lines):
        if section := SECTION.fullmatch(line):
            indent, first = len(section[1]) + 4, True
        elif len(line) - len(line.lstrip()) == indent:
            if first or re.match(NAMES, line.lstrip()):
                yield place
            first = False


def test_docstrings_begin_plainly():
    found = [f"{path.relative_to(ROOT)}:{text}" for path in FILES for text in violations(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("word", ["Of", "That", "Those", "By", "So", "As", "What", "Whose"])
def test_first_words_of_docstrings_are_checked(word):
    assert violations(f'def f():\n    """{word} videos."""\n') == [f"2: {word} videos."]


@pytest.mark.parametrize("section", ["Args", "Attributes", "Raises", "Returns", "Yields"])
@pytest.mark.parametrize("line", ["x: of a", "x, y: See `g`.", "*x: **That**", "x: As given.", "see `g`"])
def test_argument_lines_are_checked(section, line):
    source = f'class A:\n    """Class.\n\n    {section}:\n        {line}\n            of it\n        z: Z.\n    """\n'
    assert violations(source) == [f"5: {line}"]
