"""What the documents say is run: every block of code in README.md."""

import ast
import functools
import inspect
import re
import shlex
from pathlib import Path
from types import CodeType

import anyio
import httpx
import pytest
from pydantic import BaseModel
from sybil import Document
from sybil.parsers.markdown import CodeBlockParser

import mailstrom_async
from mailstrom_async import Config, Mailstrom
from mailstrom_async.testing import FakeInternet

PROJECT = Path(mailstrom_async.__file__).parents[1]
README = PROJECT / "README.md"
BLOCK = re.compile(r"^```(\w*)\n", re.MULTILINE)
COMMAND = re.compile(r"^<!-- (run|test) -->\n```sh\n(.*)\n```$", re.MULTILINE)


def blocks(path: Path) -> list[tuple[int, str]]:
    """The Python blocks of a document, hidden ones among them, each with its line."""
    document = Document.parse(str(path), CodeBlockParser("python", evaluator=lambda example: None))
    return [(example.line, str(example.parsed)) for example in document.examples()]


def code_of(path: Path, line: int, source: str) -> CodeType:
    """Compiled so that `await` may stand at the top, and a traceback names the line in the document."""
    padded = "\n" * line + source
    return compile(padded, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.fixture
async def internet():
    """The world of the documents: example.net has a mail exchanger."""
    async with FakeInternet() as internet:
        await internet.exchanger("mx.example.net")
        internet.domain("example.net", mx=["mx.example.net"])
        yield internet


async def test_the_blocks_of_the_readme_run(internet, tmp_path, monkeypatch, capsys):
    """One after another in one namespace, as a reader takes them in; delivery leads to the world of this test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mailstrom_async, "Config", functools.partial(Config, delivery=internet.delivery))
    namespace = {"internet": internet}
    found = blocks(README)
    line, source = found[0]
    exec(code_of(README, line, source), namespace)
    app = namespace["app"]

    async def post(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://app") as client:
            response = await client.post(path)
        assert response.status_code == 202
        return response

    async def post_later(path: str) -> None:
        await anyio.wait_all_tasks_blocked()  # the reader of events, too
        await post(path)

    namespace |= {"post": post, "post_later": post_later}
    async with app.router.lifespan_context(app):
        for line, source in found[1:]:
            running = eval(code_of(README, line, source), namespace)
            if inspect.isawaitable(running):
                await running

    await namespace["test_a_greylisted_welcome_arrives_later"]()
    printed = capsys.readouterr().out
    assert "ada@example.net: mx.example.net took it and said 250 2.0.0" in printed
    assert "did not reach nobody@example.net: mx.example.net answered RCPT with: 550 5.1.1 no such person" in printed


def test_no_block_is_left_out():
    """Every block of README.md is Python, which is run above, or one of the two commands, which `.ci/run` runs."""
    text = README.read_text()
    languages = BLOCK.findall(text)
    visible = [source for _, source in blocks(README)]

    assert languages.count("sh") == len(COMMAND.findall(text)) == 2
    assert set(filter(None, languages)) == {"sh", "python"}
    assert len(visible) >= languages.count("python") > 3


def test_each_command_is_one_line_that_needs_nothing_but_python():
    """From a fresh clone: an environment, an installation, and the program, joined so that any failure ends it."""
    commands = dict(COMMAND.findall(README.read_text()))

    assert list(commands) == ["run", "test"]
    for command in commands.values():
        assert "\n" not in command
        programs = [part.split()[0] for part in command.split(" && ")]
        assert programs == ["python3", ".venv/bin/pip", ".venv/bin/python"]
        assert shlex.split(command)


def calls() -> list[ast.Call]:
    """The calls within the text of README.md, such as those of its table; `...` stands for what else is needed."""
    pieces = re.findall(r"`([^`\n]+\))`", README.read_text())
    trees = [ast.parse(piece.replace(", ...)", ")").replace("Attachment(...,", "Attachment(")) for piece in pieces]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_the_calls_in_the_text_are_right():
    """Every class and method that README.md mentions exists, and takes the arguments that it is said to take."""
    checked = 0
    for call in calls():
        names = {keyword.arg for keyword in call.keywords}
        match call.func:
            case ast.Name(id=name) if name == "send_email":
                assert names <= set(inspect.signature(Mailstrom.send_email).parameters), name
            case ast.Name(id=name) if isinstance(model := getattr(mailstrom_async, name, None), type(BaseModel)):
                assert names <= set(model.model_fields), name
                assert not call.args, f"{name} takes no positional arguments"
            case ast.Attribute(value=ast.Name(id="mailer"), attr=name):
                assert names <= set(inspect.signature(getattr(Mailstrom, name)).parameters), name
            case _:
                continue
        checked += 1

    assert checked > 25


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "examples/README.md"])
def test_links_within_the_project_lead_somewhere(name):
    """A relative link in a document is a file."""
    document = PROJECT / name
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())

    for link in links:
        assert (document.parent / link).exists(), link
