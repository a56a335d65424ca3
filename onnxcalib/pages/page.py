"""A page of HTML with all that it needs in it: it loads nothing, and opens from a file."""

from __future__ import annotations

import json
from importlib.resources import files

from ..errors import escape_controls
from ..spec import VERSION
from .charts import SPECS
from .content import Chart, Data, Page
from .contents import make_contents
from .plan import make_plan
from .report import make_report
from .script import load_script
from .verdict import make_verdict


def draw_verdict(text: str) -> str:
    """The page of a verdict. text: what ``Verdict.to_json`` gives, or its file holds."""
    return draw(make_verdict(json.loads(text)))


def draw_report(text: str) -> str:
    """The page of a report. text: what ``Report.to_json`` gives, or its file holds."""
    return draw(make_report(json.loads(text)))


def draw_plan(plan: str | None, frontier: str | None = None) -> str:
    """The page of a bit plan, of a frontier, or of both, as their ``to_json`` gives them."""
    return draw(make_plan(*(None if each is None else json.loads(each) for each in (plan, frontier))))


def draw_contents(text: str) -> str:
    """The page of what ``inspect`` found. text: what ``Contents.to_json`` gives, or its file holds."""
    return draw(make_contents(json.loads(text)))


def draw(page: Page) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    charts = [part for section in page.sections for part in section.parts if isinstance(part, Chart)]
    charts += page.details.values()
    library = load_script() if charts else ""
    charts = [] if library is None else charts
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = _show
    return environment.from_string(_read("page.html")).render(
        page=page,
        version=VERSION,
        style=_read("page.css"),
        script=_read("page.js"),
        library=_embed_script(library or ""),
        plots=library is not None,
        data=_embed_json(_gather(charts)),
    )


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _show(text: str) -> str:
    """Text from a model, in which control characters can be seen."""
    return escape_controls(text)


def _gather(found: list[Chart]) -> Data:
    used = {each.spec for each in found}
    charts = {each.key: {"spec": each.spec, "text": each.text, "rows": [*map(dict, each.rows)]} for each in found}
    return {"specs": {spec: SPECS[spec] for spec in sorted(used)}, "charts": charts}


def _embed_json(value: Data) -> str:
    """JSON as it can stand in an element of HTML."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _embed_script(text: str) -> str:
    """JavaScript as it can stand in an element of HTML, where these two stand in texts alone."""
    return text.replace("</script", "<\\/script").replace("<!--", "\\x3c!--")
