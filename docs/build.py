"""Build the site from docs/, in English and Chinese, into build/site/; warnings and broken links are errors.

    python docs/build.py              needs `pip install -e '.[docs]'`; open build/site/index.html
    python docs/build.py --quick      the lessons are not executed and appear without outputs

Sphinx builds each language on its own, from a copy of the pages that `Stage` makes: `export.zh-CN.md` becomes
`export.md` of the Chinese site, links between the languages lead from one site to the other, and a link to a file of
the repository leads to a copy of it. docs/index.md gives the structure: each of its sections is a part of the site, in
the order of its links; the README is the first page. Executed lessons are kept in build/site-work/ and run again where
their code has changed; delete that folder to execute all of them with a changed package.
"""

from __future__ import annotations

import argparse
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LANGUAGES = {"en": "en", "zh": "zh_CN"}  # folder of the site → Sphinx's name of the language
CHINESE = ".zh-CN.md"
OTHER_PAGES = {"README": "start", "CHANGELOG": "changes", "CONTRIBUTING": "contributing", "SECURITY": "security"}
PARTS = ("start", "course/index", "how-to", "reference", "explanations")  # the sections of docs/index.md
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
CHINESE_LINE_BREAK = re.compile(
    r"^(?!#)(.*[\u3400-\u9fff\u3000-\u303f\uff00-\uffef])\n[ ]*(?=[\u3400-\u9fff\u3000-\u303f\uff00-\uffef])"
    r"|^(?!#)(.*[\u3000-\u303f\uff00-\uffef])\n[ ]*(?=[\w`\[])|^(?!#)(.+)\n[ ]*(?=[\u3000-\u303f\uff00-\uffef])",
    re.MULTILINE,
)  # fmt: skip
SWITCH = re.compile(  # links that the site's own switch of languages replaces
    r" \(\[(?:中文|English)\]\([^()]+\)\)|\[(?:中文|中文说明|English)\]\([^()]+\)"
)


def find_pages(language: str) -> dict[str, str]:
    """Return the pages of a language: path in the repository → name on the site, without an ending."""
    pages = {f"{name}.md": page for name, page in OTHER_PAGES.items()}
    pages |= {path.relative_to(ROOT).as_posix(): path.relative_to(DOCS).as_posix()[:-3] for path in DOCS.rglob("*.md")}
    pages |= {f"{name}{CHINESE}": page for name, page in OTHER_PAGES.items() if (ROOT / f"{name}{CHINESE}").exists()}
    chinese = language == "zh"
    return {path: page.removesuffix(".zh-CN") for path, page in pages.items() if path.endswith(CHINESE) is chinese}


def join_chinese_lines(text: str) -> str:
    """Return text whose Chinese lines are joined, since a browser would show their breaks as spaces."""
    while (joined := CHINESE_LINE_BREAK.sub(r"\1\2\3", text)) != text:
        text = joined
    return text


