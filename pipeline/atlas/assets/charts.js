/* Charts of the overview: distributions of scores, lengths of explanations, bars. */
(function (atlas) {
  "use strict";

  const { h, svg, format } = atlas;
  const BINS = 80; // of scores, from -1 to 1, as in pipeline/atlas/overview.py

  const charts = {};

  const edge = (bin) => (2 * bin) / BINS - 1;

  /** The range of scores that all given distributions fit into, in tenths. */
  charts.scoreRange = function (distributions) {
    const shown = distributions.filter((one) => one.count);
    const first = d3.min([BINS / 2, ...shown.map((one) => one.first)]);
    const last = d3.max([BINS / 2, ...shown.map((one) => one.first + one.bins.length)]);
    return [Math.floor(edge(first) * 10 - 1e-9) / 10, Math.min(1, Math.ceil(edge(last) * 10 + 1e-9) / 10)];
  };

  /** Outline of a distribution of scores over an axis, an area that stands on its foot. */
  charts.outline = function (distribution, x, height) {
    const y = d3.scaleLinear([0, d3.max(distribution.bins)], [height, 3]);
    // A bin's height from its left edge to its right one: the last edge repeats the last bin.
    const edges = [...distribution.bins, distribution.bins[distribution.bins.length - 1]];
    const area = d3.area((_, place) => x(edge(distribution.first + place)), height, (count) => y(count))
      .curve(d3.curveStepAfter).digits(1);
    return svg("path", { class: "area", d: area(edges) });
  };

  /** Share of a distribution that lies below a score; within a bin scores count as spread evenly. */
  charts.below = (distribution, score) => d3.sum(distribution.bins, (count, place) =>
    count * Math.min(1, Math.max(0, (score - edge(distribution.first + place)) / (2 / BINS)))) / distribution.count;

  /** Distribution of scores as one ridge: an area over bins, with a mark at the mean. */
  charts.ridge = function (distribution, range, height) {
    const width = 400;
    const x = d3.scaleLinear(range, [0, width]);
    const upright = (score, kind) => svg("line", { class: kind, x1: x(score), x2: x(score), y1: 0, y2: height });
    return svg("svg", {
      class: "ridge", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none",
      role: "img", "aria-label": `mean ${format.score(distribution.mean)}, median ${format.score(distribution.median)}`,
    },
    charts.grid(range).map((score) => upright(score, score === 0 ? "zero" : "grid")),
    charts.outline(distribution, x, height),
    upright(distribution.mean, "mean"));
  };

  /** Scores that get a grid line and a number. */
  charts.grid = ([low, high]) => d3.ticks(low, high, (high - low) / (high - low > 0.9 ? 0.2 : 0.1));

  /** The axis under a column of ridges. */
  charts.scoreAxis = function (range) {
    const at = d3.scaleLinear(range, [0, 100]);
    return h("div", { class: "score-axis", "aria-hidden": "true" }, charts.grid(range).map((score) =>
      h("span", { style: `left:${at(score)}%` },
        score === 0 ? "0" : format.score(score, 1).replace("0.", "."))));
  };

  /** How many explanations have each length. */
  charts.lengths = function (counts) {
    const total = d3.sum(counts);
    const drawing = atlas.draw("How many explanations have each length", {
      width: 30 * counts.length + 6, height: 136, marginLeft: 3, marginRight: 3, marginTop: 4, marginBottom: 20,
      x: { type: "band", domain: d3.range(1, counts.length + 1), padding: 0.1 },
      y: { domain: [0, d3.max([1, ...counts])], axis: null },
      marks: [
        Plot.axisX({ className: "tick", tickSize: 0, label: null }),
        Plot.barY(counts, { className: "length", x: (_, place) => place + 1, y: Plot.identity }),
        Plot.ruleY([0], { className: "zero" }),
      ],
    });
    // Each bar can be reached by keyboard, and says what it stands for.
    drawing.setAttribute("role", "group");
    drawing.querySelectorAll(".length rect").forEach((bar, place) => {
      bar.setAttribute("tabindex", 0);
      bar.setAttribute("role", "img");
      bar.setAttribute("aria-label", `${format.counted(counts[place], "explanation")} of length ${place + 1}`);
      atlas.tip(bar, () => h("p", {},
        `Length ${place + 1}: ${format.counted(counts[place], "explanation")} (${format.percent(total ? counts[place] / total : 0)})`));
    });
    return drawing;
  };

  /** Bars with a name before and a number after; each may be split into two parts. */
  charts.bars = function (rows, describe) {
    const longest = d3.max([1e-12, ...rows.map((row) => d3.sum(row.parts))]);
    return h("ol", { class: "bars" }, rows.map((row) => {
      const share = (value) => `width:${(100 * value) / longest}%`;
      const [first, second = 0] = row.parts;
      return h("li", {},
        row.href ? h("a", { class: "name", href: row.href, title: row.name }, atlas.text(row.name))
          : h("span", { class: "name" }, atlas.text(row.name)),
        h("span", { class: "track", "aria-hidden": "true" },
          h("span", { class: "bar first", style: share(first) }),
          second > 0 && h("span", { class: "bar second", style: share(second) })),
        h("span", { class: "number" }, describe(row)));
    }));
  };

  atlas.charts = charts;
})(window.atlas);
