"""One page with everything in it: no other file, nothing from a network, so that it can be mailed and kept."""

import html

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser refuses whatever is not in the page."""


def page(title: str, style: str, body: str, script: str = "") -> str:
    """HTML of a page with this style. `title` is escaped here, `body` by who makes it."""
    end = f"\n<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head>\n<body>\n{body}{end}</body></html>\n"
    )
