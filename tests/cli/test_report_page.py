"""`python -m tgan_fast report`: one page with everything in it."""

import base64
from html.parser import HTMLParser

import pytest
from support.run_folders import score_record, write_run

from tgan_fast.cli import report as command
from tgan_fast.errors import InputError

# Elements without an end.
VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """Parsed page: its text, its attributes, and the elements that are open at the end."""

    def __init__(self, path):
        super().__init__()
        self.text, self.attributes, self.tags, self.open = "", [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += " ".join(data.split()) + " "

    def references(self):
        return [value for name, value in self.attributes if name in ("src", "href", "srcset", "action", "data")]


def page_of(folder, *arguments):
    command.main([str(folder), *map(str, arguments)])
    page = Page(folder / "report.html" if not arguments else arguments[-1])
    assert page.open == []
    return page


def test_everything_is_within_the_page(tmp_path, capsys):
    folder = write_run(tmp_path / "run", scores=[score_record(remarks=["only 300 different real clips"])])
    page = page_of(folder)
    assert f"{folder / 'report.html'}" in capsys.readouterr().out
    samples, losses, curves = page.references()
    assert (
        base64.b64decode(samples.removeprefix("data:image/gif;base64,"))
        == (folder / "samples" / "00000020.gif").read_bytes()
    )
    for picture in (losses, curves):
        assert base64.b64decode(picture.removeprefix("data:image/svg+xml;base64,")).startswith(b"<?xml")
    assert "script" not in page.tags
    assert "link" not in page.tags
    for text in ("30 of 81,000 iterations", "11.854 ± 0.070", "34.49", "4,322 ± 12", "fc7, 20,480 real clips",
                 "tgan2, 10 × 2,048 videos, fp32", "ba9876543210", "3.500", "70.50", "only 300 different real clips",
                 "2.99.1"):  # fmt: skip
        assert text in page.text, text


def test_what_differs_from_the_defaults_is_marked(tmp_path):
    page = page_of(write_run(tmp_path / "run", config={"clip_interval": 0, "seed": 0}))
    rows = (tmp_path / "run" / "report.html").read_text().split("<tr")
    marked = [row for row in rows if 'class="marked"' in row]
    assert len(marked) == 1
    assert "clip_interval" in marked[0]
    assert "learning_rate" in page.text


def test_a_run_that_has_little_to_show_says_how_to_get_it(tmp_path):
    folder = write_run(tmp_path / "run", evaluations=(), samples=False)
    (folder / "stats.jsonl").write_text("")
    page = page_of(folder)
    assert page.references() == []
    for text in ("--sample-interval", "--log-interval", "--evaluate-every N", "python -m tgan_fast evaluate"):
        assert text in page.text


def test_names_and_values_cannot_become_markup(tmp_path):
    folder = write_run(tmp_path / "<b>&", scores=[score_record(checkpoint="<img src=x>", remarks=["</p><script>"])])
    (folder / "config.yaml").write_text("note: '</script><script>alert(1)</script>'\nsteps: 30\n")
    page = page_of(folder)
    assert {"script", "b"}.isdisjoint(page.tags)
    assert page.tags.count("img") == 3
    assert "<b>&" in page.text
    assert "</script><script>alert(1)</script>" in page.text


def test_the_file_can_be_named(tmp_path):
    page_of(write_run(tmp_path / "run"), "--out", tmp_path / "x.html")
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing does not exist"),
        (["."], r"\. is not a run folder"),
        (["run", "--out", "nowhere/x.html"], r"cannot write nowhere/x\.html: there is no folder nowhere"),
        (["run", "--out", "run/stats.jsonl"], r"cannot write run/stats\.jsonl: its name must end in \.html"),
        (["broken"], r"cannot read broken/samples/00000030\.gif: Is a directory"),
        (["run", "--ot", "x"], "there is no option --ot; did you mean --out"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, arguments, message):
    write_run(tmp_path / "run")
    (write_run(tmp_path / "broken") / "samples" / "00000030.gif").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        command.main(arguments)
    assert "\n" not in str(caught.value)
