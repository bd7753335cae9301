"""The frame of an HTML report: one file that loads nothing, light and dark, with tables that can be sorted.

Its policy allows no network and no script but the one below, by its hash. Without scripts only the sorting is missing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape

from gpt2x.reports.figures import PALETTE
from gpt2x.reports.tables import Cell, Table

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_LIGHT = "--page:#fff;--card:#f6f7f9;--ink:#1d2126;--soft:#5c6670;--grid:#dfe3e8;--link:#0b62c4;"
_DARK = "--page:#14171a;--card:#1d2125;--ink:#e6e9ec;--soft:#9aa5af;--grid:#343b42;--link:#6cb0ff;"
STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;max-width:1280px;padding:20px 16px 60px;background:var(--page);color:var(--ink);
 font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
h1{font-size:1.5rem;margin:.2em 0}h2{font-size:1.15rem;margin:1.8em 0 .5em}h3{font-size:1rem;margin:1.2em 0 .4em}
.soft,.note,caption{color:var(--soft)}.note{font-size:.85rem;margin:.4em 0;max-width:75em}
.scroll{overflow-x:auto;border:1px solid var(--grid);border-radius:8px}
table{border-collapse:collapse;font-size:.87rem;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:5px 12px;text-align:left;white-space:nowrap;border-bottom:1px solid var(--grid)}
tbody tr:last-child>*{border-bottom:0}thead th{background:var(--card);font-weight:600}
th.n,td.n{text-align:right}td.long{white-space:normal;min-width:14em;overflow-wrap:anywhere}
table.sortable thead th{cursor:pointer}th[aria-sort=ascending]::after{content:" \\25B4"}
th[aria-sort=descending]::after{content:" \\25BE"}
tbody th{font-weight:500;position:sticky;left:0;background:var(--page);max-width:30em;white-space:normal;min-width:13em}
.key{display:inline-block;width:26px;height:10px;margin-right:7px;vertical-align:middle}
.key line{stroke-width:2.5}
.failed,.killed,.damaged{color:var(--bad)}.running{color:var(--link)}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;margin:.6em 0;font-size:.87rem}
.legend label,.axes label{cursor:pointer}.legend input{margin:0 5px 0 0;vertical-align:middle}
.axes{display:flex;flex-wrap:wrap;gap:6px;margin:.6em 0}
.axes label{border:1px solid var(--grid);border-radius:6px;padding:3px 11px;font-size:.87rem}
.pick{position:absolute;opacity:0}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:14px}
figure{margin:0;border:1px solid var(--grid);border-radius:8px;padding:8px;min-width:0}
figure.sweep{max-width:860px}figure svg{display:block;width:100%;height:auto}figure text{font-family:inherit}
figure img{display:block;max-width:100%;height:auto;background:#fff;border-radius:4px}
.samples{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(260px,1fr);gap:12px;overflow-x:auto;
 padding-bottom:6px}
.samples>div{min-width:0}pre{margin:0 0 8px;padding:8px 10px;background:var(--card);border-radius:6px;
 white-space:pre-wrap;overflow-wrap:anywhere;font:.82rem/1.45 ui-monospace,"DejaVu Sans Mono",Consolas,monospace}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 14px;font-size:.87rem;margin:.5em 0}
dd{margin:0;overflow-wrap:anywhere}summary{cursor:pointer}code{overflow-wrap:anywhere}
@media(max-width:600px){body{padding:12px 10px 40px}dl{grid-template-columns:1fr}dt{font-weight:600}}
"""
SCRIPT = """
document.querySelectorAll("table.sortable").forEach(function(table){
 table.querySelectorAll("thead th").forEach(function(head,column){
  head.tabIndex=0;
  function sort(){
   var up=head.getAttribute("aria-sort")!=="ascending",body=table.tBodies[0],rows=Array.from(body.rows);
   function value(row){var text=row.cells[column].dataset.v||"";return text===""||isNaN(text)?text:Number(text);}
   rows.sort(function(a,b){
    var x=value(a),y=value(b);
    if(x===""||y==="")return (x==="")-(y==="");
    var order=typeof x==="number"&&typeof y==="number"?x-y:String(x).localeCompare(String(y),undefined,{numeric:true});
    return up?order:-order;
   });
   table.querySelectorAll("th[aria-sort]").forEach(function(other){other.removeAttribute("aria-sort");});
   head.setAttribute("aria-sort",up?"ascending":"descending");
   rows.forEach(function(row){body.appendChild(row);});
  }
  head.addEventListener("click",sort);
  head.addEventListener("keydown",function(event){if(event.key==="Enter")sort();});
 });
});
"""


def page(title: str, body: str, *, style: str = "") -> str:
    """Return a complete page.

    Args:
        title: of the window, not escaped yet.
        body: HTML.
        style: rules for this page.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    light, dark = (
        tones + "".join(f"--c{index}:{pair[which]};" for index, pair in enumerate(PALETTE))
        for which, tones in enumerate((_LIGHT + "--bad:#b3261e;", _DARK + "--bad:#ff8a80;"))
    )
    scheme = f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{words(title)}</title>\n<style>{scheme}{STYLE}{style}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def words(text: object) -> str:
    """Return text of a run for HTML: escaped, without characters that HTML cannot have."""
    return escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text)), quote=True)


def table(content: Table, keys: list[str] | None = None, *, is_sortable: bool = True) -> str:
    """Return a table under its title; its first column names the rows.

    Args:
        content: the table.
        keys: HTML before the name of each row, such as the key of its color; None for none.
        is_sortable: whether a click on a head sorts the rows.
    """
    numeric = [
        bool(content.rows) and all(not isinstance(row[index].value, str) for row in content.rows)
        for index in range(len(content.columns))
    ]
    heads = "".join(
        f"<th{' class=n' if is_number and index else ''}>{words(column)}</th>"
        for index, (column, is_number) in enumerate(zip(content.columns, numeric, strict=True))
    )
    rows = []
    for position, row in enumerate(content.rows):
        first = f'<th data-v="{words(row[0].value)}">{keys[position] if keys else ""}{words(row[0].text)}</th>'
        cells = "".join(_cell(cell, is_number) for cell, is_number in zip(row[1:], numeric[1:], strict=True))
        rows.append(f"<tr>{first}{cells}</tr>")
    kind = " class=sortable" if is_sortable and len(rows) > 1 else ""
    body = f"<div class=scroll><table{kind}><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    note = f"<p class=note>{words(content.note)}</p>" if content.note else ""
    return (body if content.rows else "") + note


def _cell(cell: Cell, is_number: bool) -> str:
    kind = cell.kind or ("n" if is_number else "long" if len(cell.text) > 60 else "")
    value = "" if cell.value is None else f' data-v="{words(cell.value)}"'
    return f"<td{f' class={kind}' if kind else ''}{value}>{words(cell.text)}</td>"


def picture(png: bytes, description: str) -> str:
    """Return a PNG within the page."""
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{words(description)}" src="data:image/png;base64,{data}"></figure>'
