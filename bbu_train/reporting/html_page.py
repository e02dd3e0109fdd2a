"""One page with everything in it: no other file, nothing from a network, so that it can be mailed and kept."""

import html

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser refuses whatever is not in the page."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 1180px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
.note { color: #6b7280; margin: .3rem 0; }
"""


def page(title: str, style: str, body: str, script: str = "") -> str:
    """HTML of a page with STYLE and more of it. `title` is escaped here, `body` by who makes it."""
    end = f"\n<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n{body}{end}</body></html>\n"
    )