class Stage:
    """The copy of a language's pages that Sphinx reads."""

    def __init__(self, language: str, folder: Path) -> None:
        self.folder = folder
        self.language = language
        self.pages = find_pages(language)
        self.other = "en" if language == "zh" else "zh"
        self.other_pages = find_pages(self.other)
        self.files: set[str] = set()

    def write(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(DOCS / "site", self.folder)
        (self.folder / "extra").mkdir()
        for path, page in self.pages.items():
            self._write_page(page, self.translate_links((ROOT / path).read_text(encoding="utf-8"), path, page))
        self.write_parts()
        for path in self.files:
            copy = self.folder / "extra" / "files" / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.startswith("docs/gallery/") and path.endswith(".html"):
                from alexnet.export.web import translate_page

                translate_page(ROOT / path, copy, self.language)
            else:
                shutil.copyfile(ROOT / path, copy)
        counterparts = sorted(set(self.pages.values()) & set(self.other_pages.values()) | set(PARTS))
        (self.folder / "counterparts.json").write_text(json.dumps(counterparts))

    def _write_page(self, page: str, text: str) -> None:
        path = self.folder / f"{page}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def write_parts(self) -> None:
        """Write a page for each section of the index, and a table of contents of these pages at its end."""
        index = (self.folder / "index.md").read_text(encoding="utf-8")
        sections = re.split(r"^## ", index, flags=re.MULTILINE)[1:]
        if len(sections) != len(PARTS):
            raise SystemExit(f"docs/index.md must have {len(PARTS)} sections, not {len(sections)}.")
        for page, section in zip(PARTS, sections, strict=True):
            linked = dict.fromkeys(re.findall(r"\]\((?!site:)([^)#]+)\.md", section))
            text, contents, options = f"# {section}", "\n".join(name for name in linked if name != page), ":hidden:"
            if page == "start":
                text = (self.folder / "start.md").read_text(encoding="utf-8")
            elif page == "course/index":
                text, contents, options = re.sub(r"^- .*\n?", "", text, flags=re.MULTILINE), "*", ":glob:"
            self._write_page(page, f"{text.rstrip()}\n\n```{{toctree}}\n{options}\n:titlesonly:\n\n{contents}\n```\n")
        titles = [section.split("\n", 1)[0] for section in sections]
        parts = "\n".join(f"{title} <{page}>" for title, page in zip(titles, PARTS, strict=True))
        self._write_page("index", f"{index}\n```{{toctree}}\n:hidden:\n\n{parts}\n```\n")

    def translate_links(self, text: str, path: str, page: str) -> str:
        """Return a page of the repository with its links as they are on the site."""

        def translate(match: re.Match[str]) -> str:
            image, label, target = match.groups()
            address = self._target(target, path, page, bool(image))
            label = LINK.sub(translate, label)
            return f"{image}[{label}]({address})" if address else label

        parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
        parts[::2] = [LINK.sub(translate, SWITCH.sub("", part)) for part in parts[::2]]
        if self.other == "en":
            parts[::2] = [join_chinese_lines(part) for part in parts[::2]]
        return "".join(parts)

    def _target(self, target: str, path: str, page: str, image: bool) -> str:
        """Return the address of a link; empty for a folder, which a site does not show."""
        if target.startswith("#") or urlsplit(target).scheme:
            return target
        linked, _, anchor = target.partition("#")
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(path), linked))
        anchor = f"#{anchor}" if anchor else ""

        def relative(to: str) -> str:
            return posixpath.relpath(to, posixpath.dirname(page) or ".")

        if linked in self.pages:
            return f"{relative(self.pages[linked])}.md{anchor}"
        if linked in self.other_pages:
            return f"site:../{relative(f'{self.other}/{self.other_pages[linked]}')}.html{anchor}"
        if linked == "docs/course":
            return f"{relative('course/index')}.md"
        if (ROOT / linked).is_dir():
            return ""
        if not (ROOT / linked).is_file():
            raise SystemExit(f"{path} links to {target}, which does not exist.")
        if image:
            copy = self.folder / "files" / linked
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / linked, copy)
            return relative(f"files/{linked}")
        self.files.add(linked)
        return f"site:{relative(f'files/{linked}')}"


def build(out: Path, work: Path, quick: bool) -> None:
    """Build both languages at once, each in a process of its own. Raises SystemExit with what Sphinx printed."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")])),
        "ALEXNET_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "80", "NO_COLOR": "1",
    }  # fmt: skip
    running = {}
    for folder, language in LANGUAGES.items():
        stage = work / folder / "pages"
        Stage(folder, stage).write()
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
        command += ["-d", str(work / folder / "doctrees"), "-D", f"language={language}", "-t", folder]
        command += ["-D", f"nb_execution_cache_path={work / folder / 'executed'}"]
        command += ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=myst-nb.lexer"] if quick else []
        command += [str(stage), str(out / folder)]
        with (work / folder / "log").open("w", encoding="utf-8") as log:
            running[folder] = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    failed = [folder for folder, process in running.items() if process.wait()]
    if failed:
        raise SystemExit("\n".join((work / folder / "log").read_text(encoding="utf-8") for folder in failed))
    shutil.copyfile(DOCS / "site" / "choose-language.html", out / "index.html")


class _Page(HTMLParser):
    """The ids of a page, its links, and the addresses that it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if "href" in values:
            loads = tag == "link" and not {"alternate", "canonical"} & set(values.get("rel", "").split())
            (self.loaded if loads else self.links).append(values["href"])
        if "src" in values:
            self.loaded.append(values["src"])


def broken_links(site: Path) -> list[str]:
    """Return a sentence for each link that leads nowhere and for each resource that is not in the site."""
    pages = {
        path: _Page(path) for path in site.rglob("*.html") if not {"_static", "files"} & {*path.relative_to(site).parts}
    }
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        for address in (*page.links, *page.loaded):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loaded and parts.scheme != "data":
                    found.append(f"{name} loads {address}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                found.append(f"{name} links to {address}, which does not exist")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{name} links to {address}, but that page has no such section")
    return sorted(set(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="do not execute the lessons")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="folder of the site; replaced")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "site-work", help="folder of what is kept")
    options = parser.parse_args()
    began = time.monotonic()
    shutil.rmtree(options.out, ignore_errors=True)
    for folder in LANGUAGES:
        (options.out / folder).mkdir(parents=True)
    build(options.out.resolve(), options.work.resolve(), options.quick)
    if broken := broken_links(options.out.resolve()):
        raise SystemExit("\n".join(broken))
    pages = len(list(options.out.rglob("*.html")))
    print(f"{pages} pages in {options.out}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
