"""The page of `hpcasync report` in a real browser: it draws everything, complains of nothing and shows something."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from recorded_runs import make_run, write_timeline

from hpcasync.report.page import render_page
from hpcasync.report.report import make_report

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000", "--window-size=1280,5000",
)  # fmt: skip
_TIMEOUT_SECONDS = 240  # six seconds on two idle cores


class Browser:
    """Opens files in Chromium without a network."""

    def __init__(self, program: str, directory: Path) -> None:
        self._program = program
        self._directory = directory
        self._num_runs = 0

    def dom(self, page: Path) -> tuple[str, list[str]]:
        """The document after its scripts have run, and what they wrote to the console."""
        return self._run(page, "--dump-dom")

    def screenshot(self, page: Path) -> tuple[Path, list[str]]:
        """A picture of the page, and what its scripts wrote to the console."""
        path = self._directory / f"{page.stem}.png"
        return path, self._run(page, f"--screenshot={path}")[1]

    def _run(self, page: Path, what: str) -> tuple[str, list[str]]:
        self._num_runs += 1
        profile = self._directory / f"profile{self._num_runs}"
        # A resolver that finds no host: the page must need none.
        offline = ("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}")
        done = subprocess.run(
            [self._program, *_FLAGS, *offline, what, page.as_uri()],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """Chromium. Where HPCASYNC_REQUIRE_BROWSER=1 promises one, its absence is a failure, not a skip."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None and os.environ.get("HPCASYNC_REQUIRE_BROWSER") == "1":
        pytest.fail("HPCASYNC_REQUIRE_BROWSER=1, but there is no chromium on PATH")
    if program is None:
        pytest.skip("there is no chromium on PATH: apt-get install chromium")
    return Browser(program, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything that one can have: seeds, modes, a timeline, a name that tries to break out."""
    directory = tmp_path_factory.mktemp("runs")
    paths = [make_run(directory, "sync", seed=seed, seconds_per_snapshot=60.0 + seed) for seed in (1, 2)]
    paths.append(make_run(directory, "async-global", accumulate={"global": 2}, histogram={0: 5, 1: 9, 3: 1}))
    paths.append(make_run(directory, "async", data={"path": "</script><script>throw 1</script>"}))
    steps = [[["compute", k, 0.7], ["push", k + 0.7, 0.1], ["wait", k + 0.8, 0.1], ["pull", k + 0.9, 0.05]]
             for k in range(200)]  # fmt: skip
    spans = [span for step in steps for span in step]
    write_timeline(paths[2], 1, "worker", 0, 1000.0, spans)
    write_timeline(paths[2], 2, "worker", 1, 1000.3, spans)
    applied = [["apply", k + 0.85, 0.04, {"version": k, "staleness": [[0, 1], [1, k % 2]]}] for k in range(200)]
    write_timeline(paths[2], 0, "server", 0, 1000.0, applied)
    file = directory / "report.html"
    file.write_text(render_page(make_report(paths)), encoding="utf-8")
    return file


def test_every_plot_is_drawn_and_nothing_is_complained_of(browser: Browser, page: Path) -> None:
    document, console = browser.dom(page)
    assert console == []
    assert 'data-drawn="yes"' in document
    drawn = set(re.findall(r'<div id="([\w-]+)" class="js-plotly-plot"', document))
    assert drawn == {
        "bleu-time", "bleu-tokens", "thresholds", "throughput", "throughput-time", "staleness", "worker-staleness-0",
        "loss-train", "loss-valid", "learning-rate", "timeline-overview", "timeline-bars",
    }  # fmt: skip
    assert "worker 1 · rank 2 · node1" in document.partition("timeline-totals")[2]
    # Ranks compute 70 % of the time: the page's own script has worked it out.
    assert "<td>70 %</td>" in document


def test_the_picture_shows_plots_in_the_colours_of_modes(browser: Browser, page: Path) -> None:
    path, console = browser.screenshot(page)
    assert console == []
    image = Image.open(path).convert("RGB")
    assert image.size == (1280, 5000)
    counts = {colour: number for number, colour in image.getcolors(1 << 24) or []}
    for colour in ("#3d3d3d", "#0067a8", "#c1440e", "#2f8f6b"):  # sync, async-global, async, compute
        red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
        assert counts.get((red, green, blue), 0) > 500, colour


def test_an_error_of_a_script_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<!DOCTYPE html><script>throw new Error('seen')</script>")
    assert "seen" in "".join(browser.dom(broken)[1])


def test_the_page_needs_no_other_file(page: Path) -> None:
    text = page.read_text()
    head = text.partition("<body>")[0]
    assert "Plotly" in head and not re.search(r'<(script|link|img)[^>]*(src|href)="(?!data:)', text)
    assert "<script>throw 1</script>" not in text
