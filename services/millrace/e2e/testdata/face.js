// What the tests of the pages look for inside a page. Each function returns a list of complaints.
({
  // where names an element for a complaint.
  where(e) {
    const id = e.id ? `#${e.id}` : '';
    const cls = typeof e.className === 'string' && e.className ? `.${e.className.trim().replace(/\s+/g, '.')}` : '';
    return `${e.tagName.toLowerCase()}${id}${cls} "${(e.textContent || '').trim().slice(0, 40)}"`;
  },

  visible(e) {
    return e.checkVisibility({opacityProperty: true, visibilityProperty: true}) && e.getClientRects().length > 0;
  },

  // nameOf is the accessible name, as far as these pages use the ways to give one.
  nameOf(e) {
    const by = (e.getAttribute('aria-labelledby') || '').split(/\s+/).filter(Boolean).map((id) => document.getElementById(id)?.textContent || '').join(' ');
    const label = e.labels && e.labels.length ? [...e.labels].map((l) => l.textContent).join(' ') : '';
    const images = [...e.querySelectorAll('img[alt], svg[aria-label]')].map((i) => i.getAttribute('alt') || i.getAttribute('aria-label')).join(' ');
    const inside = ['A', 'BUTTON', 'SUMMARY'].includes(e.tagName) ? e.textContent : '';
    return (e.getAttribute('aria-label') || by || label || inside || images || e.getAttribute('title') || '').trim();
  },

  // names checks that all can be found and told apart without seeing the page.
  names() {
    const bad = [];
    const one = (selector, n = 1) => {
      const found = [...document.querySelectorAll(selector)].filter((e) => this.visible(e));
      if (found.length !== n) bad.push(`${found.length} of ${selector}, want ${n}`);
    };
    one('main'); one('h1'); one('body > header'); one('body > footer'); one('[aria-current=page]');
    if (!document.documentElement.lang) bad.push('the page names no language');
    if (!document.title) bad.push('the page has no title');
    for (const e of document.querySelectorAll('a[href], button, input:not([type=hidden]), select, textarea, summary, nav, section, form[role], [role=region], [role=group]')) {
      if (this.visible(e) && !this.nameOf(e) && !e.querySelector(':scope > h2, :scope > h3')) bad.push(`${this.where(e)} has no name`);
    }
    for (const e of document.querySelectorAll('section:not([aria-label]):not([aria-labelledby])')) bad.push(`${this.where(e)} has no name`);
    for (const e of document.querySelectorAll('img:not([alt])')) bad.push(`${this.where(e)} has no alternative text`);
    for (const e of document.querySelectorAll('svg')) {
      if (!e.closest('[aria-hidden=true]') && e.getAttribute('role') !== 'img') bad.push(`${this.where(e)} is neither named nor hidden`);
    }
    for (const e of document.querySelectorAll('table')) {
      if (!e.querySelector('th')) bad.push(`${this.where(e)} has no heads`);
    }
    const ids = new Set();
    for (const e of document.querySelectorAll('[id]')) {
      if (ids.has(e.id)) bad.push(`two elements have the id ${e.id}`);
      ids.add(e.id);
    }
    for (const e of document.querySelectorAll('[aria-labelledby], [aria-describedby], label[for]')) {
      for (const id of [e.getAttribute('aria-labelledby'), e.getAttribute('aria-describedby'), e.getAttribute('for')].filter(Boolean).flatMap((s) => s.split(/\s+/))) {
        if (!document.getElementById(id)) bad.push(`${this.where(e)} points to ${id}, which is not there`);
      }
    }
    let level = 0;
    for (const e of document.querySelectorAll('h1, h2, h3, h4')) {
      const next = Number(e.tagName[1]);
      if (next > level + 1) bad.push(`${this.where(e)} follows a heading of level ${level}`);
      level = next;
    }
    return bad;
  },

  colour(text) {
    const canvas = this.canvas ||= Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return {r, g, b, a: a / 255};
  },

  over(top, below) {
    const mix = (x, y) => x * top.a + y * (1 - top.a);
    return {r: mix(top.r, below.r), g: mix(top.g, below.g), b: mix(top.b, below.b), a: 1};
  },

  luminance({r, g, b}) {
    const [x, y, z] = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  },

  // contrast compares each text with what is behind it, as WCAG 2.2 AA asks.
  contrast() {
    const bad = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let texts = 0;
    while (walker.nextNode()) {
      const e = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || !this.visible(e) || e.closest('noscript, script, option')) continue;
      const style = getComputedStyle(e);
      let ground = {r: 0, g: 0, b: 0, a: 0};
      for (let at = e; at && ground.a < 1; at = at.parentElement) {
        const c = this.colour(getComputedStyle(at).backgroundColor);
        if (c.a > 0) ground = ground.a ? this.over(ground, c) : c;
      }
      if (ground.a < 1) ground = this.over(ground, {r: 255, g: 255, b: 255, a: 1});
      const [l1, l2] = [this.luminance(this.over(this.colour(style.color), ground)), this.luminance(ground)];
      const ratio = (Math.max(l1, l2) + 0.05) / (Math.min(l1, l2) + 0.05);
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || size >= 18.66 && Number(style.fontWeight) >= 700;
      texts++;
      if (ratio < (large ? 3 : 4.5)) bad.add(`${this.where(e)}: contrast ${ratio.toFixed(2)}`);
    }
    if (texts < 20) bad.add(`${texts} texts only`);
    return [...bad];
  },

  // fits checks that nothing has to be scrolled sideways, and that nothing stands beyond the edge.
  fits() {
    const bad = [];
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth > width) bad.push(`the page is ${document.documentElement.scrollWidth} wide, the window ${width}`);
    for (const e of document.querySelectorAll('main *, header *, footer *')) {
      const box = e.getBoundingClientRect();
      if (box.width > 1 && this.visible(e) && (box.right > width + 1 || box.left < -1)) bad.push(`${this.where(e)} reaches from ${box.left} to ${box.right} of ${width}`);
    }
    return bad.slice(0, 10);
  },

  // focused tells what has the focus, and whether that can be seen.
  focused() {
    const e = document.activeElement;
    if (!e || e === document.body) return {name: '', seen: true};
    const style = getComputedStyle(e);
    const box = e.getBoundingClientRect();
    const seen = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 && box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0;
    return {name: this.nameOf(e).replace(/\s+/g, ' '), seen};
  },
})
