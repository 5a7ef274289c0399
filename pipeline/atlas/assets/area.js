/* The terms of an explanation along the activation range: what each contributes where the neuron is
 * quiet and where it is strong. */
(function (atlas) {
  "use strict";

  const { h, svg, text, format, plots } = atlas;
  const WIDTH = 620, HEIGHT = 230, LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 40;

  /**
   * @param bins    [mean activation, number of images] of each bin
   * @param profile mean score of each of the neuron's concepts in each bin, concept by concept
   * @returns {element, draw}: draw(one, texts) shows an entry of a path
   */
  atlas.areaChart = function ([at, counts], profile) {
    const plot = svg("svg", { class: "plot area-plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    const keys = h("ul", { class: "layer-keys area-keys", "aria-label": "Terms" });
    const element = h("div", {}, plot, keys);
    const last = at.length - 1;
    const x = (value) => LEFT + ((value - at[0]) / (at[last] - at[0] || 1)) * (WIDTH - LEFT - RIGHT);

    function draw(one, texts) {
      const terms = one.terms.map((t, place) => ({
        name: texts[one.concepts[place]],
        negative: one.weights[place] < 0,
        parts: at.map((_, bin) => one.weights[place] * profile[t * at.length + bin]),
      }));
      tones(terms);
      const bias = one.bias || 0;
      const up = at.map(() => bias), down = at.map(() => bias), sum = at.map(() => bias);
      for (const term of terms) {
        const base = term.negative ? down : up;
        term.from = base.slice();
        term.parts.forEach((part, bin) => { base[bin] += part; sum[bin] += part; });
        term.to = base.slice();
      }
      const all = [...up, ...down, ...at];
      const pad = 0.04 * (Math.max(...all) - Math.min(...all) || 1);
      const low = Math.min(...all) - pad, high = Math.max(...all) + pad;
      const y = (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM);
      const points = (values) => values.map((value, bin) => `${x(at[bin]).toFixed(1)},${y(value).toFixed(1)}`);
      const floor = HEIGHT - BOTTOM;
      const areas = terms.map((term) => svg("polygon", {
        class: "term-area", style: `--tone:${term.tone}`,
        points: [...points(term.to), ...points(term.from).reverse()].join(" "),
      }));
      const cursor = svg("line", { class: "cursor", y1: TOP, y2: floor, visibility: "hidden" });
      plot.setAttribute("aria-label", label(terms, at));
      plot.replaceChildren(
        ...plots.ticks(low, high, 4).flatMap((mark) => [
          svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(mark), y2: y(mark), class: mark === 0 ? "zero" : "grid" }),
          svg("text", { x: LEFT - 6, y: y(mark) + 4, "text-anchor": "end", class: "tick" }, format.value(mark)),
        ]),
        ...plots.ticks(at[0], at[last], 6).map((mark) =>
          svg("text", { x: x(mark), y: floor + 16, "text-anchor": "middle", class: "tick" }, format.value(mark))),
        ...areas,
        svg("polyline", { class: "recorded", points: points(at).join(" ") }),
        svg("polyline", { class: "halo", points: points(sum).join(" ") }),
        svg("polyline", { class: "predicted", points: points(sum).join(" ") }),
        svg("g", { class: "bin-marks" }, at.map((value) => svg("line", { x1: x(value), x2: x(value), y1: floor, y2: floor + 4 }))),
        cursor,
        svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle", class: "axis" }, "activation"));
      keys.replaceChildren(...terms.map((term, place) => {
        const light = (on) => () => {
          plot.classList.toggle("lighting", on);
          areas[place].classList.toggle("lit", on);
        };
        return h("li", { style: `--tone:${term.tone}`, tabindex: 0, onpointerenter: light(true), onfocus: light(true),
          onpointerleave: light(false), onblur: light(false) },
        h("i", { class: "block", "aria-hidden": "true" }), term.negative ? "\u2212 " : "", text(term.name));
      }), h("li", {}, h("i", { class: "stroke solid", "aria-hidden": "true" }), "predicted"),
      h("li", {}, h("i", { class: "stroke dotted", "aria-hidden": "true" }), "recorded"));
      const tell = (bin) => {
        const box = plot.getBoundingClientRect();
        cursor.setAttribute("x1", x(at[bin]));
        cursor.setAttribute("x2", x(at[bin]));
        cursor.setAttribute("visibility", "visible");
        atlas.showTip([
          h("p", {}, h("b", {}, `activation ${format.value(at[bin])}`), ` \u00b7 ${format.counted(counts[bin], "image")}`),
          h("p", {}, `predicted ${format.value(sum[bin])}: `,
            terms.map((term, place) => [place > 0 && ", ", text(term.name), ` ${signed(term.parts[bin])}`]), `, bias ${signed(bias)}`),
        ], box.left + (x(at[bin]) / WIDTH) * box.width, box.top + 8, box.bottom);
      };
      plot.onpointermove = (event) => {
        const box = plot.getBoundingClientRect();
        const px = ((event.clientX - box.left) / box.width) * WIDTH;
        let best = 0;
        at.forEach((value, bin) => { if (Math.abs(x(value) - px) < Math.abs(x(at[best]) - px)) best = bin; });
        tell(best);
      };
      plot.onpointerleave = () => { atlas.hideTip(); cursor.setAttribute("visibility", "hidden"); };
    }
    return { element, draw };
  };

  const signed = (value) => (value > 0 ? "+" : "") + format.value(value, 2);

  /** Raising terms from deep to pale blue, lowering ones from deep to pale orange. */
  function tones(terms) {
    for (const negative of [false, true]) {
      const own = terms.filter((term) => term.negative === negative);
      own.forEach((term, place) => {
        const share = Math.round(100 * (1 - place / Math.max(1, own.length - 1)));
        term.tone = negative ? `color-mix(in oklab, var(--negative) ${share}%, var(--warm-pale))`
          : `color-mix(in oklab, var(--b1) ${share}%, var(--b4))`;
      });
    }
  }

  /** In words: what the strongest activations are made of. */
  function label(terms, at) {
    const top = terms.map((term) => [term.name, term.parts[at.length - 1]])
      .sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 3)
      .map(([name, part]) => `${name} ${signed(part)}`).join(", ");
    return `Mean contribution of each term along the activation range; at the highest activations ${top}`;
  }
})(window.atlas);
