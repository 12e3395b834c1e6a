'use strict';

// Loads the page again every few seconds while it is looked at, and changes only what has changed, so that focus, scrolling, selections, opened details and filled-in
// fields stay. Without scripts, the browser loads the page by itself.
(() => {
  const every = 1000 * Number(document.body.dataset.refresh);
  if (!every) return;

  // key names an element among its siblings, where their order may change.
  const key = (node) => node.nodeType === Node.ELEMENT_NODE ? node.id || node.dataset.key || '' : '';
  const alike = (a, b) => a.nodeName === b.nodeName && key(a) === key(b);

  // become makes a node like another of the same name.
  function become(have, want) {
    if (have.nodeType !== Node.ELEMENT_NODE) {
      if (have.data !== want.data) have.data = want.data;
      return;
    }
    const own = (name) => name === 'open' && have.nodeName === 'DETAILS';
    for (const {name} of [...have.attributes]) {
      if (!want.hasAttribute(name) && !own(name)) have.removeAttribute(name);
    }
    for (const {name, value} of want.attributes) {
      if (have.getAttribute(name) !== value && !own(name)) have.setAttribute(name, value);
    }
    becomeInside(have, want);
  }

  // becomeInside gives a node the children of another. All before `at` are as they shall be.
  function becomeInside(have, want) {
    const named = new Map();
    for (const child of have.childNodes) {
      if (key(child)) named.set(key(child), child);
    }
    let at = have.firstChild;
    for (const next of [...want.childNodes]) {
      const old = key(next) ? named.get(key(next)) : at;
      if (!old || !alike(old, next)) {
        have.insertBefore(document.importNode(next, true), at);
        continue;
      }
      if (old === at) at = at.nextSibling;
      else have.insertBefore(old, at);
      become(old, next);
    }
    while (at) {
      const old = at;
      at = at.nextSibling;
      old.remove();
    }
  }

  let since = Date.now();
  let busy = false;

  async function refresh() {
    if (document.hidden || busy || document.body.dataset.refresh === '0') return;
    busy = true;
    try {
      const answer = await fetch(location.href, {cache: 'no-store', signal: AbortSignal.timeout(20000)});
      const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
      if (!page.querySelector('main')) throw new Error(`it answers ${answer.status}`);
      if (page.body.dataset.assets !== document.body.dataset.assets) {
        location.reload(); // another version runs now
        return;
      }
      document.title = page.title;
      document.body.dataset.refresh = page.body.dataset.refresh;
      becomeInside(document.body, page.body);
      since = Date.now();
    } catch (err) {
      const stale = document.getElementById('stale');
      stale.textContent = `This is how it was at ${new Date(since).toLocaleTimeString()}: the process does not answer (${err.message}). Trying again.`;
      stale.hidden = false;
    }
    busy = false;
  }

  setInterval(refresh, every);
  document.addEventListener('visibilitychange', () => {
    if (Date.now() - since > every) refresh();
  });
})();
