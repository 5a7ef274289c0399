/* How sharp the concept scores are, layer by layer, and why: a section of the overview. */
(function (atlas) {
  "use strict";

  const { h, svg, text, format, plots } = atlas;
  const WIDTH = 520, HEIGHT = 250, LEFT = 40, RIGHT = 10, TOP = 10, BOTTOM = 44;

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
    const span = Math.max(...all) - Math.min(...all) || 0.1;
    const low = Math.min(...all) - 0.08 * span, high = Math.max(...all) + 0.08 * span;
    const first = Math.log(Math.min(...tried)), last = Math.log(Math.max(...tried));
    const x = (factor) => LEFT + 8 + ((Math.log(factor) - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT - 16);
    const y = (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    const floor = HEIGHT - BOTTOM;
    const marks = [0.1, 0.2, 0.5, 1, 2, 5, 10].filter((mark) => mark >= Math.min(...tried) * 0.95 && mark <= Math.max(...tried) * 1.05);
    const line = (x1, y1, x2, y2, kind) => svg("line", { x1, y1, x2, y2, class: kind });
    const words = (cx, cy, anchor, kind, content) => svg("text", { x: cx, y: cy, "text-anchor": anchor, class: kind }, content);
    const groups = rows.map((row) => {
      const points = tried.map((factor, f) => [factor, values[row.g][f]]).filter(([, value]) => value !== null);
      const chosen = points.find(([factor]) => Math.abs(factor - row.factor) < 1e-9);
      return svg("g", { class: "sharp-curve", style: `--tone:${row.tone}` },
        svg("title", {}, `${row.name}: factor ${format.value(row.factor, 2)}`),
        svg("polyline", { points: points.map(([factor, value]) => `${x(factor).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }),
        chosen && svg("circle", { class: "chosen", cx: x(chosen[0]), cy: y(chosen[1]), r: 4.5 }));
    });
    const element = svg("svg", {
      class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
      "aria-label": `Validation correlation by factor, a line for each of ${format.counted(rows.length, "layer")}; the list below gives the chosen factors`,
    },
    plots.ticks(low, high, 4).map((mark) => [
      line(LEFT, y(mark), WIDTH - RIGHT, y(mark), "grid"),
      words(LEFT - 6, y(mark) + 4, "end", "tick", format.value(mark, 2)),
    ]),
    marks.map((mark) => [
      line(x(mark), TOP, x(mark), floor, mark === 1 ? "zero" : "grid"),
      words(x(mark), floor + 16, "middle", mark === 1 ? "tick strong" : "tick", format.value(mark)),
    ]),
    groups,
    words(LEFT, HEIGHT - 6, "start", "axis", "\u2190 softer"),
    words((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle", "axis", "factor; height: validation correlation"),
    words(WIDTH - RIGHT, HEIGHT - 6, "end", "axis", "sharper \u2192"));
    const light = (g, on) => {
      element.classList.toggle("lighting", on);
      groups[g].classList.toggle("lit", on);
    };
    return { element, light };
  }
})(window.atlas);
