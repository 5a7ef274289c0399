/* Plots of one neuron: scores with intervals, path of lengths, scatter, distribution. */
(function (atlas) {
  "use strict";

  const { h, svg, format } = atlas;
  const WIDTH = 300;

  const plots = {};

  /**
   * Correlation by number of concepts.
   * @param curves  list of {kind, name, values}; values by place in `lengths`, null for none
   * @param chosen  the length that the run chose
   * @returns {element, legend, mark, inset}: mark(length) moves the line of the current length
   */
  plots.path = function (lengths, curves, chosen) {
    const left = 34, right = 12;
    const all = curves.flatMap((curve) => curve.values).filter((value) => value !== null);
    const range = [
      Math.min(0, Math.floor(d3.min([0, ...all]) * 10) / 10),
      Math.max(0.1, Math.ceil(d3.max([0, ...all]) * 10 + 0.2) / 10),
    ];
    const last = lengths[lengths.length - 1];
    const digits = range[1] - range[0] < 0.35 ? 2 : 1;
    const element = atlas.draw("Correlation by number of concepts", {
      width: WIDTH, height: 156, marginLeft: left, marginRight: right, marginTop: 10, marginBottom: 26,
      x: { domain: [lengths[0], Math.max(last, lengths[0] + 1)] },
      y: { domain: range },
      marks: [
        atlas.upAxis(range, (value) => format.score(value, digits)),
        atlas.footAxis(lengths, String, { strong: lengths.includes(chosen) ? chosen : null }),
        Plot.ruleX([lengths[0]], { className: "current" }),
        curves.map((curve) => {
          const points = d3.zip(lengths, curve.values).filter(([, value]) => value !== null);
          const className = `curve ${curve.kind}`;
          return [Plot.line(points, { className }), Plot.dot(points, { className, r: 2.6 })];
        }),
      ],
    });
    const legend = h("p", { class: "legend" }, curves.map((curve) => h("span", {},
      svg("svg", { viewBox: "0 0 26 10", class: `sample curve ${curve.kind}`, "aria-hidden": "true" },
        svg("path", { d: "M1,5H25" }), svg("circle", { cx: 13, cy: 5, r: 2.6 })),
      atlas.text(curve.name))));
    const marker = element.querySelector(".current");
    const start = element.scale("x").apply(lengths[0]);
    const mark = (length) => marker.setAttribute("transform", `translate(${element.scale("x").apply(length) - start},0)`);
    return { element, legend, mark, inset: [left / WIDTH, right / WIDTH] };
  };

  /** Scores with their intervals on one axis, before those of all neurons; rows are {name, note,
   * score: [r, low, high], all, check, gap, validation}; `all` is the network's distribution of chosen
   * explanations' scores, gap is validation minus test, or null. */
  plots.intervals = function (rows) {
    const ends = rows.flatMap((row) => row.score).filter((value) => value !== null);
    const [least, most] = atlas.charts.scoreRange(rows.map((row) => row.all));
    const range = [
      Math.min(least, Math.floor(d3.min([0, ...ends]) * 5) / 5),
      Math.max(0.4, most, Math.ceil(d3.max(ends) * 5) / 5),
    ];
    const at = d3.scaleLinear(range, [0, 100]);
    const marks = at.ticks(4);
    return h("div", { class: "intervals" }, rows.map((row) => {
      const [value, from, to] = row.score;
      const span = from !== null && to !== null;
      return h("div", { class: row.check ? "interval check" : "interval" },
        h("p", { class: "caption" },
          h("strong", {}, atlas.text(row.name)), h("span", { class: "note" }, row.note)),
        h("div", { class: "track", "aria-hidden": "true" },
          row.all.count > 0 && svg("svg", { class: "others-scores", viewBox: "0 0 100 30", preserveAspectRatio: "none" },
            atlas.charts.outline(row.all, at, 30)),
          marks.map((mark) => h("i", { class: mark === 0 ? "mark zero" : "mark", style: `left:${at(mark)}%` })),
          span && h("span", { class: "span", style: `left:${at(from)}%;width:${at(to) - at(from)}%` }),
          h("span", { class: "point", style: `left:${at(value)}%` })),
        h("p", { class: "figure" },
          h("b", {}, format.score(value)),
          span && h("span", { class: "ends" }, ` ${format.score(from)} to ${format.score(to)}`),
          row.all.count > 1 && rankOf(row),
          row.gap !== null && row.gap !== undefined && gapOf(row)));
    }), h("div", { class: "score-axis", "aria-hidden": "true" }, marks.map((mark) =>
      h("span", { style: `left:${at(mark)}%` }, format.score(mark, 1)))));
  };

  /** Where a score stands among those of all neurons. */
  function rankOf(row) {
    const share = format.percent(atlas.charts.below(row.all, row.score[0]));
    return atlas.tip(h("span", { class: "gap rank", tabindex: 0 }, `above ${share} of neurons`), () => h("p", {},
      `The grey hill shows the scores of all ${format.counted(row.all.count, "neuron")} with an explanation, each by its chosen one: mean ${format.score(row.all.mean)}, median ${format.score(row.all.median)}.`));
  }

  /** How much better validation looked than test. */
  function gapOf(row) {
    const amount = format.score(Math.abs(row.gap));
    const none = Number(amount) === 0;
    const [sign, side] = none ? ["", "more"] : row.gap < 0 ? ["\u2212", "less"] : ["+", "more"];
    return atlas.tip(h("span", { class: "gap", tabindex: 0 }, `selection gap ${sign}${amount}`), () => h("p", {},
      `On validation images the correlation is ${format.score(row.validation)}: ${none ? "as much as" : `${amount} ${side} than`} on test images. Where validation images had a part in choosing, a gap above 0 is its price.`));
  }

  /**
   * Predicted against actual activation.
   * @param describe place in the sample -> content of a tip
   * @returns {element, draw}: draw(predicted) draws the points anew
   */
  plots.scatter = function (actual, describe) {
    const element = h("div", { class: "scatter" });
    const padded = (values) => {
      const [low, high] = d3.extent(values);
      const pad = (high - low || Math.abs(high) || 1) * 0.04;
      return [low - pad, high + pad];
    };
    const tell = (point, drawing) => {
      if (point === null) atlas.hideTip();
      else atlas.showTip(describe(point.place), ...atlas.placeOf(drawing, point.x, point.y).slice(0, 2));
    };
    const draw = (predicted) => {
      const points = Array.from(actual, (y, place) => ({ x: predicted[place], y, place }))
        .filter(({ x, y }) => Number.isFinite(x) && Number.isFinite(y));
      if (!points.length) return;
      const across = padded(points.map(({ x }) => x)), up = padded(points.map(({ y }) => y));
      const from = Math.max(across[0], up[0]), to = Math.min(across[1], up[1]);
      element.replaceChildren(atlas.pointed(atlas.draw("Predicted against actual activation of sampled test images", {
        width: WIDTH, height: 212, marginLeft: 48, marginRight: 10, marginTop: 8, marginBottom: 40,
        x: { domain: across },
        y: { domain: up },
        marks: [
          atlas.upAxis(up, format.value),
          atlas.footAxis(5, format.value, { grid: true, label: "predicted" }),
          Plot.text(["actual"], { className: "axis", frameAnchor: "left", rotate: -90, dx: -39 }),
          from < to ? Plot.line([[from, from], [to, to]], { className: "diagonal" }) : null,
          Plot.dot(points, { className: "points", x: "x", y: "y", r: 3 }),
          Plot.dot(points, Plot.pointer({ className: "points lit", x: "x", y: "y", r: 3, maxRadius: 14, ariaHidden: "true" })),
        ],
      }), tell));
    };
    return { element, draw };
  };

  /** Distribution of activation, counts on a logarithmic scale, over the bands' ranges. */
  plots.distribution = function (values, bands) {
    const { min, max, histogram } = values;
    const across = max > min ? [min, max] : [min - 0.5, min + 0.5];
    const step = (across[1] - across[0]) / histogram.length;
    const most = 1.1 * d3.max(histogram);
    const up = [0.45, most]; // from below one image, so that one image has a height
    const powers = d3.range(0, Math.floor(Math.log10(most)) + 1).map((power) => 10 ** power);
    const bins = histogram.map((count, place) => ({ count, from: across[0] + place * step, to: across[0] + (place + 1) * step }))
      .filter(({ count }) => count > 0);
    const thin = (across[1] - across[0]) / 400;
    return atlas.draw("Distribution of activation over all images", {
      width: 620, height: 190, marginLeft: 46, marginRight: 10, marginTop: 10, marginBottom: 42,
      x: { domain: across },
      y: { type: "log", domain: up },
      marks: [
        atlas.upAxis(up, format.count, powers),
        atlas.footAxis(6, format.value, { label: "activation", tickPadding: 12 }),
        Plot.rect(bins, { className: "bin", x1: "from", x2: "to", y1: up[0], y2: "count", insetLeft: 0.5, insetRight: 0.5 }),
        bands.map((band) => Plot.ruleY([band], {
          className: `band b${band.shade}`, x1: "low", x2: (one) => Math.max(one.high, one.low + thin), y: up[0], dy: 5,
        })),
      ],
    });
  };

  atlas.plots = plots;
})(window.atlas);
