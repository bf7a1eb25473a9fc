"""Figures of notebooks in Chromium, below the style that JupyterLab gives to images of an output."""

import pytest

from alexnet.notebook.display import render_figure

pytestmark = [pytest.mark.browser, pytest.mark.slow]
JUPYTERLAB = "<style>.jp-RenderedHTMLCommon > img { display: block; }</style>"


@pytest.mark.parametrize(("light", "shown"), [("true", "alexnet-light"), ("false", "alexnet-dark")])
def test_a_figure_is_shown_once_in_the_theme_of_the_notebook(browser, light, shown):
    figure = render_figure("a", b"", b"", 100)
    output = f'<div class="jp-RenderedHTMLCommon">{figure}</div>'
    page = browser.new_page()
    page.set_content(f'{JUPYTERLAB}<body data-jp-theme-light="{light}">{output}</body>')
    displayed = "all => all.filter(e => getComputedStyle(e).display !== 'none').map(e => e.className)"
    assert page.locator("img").evaluate_all(displayed) == [shown]
    page.close()
