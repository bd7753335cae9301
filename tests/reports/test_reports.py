"""What reports hold, whatever their format; nothing that a model wrote becomes markup."""

import base64
import csv
import hashlib
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from gpt2x.reports import compare, read_run, report_run
from gpt2x.reports.data import to_csv, to_json
from gpt2x.reports.html import to_html
from gpt2x.reports.markdown import fenced
from gpt2x.reports.statistics import estimate
from tests.commands import command

VOID = {"meta", "input", "br", "img", "link"}
EVIL = "=== step 3 ===\n<script>alert(1)</script>\x1b[31m ```\n\n=== step 3 ===\n</pre><img src=x>\n\n"


class Page(HTMLParser):
    """Checks that tags are closed in order; collects ids, addresses and words."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.addresses.append(value)
            assert not name.startswith("on")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def runs(write_run):
    """Two groups of two seeds, with the best validation at step 2."""
    return [
        read_run(
            write_run(f"runs/{rate}-{seed}", val={2: 4.0 - seed / 10 - 100 * rate, 3: 4.5}, seed=seed, samples=EVIL,
                      optimizer__learning_rate=rate, dataset__name=f"<b>{rate}</b>")
        )
        for rate in (1e-3, 5e-3)
        for seed in (0, 1)
    ]  # fmt: skip


@pytest.mark.run
def test_the_page_is_well_formed_and_loads_nothing(runs):
    text = to_html(compare(runs))
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    assert all(address.startswith(("#", "data:")) for address in page.addresses), page.addresses
    assert not re.search(r"url\((?!#)|@import|<link|<iframe", text)
    assert (page.tags["script"], page.tags["img"]) == (1, 0)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'" in text
    words = " ".join(page.words)
    for expected in ("<script>alert(1)</script>", "</pre><img src=x>", "dataset=<b>0.001</b>", "Welch"):
        assert expected in words
    assert "\x1b" not in text
    assert text.count('class="line g1"') == 2 * 4 * 2  # runs, axes, metrics


@pytest.mark.run
def test_a_single_run_without_validation_has_a_page(write_run):
    assert "Over seeds" not in to_html(compare([read_run(write_run("run"))]))


def test_csv_has_a_row_per_run_and_json_the_groups(runs):
    comparison = compare(runs)
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert [row["optimizer.learning_rate"] for row in rows] == ["0.001", "0.001", "0.005", "0.005"]
    assert float(rows[3]["best val/loss"]) == pytest.approx(3.4)
    assert rows[3]["best step"] == "2"
    assert float(rows[0]["perf/tokens_per_s"]) == 512.0
    assert float(rows[0]["perf/startup_time_s"]) == 11.0
    content = json.loads(to_json(comparison))
    best = content["groups"][1]["val/loss, best"]
    expected = estimate([3.5, 3.4])
    assert best["mean"] == pytest.approx(3.45)
    assert best["interval"] == pytest.approx(expected.interval)
    assert best["difference"] == pytest.approx(-0.4)
    assert content["runs"][0]["best"] == {"metric": "val/loss", "value": pytest.approx(3.9), "step": 2}


def test_text_of_a_model_cannot_end_its_block():
    assert fenced("a ```` b").startswith("`````text\n")


@pytest.mark.run
def test_the_command_prints_tables_and_writes_every_format(runs, tmp_path, capsys):
    typed = [f"--out={tmp_path}/new/r{suffix}" for suffix in (".html", ".md", ".csv", ".json")]
    assert command("compare")([str(tmp_path / "runs"), *typed]) == 0
    printed = capsys.readouterr().out
    for expected in ("<b>0.001</b> seed=0", "optimizer.learning_rate", "best val/loss", "val/loss, best", "Welch"):
        assert expected in printed
    assert (tmp_path / "new/r.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "new/r.md").read_text(encoding="utf-8")
    assert "![curves of the losses against steps](r.png)" in text
    assert r"\<b\>0.001\</b\>" in text


def test_mistakes_of_the_command(runs, tmp_path, capsys):
    for arguments, message in {
        ("--out=r.pdf",): "the suffix chooses the format",
        (f"--out={tmp_path}/a.html",): "is a directory",
        ("--metric=val/x",): "no run has it",
    }.items():
        (tmp_path / "a.html").mkdir(exist_ok=True)
        assert command("compare")([str(tmp_path / "runs"), *arguments]) == 2
        assert message in capsys.readouterr().err


# ---- the report of one run


def test_a_run_has_a_report_and_a_failure_only_warns(write_run, capsys):
    path = write_run("run", val={2: 3.25}, samples=EVIL, job={"number": 0, "varied": [], "status": "running"})
    assert report_run(path) == path / "report.html"
    page = Page((path / "report.html").read_text(encoding="utf-8"))
    assert page.tags["img"] == 1
    assert {"3.2500", "finished"} <= set(page.words)  # though its job has not yet said so
    (path / "metrics.jsonl").unlink()
    assert report_run(path) is None
    assert "warning: no report.html of this run" in capsys.readouterr().out
    assert not list(path.glob(".*"))


def test_a_real_run_leaves_a_report(zoo, capsys):
    page = Page((zoo.plain.run_dir / "report.html").read_text(encoding="utf-8"))
    assert "finished" in " ".join(page.words)
    assert command("compare")([str(zoo.plain.run_dir), str(zoo.classifier.run_dir)]) == 0
    printed = capsys.readouterr().out
    assert "val/accuracy" in printed
    assert printed.count("finished") >= 2
