"""The support matrix as one HTML file whose rows a reader can filter; it needs nothing but a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.reports import support_matrix
from vllm_fleet.reports.support_matrix import Row

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Support matrix</title>
<style>
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --mild: #9a6700; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --mild: #d4a72c; --bad: #ff8078; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 90rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
form { display: flex; flex-wrap: wrap; gap: .75rem 1rem; align-items: end; margin: 1rem 0; }
label { display: grid; gap: .2rem; font-size: .85rem; }
input, select, button { font: inherit; padding: .3rem .5rem; }
input { min-width: 16rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top; }
th { position: sticky; top: 0; background: Canvas; white-space: nowrap; }
td.name { white-space: nowrap; }
.verified { color: var(--good); } .unverified { color: var(--mild); }
.unsupported, .refused { color: var(--bad); }
.why { font-size: .85rem; max-width: 34rem; }
.scroll { overflow-x: auto; }
</style>
</head>
<body>
<h1>Support matrix</h1>
<p>Each model on each family of hosts, with each engine that is a build for its devices.
<b class="verified">verified</b>: this project serves it in its tests.
<b class="unverified">unverified</b>: there is a recipe with a source, not run on such hardware by this project.
<b class="unsupported">unsupported</b> and <b>no recipe</b>: refused.
A profile shows instances x tensor parallelism for the size in the second column.</p>
<form id="filters" autocomplete="off">
<label>search <input id="q" type="search" placeholder="h100, aiter, does not fit ..."></label>
<label>model <select id="model"></select></label>
<label>host class <select id="host"></select></label>
<label>engine <select id="engine"></select></label>
<label>status <select id="status"></select></label>
<button type="reset">show all</button>
</form>
<p id="count" aria-live="polite"></p>
<noscript>This page needs JavaScript; matrix.md beside it has the same rows.</noscript>
<div class="scroll"><table><thead><tr id="head"></tr></thead><tbody id="rows"></tbody></table></div>
<h2>Known issues</h2>
<p id="issue-count" aria-live="polite"></p>
<div class="scroll"><table><thead>
<tr><th>id</th><th>holds for</th><th>what happens</th><th>what to do</th><th>source</th></tr>
</thead><tbody id="issues"></tbody></table></div>
<script type="application/json" id="data">
%DATA%
</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const field = id => document.getElementById(id);
const picks = {model: "model", host: "family", engine: "engine", status: "status"};
function cell(row, text, style) {
  const made = row.insertCell();
  made.textContent = text;
  if (style) made.className = style;
}
function options(id, key) {
  const all = [...new Set(data.rows.map(row => row[key]))].sort();
  field(id).replaceChildren(new Option("all", ""), ...all.map(name => new Option(name || "-", name || "-")));
}
function holds(row, words) {
  return Object.entries(picks).every(([id, key]) => !field(id).value || (row[key] || "-") === field(id).value)
    && words.every(word => row.text.includes(word));
}
function show() {
  const words = field("q").value.toLowerCase().split(/\\s+/).filter(Boolean);
  const rows = data.rows.filter(row => holds(row, words));
  const body = field("rows");
  body.replaceChildren();
  for (const row of rows) {
    const line = body.insertRow();
    cell(line, row.model, "name"); cell(line, row.host, "name"); cell(line, row.engine || "-", "name");
    cell(line, row.status, row.status);
    for (const profile of data.profiles) {
      const shape = row.profiles[profile];
      const bad = shape && shape.refused;
      cell(line, !shape ? "-" : bad ? "refused" : shape.instances + " x TP" + shape.tensor_parallel_size,
        bad ? "refused" : "");
      if (bad) line.lastChild.title = shape.refused;
    }
    cell(line, [row.evidence, ...new Set(Object.values(row.profiles).map(shape => shape.refused))]
      .filter(Boolean).join("; "), "why");
  }
  field("count").textContent = rows.length + " of " + data.rows.length + " rows";
  const issues = data.issues.filter(issue => words.every(word => issue.text.includes(word)));
  field("issues").replaceChildren();
  for (const issue of issues) {
    const line = field("issues").insertRow();
    cell(line, issue.id, "name");
    for (const key of ["where", "cause", "fix", "source"]) cell(line, issue[key], "why");
  }
  field("issue-count").textContent = issues.length + " of " + data.issues.length + " issues";
  const kept = new URLSearchParams();
  for (const id of ["q", ...Object.keys(picks)]) if (field(id).value) kept.set(id, field(id).value);
  history.replaceState(null, "", kept.size ? "#" + kept : location.pathname + location.search);
}
function restore() {
  const kept = new URLSearchParams(location.hash.slice(1));
  for (const id of ["q", ...Object.keys(picks)]) field(id).value = kept.get(id) || "";
  show();
}
for (const row of data.rows) {
  row.family = row.host.replace(/-\\d+$/, "");
  row.text = JSON.stringify(row).toLowerCase();
}
for (const issue of data.issues) issue.text = JSON.stringify(issue).toLowerCase();
for (const name of ["model", "host class", "engine", "status", ...data.profiles, "evidence, reason"]) {
  const head = document.createElement("th");
  head.textContent = name;
  field("head").append(head);
}
for (const [id, key] of Object.entries(picks)) options(id, key);
field("filters").addEventListener("input", show);
field("filters").addEventListener("reset", () => setTimeout(show));
field("filters").addEventListener("submit", event => event.preventDefault());
addEventListener("hashchange", restore);
restore();
</script>
</body>
</html>
"""


def html(catalog: Catalog) -> str:
    """The text of docs/matrix-table.html. Its address keeps what a reader has chosen: ``#host=h100&q=aiter``.

    Args:
        catalog: the recipes.

    Raises:
        FleetError: the recipes are wrong; ``vllm-fleet check`` prints every error.
    """
    lines = [
        f'{{"profiles": {_json(list(catalog.profiles))},',
        '"rows": [',
        ",\n".join(_json(_row(row)) for row in sorted(support_matrix.rows(catalog), key=_is_refused)),
        "],",
        '"issues": [',
        ",\n".join(_json(issue) for issue in _issues(catalog)),
        "]}",
    ]
    return _PAGE.replace("%DATA%", "\n".join(lines))


def _is_refused(row: Row) -> bool:
    """What can be served stands first."""
    return not row.shapes


def _row(row: Row) -> dict[str, Any]:
    record = row.record()
    return {"model": record["model"], "host": record.pop("host_class"), **record}


def _issues(catalog: Catalog) -> Iterator[dict[str, Any]]:
    for issue in catalog.known_issues.issues:
        where = support_matrix.where(issue.when)
        yield {"id": issue.id, "cause": issue.cause, "fix": issue.fix, "source": issue.source, "where": where}


def _json(value: Any) -> str:
    """JSON that cannot end the element of the page that holds it."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
