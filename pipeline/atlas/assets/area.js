/* The terms of an explanation along the activation range: what each contributes where the neuron is
 * quiet and where it is strong. */
(function (atlas) {
  "use strict";

  const { h, text, format } = atlas;

  /**
   * @param bins    [mean activation, number of images] of each bin
   * @param profile mean score of each of the neuron's concepts in each bin, concept by concept
   * @returns {element, draw}: draw(one, texts) shows an entry of a path
   */
  atlas.areaChart = function ([at, counts], profile) {
    const place = h("div", { class: "area-plot" });
    const keys = h("ul", { class: "layer-keys area-keys", "aria-label": "Terms" });
    const bins = d3.range(at.length);

    function draw(one, texts) {
      const terms = one.terms.map((t, number) => ({
        name: texts[one.concepts[number]],
        negative: one.weights[number] < 0,
        parts: at.map((_, bin) => one.weights[number] * profile[t * at.length + bin]),
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
      const [low, high] = d3.extent([...up, ...down, ...at]);
      const pad = 0.04 * (high - low || 1);
      const range = [low - pad, high + pad];
      const line = (values, className) => Plot.line(bins, { className, x: at, y: values });
      const drawing = atlas.draw(label(terms, at), {
        width: 620, height: 230, marginLeft: 46, marginRight: 12, marginTop: 10, marginBottom: 40,
        x: { domain: d3.extent(at) },
        y: { domain: range },
        marks: [
          atlas.upAxis(range, format.value),
          atlas.footAxis(6, format.value, { label: "activation" }),
          terms.map((term) => Plot.areaY(bins, { className: "term-area", fill: term.tone, x: at, y1: term.from, y2: term.to })),
          line(at, "recorded"), line(sum, "halo"), line(sum, "predicted"),
          Plot.axisX(at, { className: "bin-marks", tickSize: 4, fill: "none", label: null }),
          Plot.ruleX(bins, Plot.pointerX({ className: "cursor", x: at, maxRadius: Infinity, ariaHidden: "true" })),
        ],
      });
      atlas.pointed(drawing, (bin) => {
        if (bin === null) { atlas.hideTip(); return; }
        const [x, , bottom] = atlas.placeOf(drawing, at[bin], null);
        atlas.showTip([
          h("p", {}, h("b", {}, `activation ${format.value(at[bin])}`), ` \u00b7 ${format.counted(counts[bin], "image")}`),
          h("p", {}, `predicted ${format.value(sum[bin])}: `,
            terms.map((term, number) => [number > 0 && ", ", text(term.name), ` ${signed(term.parts[bin])}`]), `, bias ${signed(bias)}`),
        ], x, drawing.getBoundingClientRect().top + 8, bottom);
      });
      place.replaceChildren(drawing);
      const areas = drawing.querySelectorAll(".term-area");
      keys.replaceChildren(...terms.map((term, number) => {
        const light = (on) => () => {
          drawing.classList.toggle("lighting", on);
          areas[number].classList.toggle("lit", on);
        };
        return h("li", { style: `--tone:${term.tone}`, tabindex: 0, onpointerenter: light(true), onfocus: light(true),
          onpointerleave: light(false), onblur: light(false) },
        h("i", { class: "block", "aria-hidden": "true" }), term.negative ? "\u2212 " : "", text(term.name));
      }), h("li", {}, h("i", { class: "stroke solid", "aria-hidden": "true" }), "predicted"),
      h("li", {}, h("i", { class: "stroke dotted", "aria-hidden": "true" }), "recorded"));
    }
    return { element: h("div", {}, place, keys), draw };
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
