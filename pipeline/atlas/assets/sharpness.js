/* How sharp the concept scores are, layer by layer, and why: a section of the overview. */
(function (atlas) {
  "use strict";

  const { h, text, format } = atlas;

  /** The section, or nothing where all concept scores are used as they are. */
  atlas.sharpness = function (overview) {
    const shown = overview.explainers.filter((explainer) =>
      explainer.sharpness.tried.length || explainer.sharpness.factors.some((factor) => factor !== 1) || explainer.sharpness.shifts.some((shift) => shift !== 0));
    if (!shown.length) return "";
    const tried = shown.some((explainer) => explainer.sharpness.tried.length);
    const others = overview.explainers.filter((explainer) => !shown.includes(explainer));
    return h("section", {},
      h("h2", {}, "Sharpness of concept scores"),
      h("p", { class: "aside" },
        "The logits of a model\u2019s concept scores are multiplied by a factor: above 1 the scores are sharper, nearer to yes or no, below 1 softer, nearer to a degree of likeness. A shift that is added raises them all. Simulators use the same as the explainer. ",
        tried && `For each layer factors were tried on a sample of images, with and without a shift. Of those with which explanations predict validation images at least ${format.percent(overview.nearly)} as well as with the best, the sharpest was taken, and no shift where none was needed.`),
      h("div", { class: "columns" }, shown.map((explainer) => figure(overview, explainer))),
      others.length > 0 && h("p", { class: "aside" },
        others.map((explainer, place) => [place > 0 && ", ", text(explainer.name)]),
        others.length > 1 ? ": their concept scores are used as they are." : ": its concept scores are used as they are."));
  };

  function figure(overview, explainer) {
    const { factors, shifts, levels, tried } = explainer.sharpness;
    const several = new Set(overview.groups.map((group) => group.pooling)).size > 1;
    const last = Math.max(1, overview.groups.length - 1);
    const rows = overview.groups.map((group, g) => ({
      g, name: several ? `${group.layer} ${group.pooling}` : group.layer, factor: factors[levels[g]], shift: shifts[levels[g]],
      // Early layers pale, late layers deep, whatever their number.
      tone: `color-mix(in oklab, var(--b0) ${Math.round((100 * g) / last)}%, var(--b3))`,
    }));
    const drawing = tried.length > 1 ? curves(explainer, rows) : null;
    const item = (row) => {
      const one = h("li", { style: `--tone:${row.tone}`, tabindex: drawing ? 0 : null },
        h("i", { class: "dash", "aria-hidden": "true" }), text(row.name),
        h("b", {}, `\u00d7\u202f${format.value(row.factor, 2)}${row.shift ? ` ${row.shift < 0 ? "\u2212" : "+"} ${format.value(Math.abs(row.shift), 2)}` : ""}`));
      if (drawing) {
        const light = (on) => () => drawing.light(row.g, on);
        for (const event of ["pointerenter", "focus"]) one.addEventListener(event, light(true));
        for (const event of ["pointerleave", "blur"]) one.addEventListener(event, light(false));
      }
      return one;
    };
    return h("figure", { class: "sharpness" },
      h("h3", {}, text(explainer.name)),
      drawing && drawing.element,
      h("ul", { class: "layer-keys", "aria-label": "Factor and shift of each layer" }, rows.map(item)));
  }

  /** One line a layer over the factors on a logarithmic axis; the chosen factor is a large point. */
  function curves(explainer, rows) {
    const { tried, curves: values } = explainer.sharpness;
    const all = values.flat().filter((value) => value !== null);
    if (!all.length) return null;
    const [low, high] = d3.extent(all);
    const pad = 0.08 * (high - low || 0.1);
    const up = [low - pad, high + pad];
    const [softest, sharpest] = d3.extent(tried);
    const marks = [0.1, 0.2, 0.5, 1, 2, 5, 10].filter((mark) => mark >= softest * 0.95 && mark <= sharpest * 1.05);
    const side = (text, anchor, lineAnchor) =>
      Plot.text([text], { className: "axis", frameAnchor: `bottom-${anchor}`, textAnchor: lineAnchor, dy: 36 });
    const element = atlas.draw(
      `Validation correlation by factor, a line for each of ${format.counted(rows.length, "layer")}; the list below gives the chosen factors`, {
        width: 520, height: 250, marginLeft: 40, marginRight: 10, marginTop: 10, marginBottom: 44,
        x: { type: "log", domain: [softest * 0.95, sharpest * 1.05] },
        y: { domain: up },
        marks: [
          atlas.upAxis(up, (value) => format.value(value, 2)),
          atlas.footAxis(marks, format.value, { grid: true, strong: marks.includes(1) ? 1 : null, label: "factor; height: validation correlation" }),
          side("\u2190 softer", "left", "start"), side("sharper \u2192", "right", "end"),
          rows.map((row) => {
            const points = d3.zip(tried, values[row.g]).filter(([, value]) => value !== null);
            const chosen = points.filter(([factor]) => Math.abs(factor - row.factor) < 1e-9);
            return [
              Plot.line(points, { className: "sharp-curve", stroke: row.tone, title: () => `${row.name}: factor ${format.value(row.factor, 2)}` }),
              Plot.dot(chosen, { className: "sharp-point", fill: row.tone, r: 4.5 }),
            ];
          }),
        ],
      });
    const drawn = [".sharp-curve", ".sharp-point"].map((kind) => element.querySelectorAll(kind));
    const light = (place, on) => {
      element.classList.toggle("lighting", on);
      for (const kind of drawn) if (kind[place]) kind[place].classList.toggle("lit", on);
    };
    return { element, light };
  }
})(window.atlas);
