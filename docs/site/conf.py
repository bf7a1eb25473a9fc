"""Sphinx's settings; docs/build.py copies this folder and calls Sphinx, with the tag `en` or `zh`."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.search import SearchLanguage
from sphinx.util.docutils import SphinxDirective

import alexnet
from alexnet.cli import COMMANDS, run

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# `alexnet.report` and `alexnet.export` are packages that can be called, which autodoc takes for modules.
functions = sys.modules["functions"] = types.ModuleType("functions")
functions.report, functions.export = alexnet.report.__call__, alexnet.export.__call__  # type: ignore[attr-defined]

HERE = Path(__file__).parent
chinese = tags.has("zh")  # type: ignore[name-defined]  # noqa: F821

project = "alexnet"
copyright = "alexnet, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["extra", "templates", "static"]
locale_dirs = ["locale"]
smartquotes = False  # which would also make dashes of --flags

myst_heading_anchors = 4
myst_url_schemes = {"http": None, "https": None, "mailto": None, "site": "{{path}}#{{fragment}}"}
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_timeout = 600  # seconds a cell
nb_code_prompt_show, nb_code_prompt_hide = ("显示答案", "收起答案") if chinese else ("Show solution", "Hide solution")
nb_execution_raise_on_error = nb_execution_show_tb = True

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
add_module_names = False
default_role = "code"

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "alexnet"
html_static_path = ["static"]
html_extra_path = ["extra"]
templates_path = ["templates"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_use_index = True
html_domain_indices = False
html_theme_options = {
    "logo": {"text": "alexnet"},
    "search_bar_text": "搜索" if chinese else "Search",
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button", "language"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_toc_level": 2,
    "show_nav_level": 1,
    "navigation_depth": 3,
    "header_links_before_dropdown": 5,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {
    "counterparts": json.loads((HERE / "counterparts.json").read_text()),
    "other_language": ("en", "en", "English") if chinese else ("zh", "zh-CN", "中文"),
}


class ChineseSearch(SearchLanguage):
    """Search by pairs of neighboring Chinese characters, without a dictionary.

    Sphinx's own cuts the pages into words with jieba, but not the query, and finds it only where the index has exactly
    that word. Here every page is found that has all pairs of the query, less words such as 的 and 怎么.
    """

    lang = "zh"
    language_name = "Chinese"
    js_splitter_code = r"""
var splitQuery = (query) => {
  const words = query.replace(/怎么样?|怎样|如何|为?什么|[的了吗呢]/g, " ");
  return (words.match(/[\u3400-\u9fff]+|(?:(?![\u3400-\u9fff])[\p{L}\p{N}_])+/gu) || []).flatMap((word) =>
    /^[\u3400-\u9fff]{3,}$/.test(word) ? [...word.slice(1)].map((_, i) => word.slice(i, i + 2)) : [word]);
};
"""

    def split(self, input: str) -> list[str]:
        words = re.findall(r"[^\W\u3400-\u9fff]+", input)
        for chinese in re.findall(r"[\u3400-\u9fff]+", input):
            words += [*chinese, *(chinese[i : i + 2] for i in range(len(chinese) - 1))]
        return words

    def stem(self, word: str) -> str:
        return word.lower()


class CommandHelp(SphinxDirective):
    """The `--help` of every command, a section each."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for name in COMMANDS:
            title = f"alexnet {name}"
            with contextlib.redirect_stdout(io.StringIO()) as shown:
                run([name, "--help"])
            section = nodes.section(ids=[nodes.make_id(title)], names=[title])
            section += nodes.title(title, title)
            section += nodes.literal_block(shown.getvalue(), shown.getvalue(), language="text")
            sections.append(section)
        return sections


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_search_language(ChineseSearch)
    app.add_directive("command-help", CommandHelp)
    return {"version": alexnet.__name__, "parallel_read_safe": True}
