# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the page looks, and the few lines of script that make it handier. It can be read without them.

Every pair of a text colour and its ground has a contrast of at least 4.5 to 1 (WCAG 2.2, AA); tests/unit/test_report_page.py counts them.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--bg:#f4f6f8;--card:#fff;--text:#1a2028;--muted:#55606e;--line:#d8dee6;--link:#0b57a4;
--act-bg:#fde8e6;--act:#99170e;--look-bg:#fff1cf;--look:#724500;--note-bg:#e4effb;--note:#0b4a8f;--ok-bg:#e2f4e8;--ok:#125c2c;
--ours:#0b7a4b;--other_owner:#6b46c1;--backup:#0b6fb8;--person:#b45309}
@media(prefers-color-scheme:dark){:root{--bg:#11151a;--card:#1a2028;--text:#e6eaf0;--muted:#a5afbc;--line:#343d49;--link:#8cc2ff;
--act-bg:#4b1814;--act:#ffb8b0;--look-bg:#453300;--look:#ffd784;--note-bg:#13314f;--note:#add3ff;--ok-bg:#11361f;--ok:#94e2af;
--ours:#4cc38a;--other_owner:#b79cf5;--backup:#6cb8f5;--person:#f0a35e}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;
overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;margin-top:.5rem}
main,header,footer{max-width:82rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:1.5rem}
h1{font-size:1.5rem;line-height:1.25;margin:0}
h2{font-size:1.1rem;margin:0 0 .75rem}
p{margin:.25rem 0}
a{color:var(--link)}
.muted,small{color:var(--muted)}
section{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.1rem;margin:1rem 0}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:.75rem;margin:1rem 0;padding:0;list-style:none}
.tiles li{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem}
.tiles b{display:block;font-size:1.55rem;line-height:1.2;font-variant-numeric:tabular-nums}
.tiles .act b{color:var(--act)}.tiles .look b{color:var(--look)}.tiles .ok b{color:var(--ok)}
table{border-collapse:collapse;width:100%}
.todos{table-layout:fixed}
.todos th:nth-child(1){width:8.5rem}.todos th:nth-child(2){width:24%}.todos th:nth-child(3){width:30%}
section>details{border-top:1px solid var(--line);padding-top:.6rem;margin-top:.6rem}section>details caption{padding-top:.5rem}
caption{text-align:left;color:var(--muted);padding-bottom:.5rem}
th,td{text-align:left;vertical-align:top;padding:.45rem .6rem;border-bottom:1px solid var(--line)}
thead th{color:var(--muted);font-size:.85rem;font-weight:600;white-space:nowrap}
tbody th{font-weight:600}
tbody th small{font-weight:400}
#endpoints th:first-child,#endpoints td:nth-child(3),#audit tbody th{min-width:13rem}
#endpoints td:nth-child(2),#totals th,#vms td{white-space:nowrap}#vms .d td{white-space:normal}
#audit td:nth-child(1){min-width:7rem}#audit td:nth-child(2),#audit td:nth-child(4){min-width:11rem}
tbody:last-child>tr:last-child>*{border-bottom:0}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.b{display:inline-block;border-radius:1rem;padding:0 .6rem;font-size:.85rem;font-weight:600;white-space:nowrap}
.act>.b,.b.act{background:var(--act-bg);color:var(--act)}.look>.b,.b.look{background:var(--look-bg);color:var(--look)}
.note>.b,.b.note{background:var(--note-bg);color:var(--note)}.ok>.b,.b.ok{background:var(--ok-bg);color:var(--ok)}
.g{white-space:nowrap}.g::before{content:"";display:inline-block;width:.65em;height:.65em;border-radius:.15em;margin-right:.4em;background:var(--c)}
.ours{--c:var(--ours)}.other_owner{--c:var(--other_owner)}.backup{--c:var(--backup)}.person{--c:var(--person)}
.todo{display:block;border-left:3px solid var(--line);padding-left:.6rem}
#vms tr.s>*{border-bottom:0;padding-bottom:.1rem}
#vms tr.d>td{padding-top:0}
#vms tbody:target{outline:2px solid var(--link)}
summary{cursor:pointer;color:var(--link)}
.t,.t ol{list-style:none;margin:0;padding:0}
.t{overflow-x:auto;padding:.5rem 0 .25rem .45rem}
.t li{position:relative;padding:.2rem 0 .5rem 1.35rem;border-left:2px solid var(--line)}
.t li:last-child{border-left-color:transparent}
.t li::before{content:"";position:absolute;left:calc(-.375rem - 1px);top:.6rem;width:.75rem;height:.75rem;border-radius:50%;background:var(--c,var(--muted));
box-shadow:0 0 0 3px var(--card)}
.t li::after{content:"";position:absolute;left:-2px;top:0;height:.6rem;border-left:2px solid var(--line)}
.t li:first-child::after{border-left-color:var(--card)}
.t .here::before{background:var(--card);border:2px solid var(--text)}
.t .fork,.t .fork:last-child{padding-bottom:0;border-left-color:var(--line);z-index:0}
.t .fork>ol{position:relative;padding-left:.5rem}
.t .fork>ol::after{content:"";position:absolute;left:calc(-1.35rem - 2px);top:-.6rem;width:1.75rem;height:1.6rem;
border:solid var(--line);border-width:0 0 2px 2px;border-bottom-left-radius:.6rem;z-index:-1}
.t .fork>ol:last-child::before{content:"";position:absolute;left:calc(-1.35rem - 2px);top:0;bottom:0;border-left:2px solid var(--card);z-index:-1}
.t small{display:block}
.find{display:flex;flex-wrap:wrap;gap:.6rem 1rem;align-items:end;margin:0 0 1rem}
.find label{display:block;font-size:.85rem;color:var(--muted)}
input,select,th button{font:inherit;color:inherit}
input,select{background:var(--bg);border:1px solid var(--muted);border-radius:.4rem;padding:.35rem .6rem}
input{width:min(22rem,80vw)}
th button{background:none;border:0;padding:0;cursor:pointer;text-decoration:underline dotted;text-underline-offset:.25em}
th[aria-sort=ascending] button::after{content:" \\2191"}th[aria-sort=descending] button::after{content:" \\2193"}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
[hidden]{display:none!important}
footer{padding-bottom:2rem}
@media(max-width:46rem){
main,header,footer{padding-left:.75rem;padding-right:.75rem}
section{padding:.8rem .75rem}
.tiles{grid-template-columns:1fr 1fr}
table,caption,tbody,tr,td,tbody th{display:block;width:100%;min-width:0!important}
thead{position:absolute;clip-path:inset(50%);width:1px;height:1px;overflow:hidden}
.b{white-space:normal}.todos tbody th{width:100%!important}
tbody tr{padding:.5rem 0;border-bottom:1px solid var(--line)}
tbody:last-child>tr:last-child{border-bottom:0}
td,tbody th{border:0;padding:.1rem 0;text-align:left}
td.n{display:inline-block;width:auto;margin-right:1rem;text-align:left;white-space:normal}
td[data-l]::before{content:attr(data-l) ": ";color:var(--muted)}
#vms tr.s,#vms tr.d{border:0;padding:0}
#vms tbody{border-bottom:1px solid var(--line);padding:.6rem 0}
#vms tr.s>td{display:inline-block;width:auto;margin-right:.9rem}
#vms tr.s>td:first-child{display:block}
}
@media print{
:root{color-scheme:light;--bg:#fff;--card:#fff;--text:#000;--muted:#444;--line:#bbb}
body{font-size:9.5pt}section{border:0;padding:0;break-inside:auto}
.find{display:none}tbody tr,.t li,.tiles li{break-inside:avoid}thead{display:table-header-group}
.b{border:1px solid currentcolor}
details::details-content{content-visibility:visible;display:block;height:auto}
}
"""

SCRIPT = """
'use strict';
(() => {
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  const vms = document.getElementById('vms');
  // The controls do nothing without this script, so that they are shown by it.
  all('[hidden]').forEach(one => { one.hidden = false; });
  const rows = all('tbody[id]', vms || undefined).concat(all('.todos tbody tr'));
  const texts = new Map(rows.map(row => [row, row.textContent.toLowerCase()]));
  const query = document.getElementById('q'), wanted = document.getElementById('s'), said = document.getElementById('found');
  const narrow = () => {
    const words = query.value.toLowerCase().split(/\\s+/).filter(Boolean);
    const narrowed = words.length > 0 || wanted.value !== '';
    let shown = 0;
    for (const [row, text] of texts) {
      const fits = words.every(word => text.includes(word)) && (!wanted.value || row.dataset.s === wanted.value);
      row.hidden = !fits;
      if (fits && narrowed && !row.id && row.closest('details')) row.closest('details').open = true;
      if (fits && row.id) shown += 1;
    }
    said.textContent = narrowed ? shown + ' VMs found' : '';
  };
  if (query) { query.addEventListener('input', narrow); wanted.addEventListener('change', narrow); }
  const key = cell => cell.dataset.k === undefined ? cell.textContent.trim().toLowerCase() : Number(cell.dataset.k);
  all('thead th', vms || undefined).forEach((head, at) => {
    if (!vms) return;
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'ascending';
      all('th', head.parentNode).forEach(one => one.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const keyed = all('tbody', vms).map(body => [key(body.rows[0].cells[at]), body]);
      keyed.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1));
      vms.append(...keyed.map(one => one[1]));
    });
  });
  const open = () => {
    const body = location.hash && document.getElementById(location.hash.slice(1));
    if (body && body.tBodies === undefined) all('details', body).forEach(one => { one.open = true; });
  };
  addEventListener('hashchange', open);
  addEventListener('beforeprint', () => all('details').forEach(one => { one.open = true; }));
  open();
})();
"""
