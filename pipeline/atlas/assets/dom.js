/* Building the page. Text from the run only ever enters as text nodes, never as markup. */
(function (atlas) {
  "use strict";

  const SVG = "http://www.w3.org/2000/svg";

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat(Infinity)) {
      if (child !== null && child !== undefined && child !== false) element.append(child);
    }
    return element;
  }

  /** An HTML element: h("p", {class: "x"}, "text", child). */
  atlas.h = (tag, attributes, ...children) =>
    fill(document.createElement(tag), attributes, children);

  /** An SVG element. */
  atlas.svg = (tag, attributes, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);

  /** A text of the run, set apart from its surroundings whatever its direction. */
  atlas.text = (text, attributes) => atlas.h("bdi", attributes, text);

  atlas.link = {
    overview: () => "#/",
    neurons: (parameters) => "#/neurons" + query(parameters),
    layer: (layer, parameters) => `#/layer/${encodeURIComponent(layer)}` + query(parameters),
    neuron: (layer, pooling, number) =>
      `#/neuron/${encodeURIComponent(layer)}/${encodeURIComponent(pooling)}/${number}`,
    concept: (text) => atlas.link.neurons({ q: `"${text.replaceAll('"', '""')}"` }),
  };

  function query(parameters) {
    const entries = Object.entries(parameters || {}).filter(([, value]) => value !== "" && value !== null);
    return entries.length ? "?" + new URLSearchParams(entries) : "";
  }

  /** What may be wider than its place: scrolled by keyboard as well as by hand. */
  atlas.scroll = (label, ...children) =>
    atlas.h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, children);

  /** Exclusive choice between a few options, as buttons. */
  atlas.choice = function (label, options, current, choose) {
    const buttons = options.map(([value, text]) =>
      atlas.h("button", {
        type: "button",
        "aria-pressed": String(value === current),
        onclick: () => choose(value),
      }, atlas.text(text)));
    return atlas.h("div", { class: "choice", role: "group", "aria-label": label }, buttons);
  };

  const tooltip = () => document.getElementById("tooltip");

  /** Show something above a point, or below `under` where there is no room above. */
  atlas.showTip = function (content, x, y, under = y + 8) {
    const tip = tooltip();
    tip.replaceChildren(...[content].flat());
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, x - box.width / 2), window.innerWidth - box.width - 8);
    const header = 56;
    const top = y - box.height - 10 > header ? y - box.height - 10 : under + 10;
    tip.style.left = `${left}px`;
    tip.style.top = `${top}px`;
  };

  atlas.hideTip = () => { tooltip().hidden = true; };

  /** Give an element a tip on hover and on focus; content is made when it is wanted. */
  atlas.tip = function (element, make) {
    const show = () => {
      const box = element.getBoundingClientRect();
      atlas.showTip(make(), box.left + box.width / 2, box.top, box.bottom);
    };
    element.addEventListener("pointerenter", show);
    element.addEventListener("focus", show);
    element.addEventListener("pointerleave", atlas.hideTip);
    element.addEventListener("blur", atlas.hideTip);
    return element;
  };
})(window.atlas);
