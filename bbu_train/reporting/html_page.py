"""HTML pages from Jinja templates. Each page is one self-contained file that can be mailed and archived.

`templates/page.html.j2` is the frame, which each page's template extends. Its Content-Security-Policy makes the browser
refuse everything that is not in the page.
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"


def render(template: Path, **values: object) -> str:
    """Return the page that the file `template` makes of `values`.

    All values are escaped, because many are a user's text. A name that is not in `values` raises UndefinedError.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)
