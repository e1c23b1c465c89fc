/* GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Search, sorting and links into folded parts. The page can be read without it.
 */

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
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
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
