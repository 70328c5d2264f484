"""A page as data: sections of paragraphs, tables and figures, written as Markdown and as one self-contained HTML file.

Texts are plain, with Markdown's `code`, **strong** and [links](file) in them; a link to a README.md is to index.html
in HTML.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from wsm_jax.io import files
from wsm_jax.reporting import plot_style


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
      header: of the columns.
      rows: as long as the header.
      numbers: whether all columns but the first are, so that they stand to the right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
      name: of its files, NAME.png and NAME.svg; one of a kind on a page.
      figure: what is drawn.
      caption: a sentence or two, also read in place of the picture.
    """

    name: str
    figure: Figure
    caption: str

    def svg(self) -> Markup:
        """The figure for an HTML page, light or dark."""
        return Markup(plot_style.inline_svg(self.figure, self.name))


@dataclasses.dataclass(frozen=True)
class Section:
    """What stands under one heading; left out where there is nothing.

    Attributes:
      title: the heading; "": none.
      blocks: paragraphs, tables and pictures, in order.
    """

    title: str
    blocks: Sequence[str | Table | Picture]


@dataclasses.dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
      title: of the page.
      sections: in order.
    """

    title: str
    sections: Sequence[Section]

    def pictures(self) -> list[Picture]:
        """All figures, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Picture)]


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, each on one line; a blank line ends one."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def render(page: Page, form: str) -> str:
    """The text of a page.

    Args:
      page: what is on it.
      form: ``md`` or ``html``.
    """
    return _templates().get_template(f"page.{form}").render(page=page)


def write(page: Page, folder: Path, markdown: str, html: str) -> Path:
    """Writes the figures of a page (PNG and SVG), then its texts, each file whole or not at all.

    Args:
      page: what is on it.
      folder: made if missing.
      markdown: name of the Markdown file.
      html: name of the HTML file.

    Returns:
      the path of the Markdown file.
    """
    texts = {name: render(page, form) for name, form in ((markdown, "md"), (html, "html"))}
    for picture in page.pictures():
        plot_style.save(picture.figure, folder / picture.name)
    for name, text in texts.items():
        files.write_text(folder / name, text)
    return folder / markdown


@functools.cache
def _templates() -> jinja2.Environment:
    loader = jinja2.PackageLoader("wsm_jax.reporting")
    found = jinja2.Environment(
        loader=loader,
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"inline": _inline, "cell": _table_cell}
    return found


def _table_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _inline(text: str) -> Markup:
    """A text as HTML: escaped, then marked up."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    marked = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked)
    marked = re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", r'<a href="\2">\1</a>', marked)
    return Markup(re.sub(r'(href="[^":]*)README\.md"', r'\1index.html"', marked))
