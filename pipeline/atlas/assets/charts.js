/* Charts of the overview: distributions of scores, lengths of explanations, bars. */
(function (atlas) {
  "use strict";

  const { h, svg, format } = atlas;
  const BINS = 80; // of scores, from -1 to 1, as in pipeline/atlas/overview.py

  const charts = {};

  /** The range of scores that all given distributions fit into, in tenths. */
  charts.scoreRange = function (distributions) {
    let first = BINS / 2;
    let last = BINS / 2;
    for (const one of distributions) {
      if (!one.count) continue;
      first = Math.min(first, one.first);
      last = Math.max(last, one.first + one.bins.length);
    }
    const edge = (bin) => (2 * bin) / BINS - 1;
    return [Math.floor(edge(first) * 10 - 1e-9) / 10, Math.min(1, Math.ceil(edge(last) * 10 + 1e-9) / 10)];
  };

  /** Distribution of scores as one ridge: an area over bins, with a mark at the mean. */
  charts.ridge = function (distribution, range, height) {
    const width = 400;
    const [low, high] = range;
    const x = (score) => ((score - low) / (high - low)) * width;
    const top = 3;
    const tallest = Math.max(...distribution.bins);
    const points = [];
    distribution.bins.forEach((count, place) => {
      const left = (2 * (distribution.first + place)) / BINS - 1;
      const y = height - ((height - top) * count) / tallest;
      points.push(`${x(left).toFixed(1)},${y.toFixed(1)}`, `${x(left + 2 / BINS).toFixed(1)},${y.toFixed(1)}`);
    });
    const start = x((2 * distribution.first) / BINS - 1).toFixed(1);
    const stop = x((2 * (distribution.first + distribution.bins.length)) / BINS - 1).toFixed(1);
    const mean = x(distribution.mean);
    return svg("svg", {
      class: "ridge", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none",
      role: "img", "aria-label": `mean ${format.score(distribution.mean)}, median ${format.score(distribution.median)}`,
    },
    charts.grid(range).map((score) => svg("line", {
      class: score === 0 ? "zero" : "grid", x1: x(score), x2: x(score), y1: 0, y2: height,
    })),
    svg("polygon", { class: "area", points: `${start},${height} ${points.join(" ")} ${stop},${height}` }),
    svg("line", { class: "mean", x1: mean, x2: mean, y1: 0, y2: height }));
  };

  /** Scores that get a grid line and a number. */
  charts.grid = function ([low, high]) {
    const step = high - low > 0.9 ? 0.2 : 0.1;
    const marks = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9; k++) marks.push(Number((k * step).toFixed(1)));
    return marks;
  };

  /** The axis under a column of ridges. */
  charts.scoreAxis = function (range) {
    const [low, high] = range;
    return h("div", { class: "score-axis", "aria-hidden": "true" }, charts.grid(range).map((score) =>
      h("span", { style: `left:${(100 * (score - low)) / (high - low)}%` },
        score === 0 ? "0" : format.score(score, 1).replace("0.", "."))));
  };

  /** How many explanations have each length. */
  charts.lengths = function (counts) {
    const tallest = Math.max(...counts, 1);
    const total = counts.reduce((sum, count) => sum + count, 0);
    return h("div", { class: "lengths", role: "list" }, counts.map((count, place) => {
      const bar = h("div", { class: "length", role: "listitem", tabindex: 0,
        "aria-label": `${format.counted(count, "explanation")} of length ${place + 1}` },
      h("span", { class: "column", style: `height:${(100 * count) / tallest}%` }),
      h("span", { class: "tick" }, String(place + 1)));
      return atlas.tip(bar, () => h("p", {},
        `Length ${place + 1}: ${format.counted(count, "explanation")} (${format.percent(total ? count / total : 0)})`));
    }));
  };

  /** Bars with a name before and a number after; each may be split into two parts. */
  charts.bars = function (rows, describe) {
    const longest = Math.max(...rows.map((row) => row.parts[0] + (row.parts[1] || 0)), 1e-12);
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
