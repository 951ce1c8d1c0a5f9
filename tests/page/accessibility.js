// What can be checked by rule on a rendered page. Returns what is wrong, in words.
() => {
  return [names(), structure(), contrast(), graphics()].flat();

  // Every control has a name.
  function names() {
    const shown = (node) => node.checkVisibility();
    const named = (node) => (node.getAttribute("aria-label") ?? "").trim() || (node.labels?.length && node.labels[0].textContent.trim())
      || (node.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join("").trim()
      || (node.matches("button, a") && node.textContent.trim());
    const controls = [...document.querySelectorAll("input, select, textarea, button, a[href], progress, [role=meter], [role=img]")];
    return controls.filter(shown).filter((node) => !named(node)).map((node) => `no name: ${node.outerHTML.slice(0, 120)}`);
  }

  // Landmarks, headings, tables, references.
  function structure() {
    const wrong = [];
    const shown = [...document.querySelectorAll("*")].filter((node) => node.checkVisibility());
    const all = (selector) => shown.filter((node) => node.matches(selector));
    for (const landmark of ["main", "header", "nav", "h1"]) {
      if (all(landmark).length !== 1) wrong.push(`${all(landmark).length} of ${landmark}`);
    }
    let before = 0;
    for (const heading of all("h1, h2, h3, h4, h5, h6")) {
      const level = Number(heading.tagName[1]);
      if (level > before + 1) wrong.push(`h${level} after h${before}: ${heading.textContent}`);
      before = level;
    }
    for (const image of all("img")) if (!image.hasAttribute("alt")) wrong.push(`no alt: ${image.src}`);
    for (const drawing of all("svg")) {
      if (drawing.getAttribute("aria-hidden") !== "true" && !drawing.closest("[aria-hidden=true]") && drawing.getAttribute("role") !== "img") {
        wrong.push(`a drawing that is neither hidden nor described: ${drawing.outerHTML.slice(0, 80)}`);
      }
    }
    for (const table of all("table")) {
      if (!table.caption?.textContent) wrong.push("a table without a caption");
      for (const cell of table.querySelectorAll("th")) if (!cell.scope) wrong.push(`a header without a scope: ${cell.textContent}`);
    }
    const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
    for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) wrong.push(`the id ${id} twice`);
    for (const node of document.querySelectorAll("[aria-labelledby], [aria-controls], [aria-describedby]")) {
      for (const name of ["aria-labelledby", "aria-controls", "aria-describedby"]) {
        for (const id of (node.getAttribute(name) ?? "").split(" ").filter(Boolean)) if (!document.getElementById(id)) wrong.push(`${name} ${id}: nothing`);
      }
    }
    return wrong;
  }

  // WCAG 2.2, contrast (minimum): 4.5 of text, against the colours that lie behind it.
  function contrast() {
    const parse = (text) => (text.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
    const over = ([r, g, b, a = 1], below) => [r, g, b].map((value, at) => a * value + (1 - a) * below[at]);
    const light = (rgb) => rgb.map((value) => value / 255).map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
      .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
    const ground = (node) => {
      const layers = [];
      for (let at = node; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
      return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
    };
    const wrong = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const node = texts.currentNode.parentElement;
      if (!texts.currentNode.textContent.trim() || !node.checkVisibility() || node.closest("noscript, option")) continue;
      const style = getComputedStyle(node);
      const behind = ground(node);
      const ink = over(parse(node.ownerSVGElement ? style.fill : style.color), behind);
      const [one, other] = [light(ink), light(behind)].sort((a, b) => b - a);
      const ratio = (one + 0.05) / (other + 0.05);
      if (ratio < 4.5) wrong.push(`${ratio.toFixed(2)}: ${node.tagName} ${node.className} ${texts.currentNode.textContent.trim().slice(0, 40)}`);
    }
    return wrong;
  }

  // WCAG 2.2, non-text contrast: 3 of what carries meaning, against the card that it lies on.
  function graphics() {
    const read = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const light = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
      .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
    const card = light(read("--card"));
    return ["--low", "--middle", "--high", "--second", "--accent", "--focus", "--soft"].map((name) => [name, light(read(name))])
      .map(([name, ink]) => [name, (Math.max(card, ink) + 0.05) / (Math.min(card, ink) + 0.05)])
      .filter(([, ratio]) => ratio < 3).map(([name, ratio]) => `${name} ${ratio.toFixed(2)}`);
  }
}
