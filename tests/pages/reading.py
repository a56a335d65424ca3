"""A page as a reader without eyes for style finds it: elements, their attributes, and the texts of tables."""

from __future__ import annotations

import json
from html.parser import HTMLParser

VOID = frozenset({"meta", "wbr", "link", "input", "br", "img"})
LOADS = ("src", "href", "action", "data", "poster", "srcset")


class Read(HTMLParser):
    """What is on a page. open: elements that are not closed; loads: attributes by which something could be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, object] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.attributes.append((tag, found))
        self.loads += [value for name, value in attrs if name in LOADS and not (value or "").startswith("#")]
        if "id" in found:
            self.ids.append(found["id"])
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        if inside == "script":
            if self.attributes[-1][1].get("id") == "data":
                self.data = json.loads(data)
            return
        if inside == "style":
            return
        self.texts.append(data)
        if inside in ("h1", "h2") or "h1" in self.open:
            self.headings.append(data.strip())
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data.strip()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())
