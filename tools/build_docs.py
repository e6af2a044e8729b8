"""Build the documentation as a site, without a network: `make docs`.

    python tools/build_docs.py --output build/docs

The pages of docs/, CONTRIBUTING.md, CHANGELOG.md and the API reference (tools/api_pages.py) are put together in
OUTPUT/source, and Sphinx makes OUTPUT/html of them. A warning, such as a link that leads nowhere, fails the command.
The navigation has the pages that the lists of every index.md link.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import api_pages

from megagpt.errors import MegaGPTError
from megagpt.log import run_tool

ROOT = Path(__file__).parents[1]
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md")


def write_source(source: Path, packages: list[str]) -> None:
    """All pages of the site, with links as they are between them; the API of these packages, or of all."""
    shutil.copytree(ROOT / "docs", source)
    for name in BESIDE:
        text = (ROOT / name).read_text(encoding="utf-8")
        (source / name).write_text(text.replace("](docs/", "]("), encoding="utf-8")
    api = source / "api"
    api.mkdir()
    pages = {name: text for name, text in api_pages.pages().items() if name in packages or not packages}
    for name, text in pages.items():
        (api / f"{name}.md").write_text(text, encoding="utf-8")
    links = "\n".join(f"- [{name}]({name}.md)" for name in pages)
    (api / "index.md").write_text(f"# API reference\n\n## Packages\n\n{links}\n", encoding="utf-8")
    home = source / "index.md"
    text = re.sub(rf"\.\./({'|'.join(map(re.escape, BESIDE))})", r"\1", home.read_text(encoding="utf-8"))
    home.write_text(
        text.replace("## Reference\n", "## Reference\n\n- [API reference](api/index.md)", 1), encoding="utf-8"
    )
    for page in source.rglob("index.md"):
        page.write_text(with_navigation(page.read_text(encoding="utf-8")), encoding="utf-8")


def with_navigation(text: str) -> str:
    """An index page with a hidden table of contents behind every section, of the pages that its list links."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    found = [parts[0]]
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        names = [name.removesuffix(".md") for name in re.findall(r"^- \[[^\]]*\]\(([^)#:]+)\)", body, re.MULTILINE)]
        contents = ["```{toctree}", ":hidden:", f":caption: {heading}", "", *names, "```", ""]
        found.append(f"## {heading}\n{body.rstrip()}\n\n" + "\n".join(contents if names else []))
    return "\n".join(found)


def run_sphinx(source: Path, html: Path, doctrees: Path, jobs: str) -> int:
    """Sphinx's exit code: 0 where there was not one warning."""
    words = ["--builder", "html", "--fail-on-warning", "--keep-going", "--quiet", "--jobs", jobs]
    return subprocess.run([sys.executable, "-m", "sphinx", *words, "--doctree-dir", doctrees, source, html]).returncode


def main() -> int:
    """Put the pages together, then run Sphinx."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build/docs", help="folder of the site (default: build/docs)"
    )
    parser.add_argument("--jobs", default="auto", help="processes of Sphinx (default: cores)")
    parser.add_argument(
        "--package",
        action="append",
        default=[],
        help="only this package in the API reference, for a quick look; repeatable",
    )
    args = parser.parse_args()
    unknown = set(args.package) - set(api_pages.pages())
    if unknown:
        raise MegaGPTError(f"--package: there is no package {', '.join(sorted(unknown))} in megagpt")
    source, html = args.output / "source", args.output / "html"
    if args.output.exists() and not source.exists() and any(args.output.iterdir()):
        raise MegaGPTError(f"{args.output} holds other files: choose an empty folder for --output")
    for folder in (source, html):
        shutil.rmtree(folder, ignore_errors=True)
    write_source(source, args.package)
    code = run_sphinx(source, html, args.output / "doctrees", args.jobs)
    if code == 0:
        print(html / "index.html")
    return code


if __name__ == "__main__":
    run_tool(main)
