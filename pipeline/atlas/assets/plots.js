/* Plots of one neuron: scores with intervals, path of lengths, scatter, distribution. */
(function (atlas) {
  "use strict";

  const { h, svg, format } = atlas;
  const WIDTH = 300;

  const plots = {};

  /** About `count` round numbers within a range. */
  plots.ticks = function (low, high, count) {
    if (!(high > low)) return [low];
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
    const marks = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) {
      marks.push(Number((k * step).toPrecision(12)));
    }
    return marks;
  };

  const frame = (height, label, children, width = WIDTH) => svg("svg", {
    class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label,
  }, children);

  const line = (x1, y1, x2, y2, kind) => svg("line", { x1, y1, x2, y2, class: kind });

  const words = (x, y, anchor, kind, text) =>
    svg("text", { x, y, "text-anchor": anchor, class: kind }, text);

  /**
   * Correlation by number of concepts.
   * @param curves  list of {kind, name, values}; values by place in `lengths`, null for none
   * @param chosen  the length that the run chose
   * @returns {element, mark}: mark(length) moves the line of the current length
   */
  plots.path = function (lengths, curves, chosen) {
    const height = 156, left = 34, right = 12, top = 10, bottom = 26;
    const all = curves.flatMap((curve) => curve.values).filter((value) => value !== null);
    const high = Math.max(0.1, Math.ceil(Math.max(0, ...all) * 10 + 0.2) / 10);
    const low = Math.min(0, Math.floor(Math.min(0, ...all) * 10) / 10);
    const first = lengths[0], last = lengths[lengths.length - 1];
    const x = (length) => left + ((length - first) / Math.max(1, last - first)) * (WIDTH - left - right);
    const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
    const marker = line(0, top, 0, height - bottom, "current");
    const element = frame(height, "Correlation by number of concepts", [
      plots.ticks(low, high, 4).map((mark) => [
        line(left, y(mark), WIDTH - right, y(mark), mark === 0 ? "zero" : "grid"),
        words(left - 7, y(mark) + 4, "end", "tick", format.score(mark, high - low < 0.35 ? 2 : 1)),
      ]),
      lengths.map((length) => words(x(length), height - 8, "middle",
        length === chosen ? "tick strong" : "tick", String(length))),
      marker,
      curves.map((curve) => {
        const points = curve.values
          .map((value, place) => (value === null ? null : [x(lengths[place]), y(value)]))
          .filter(Boolean);
        return svg("g", { class: `curve ${curve.kind}` },
          svg("polyline", { points: points.map((p) => p.join(",")).join(" ") }),
          points.map(([cx, cy]) => svg("circle", { cx, cy, r: 2.6 })));
      }),
    ]);
    const legend = h("p", { class: "legend" }, curves.map((curve) => h("span", {},
      svg("svg", { viewBox: "0 0 26 10", class: `sample curve ${curve.kind}`, "aria-hidden": "true" },
        svg("polyline", { points: "1,5 25,5" }), svg("circle", { cx: 13, cy: 5, r: 2.6 })),
      atlas.text(curve.name))));
    const mark = (length) => {
      marker.setAttribute("x1", x(length));
      marker.setAttribute("x2", x(length));
    };
    return { element, legend, mark, inset: [left / WIDTH, right / WIDTH] };
  };

  /** Scores with their intervals on one axis; rows are {name, note, score: [r, low, high],
   * check, gap, validation}; gap is validation minus test, or null. */
  plots.intervals = function (rows) {
    const ends = rows.flatMap((row) => row.score).filter((value) => value !== null);
    const low = Math.min(0, Math.floor(Math.min(...ends) * 5) / 5);
    const high = Math.max(0.4, Math.ceil(Math.max(...ends) * 5) / 5);
    const at = (value) => (100 * (value - low)) / (high - low);
    const marks = plots.ticks(low, high, 4);
    return h("div", { class: "intervals" }, rows.map((row) => {
      const [value, from, to] = row.score;
      const span = from !== null && to !== null;
      return h("div", { class: row.check ? "interval check" : "interval" },
        h("p", { class: "caption" },
          h("strong", {}, atlas.text(row.name)), h("span", { class: "note" }, row.note)),
        h("div", { class: "track", "aria-hidden": "true" },
          marks.map((mark) => h("i", { class: mark === 0 ? "mark zero" : "mark", style: `left:${at(mark)}%` })),
          span && h("span", { class: "span", style: `left:${at(from)}%;width:${at(to) - at(from)}%` }),
          h("span", { class: "point", style: `left:${at(value)}%` })),
        h("p", { class: "figure" },
          h("b", {}, format.score(value)),
          span && h("span", { class: "ends" }, ` ${format.score(from)} to ${format.score(to)}`),
          row.gap !== null && row.gap !== undefined && gapOf(row)));
    }), h("div", { class: "score-axis", "aria-hidden": "true" }, marks.map((mark) =>
      h("span", { style: `left:${at(mark)}%` }, format.score(mark, 1)))));
  };

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
   * @returns {element, draw}: draw(predicted) moves the points
   */
  plots.scatter = function (actual, describe) {
    const height = 212, left = 42, right = 10, top = 8, bottom = 40;
    const element = frame(height, "Predicted against actual activation of sampled test images", []);
    let places = [];
    const draw = (predicted) => {
      const known = [...actual.keys()].filter((i) => Number.isFinite(actual[i]) && Number.isFinite(predicted[i]));
      const extent = (values) => {
        const low = Math.min(...values), high = Math.max(...values);
        const pad = (high - low || Math.abs(high) || 1) * 0.04;
        return [low - pad, high + pad];
      };
      if (!known.length) return;
      const [x0, x1] = extent(known.map((i) => predicted[i]));
      const [y0, y1] = extent(known.map((i) => actual[i]));
      const x = (value) => left + ((value - x0) / (x1 - x0)) * (WIDTH - left - right);
      const y = (value) => top + ((y1 - value) / (y1 - y0)) * (height - top - bottom);
      const from = Math.max(x0, y0), to = Math.min(x1, y1);
      places = known.map((i) => [x(predicted[i]), y(actual[i]), i]);
      element.replaceChildren(
        ...plots.ticks(y0, y1, 4).flatMap((mark) => [
          line(left, y(mark), WIDTH - right, y(mark), "grid"),
          words(left - 6, y(mark) + 4, "end", "tick", format.value(mark)),
        ]),
        ...plots.ticks(x0, x1, 5).flatMap((mark) => [
          line(x(mark), top, x(mark), height - bottom, "grid"),
          words(x(mark), height - bottom + 16, "middle", "tick", format.value(mark)),
        ]),
        ...(from < to ? [line(x(from), y(from), x(to), y(to), "diagonal")] : []),
        svg("g", { class: "points" }, places.map(([cx, cy]) => svg("circle", { cx, cy, r: 3 }))),
        words((left + WIDTH - right) / 2, height - 4, "middle", "axis", "predicted"),
        svg("text", { class: "axis", "text-anchor": "middle",
          transform: `translate(11 ${(top + height - bottom) / 2}) rotate(-90)` }, "actual"));
    };
    let lit = null;
    const clear = () => { atlas.hideTip(); if (lit) lit.classList.remove("lit"); lit = null; };
    element.addEventListener("pointermove", (event) => {
      const box = element.getBoundingClientRect();
      const px = ((event.clientX - box.left) / box.width) * WIDTH;
      const py = ((event.clientY - box.top) / box.height) * height;
      let best = -1, least = 14 ** 2;
      places.forEach(([cx, cy], k) => {
        const distance = (cx - px) ** 2 + (cy - py) ** 2;
        if (distance < least) { least = distance; best = k; }
      });
      clear();
      if (best < 0) return;
      lit = element.querySelectorAll(".points circle")[best];
      lit.classList.add("lit");
      const [cx, cy, place] = places[best];
      atlas.showTip(describe(place), box.left + (cx / WIDTH) * box.width, box.top + (cy / height) * box.height);
    });
    element.addEventListener("pointerleave", clear);
    return { element, draw };
  };

  /** Distribution of activation, counts on a logarithmic scale, over the bands' ranges. */
  plots.distribution = function (values, bands) {
    const width = 620, height = 190, left = 46, right = 10, top = 10, bottom = 42;
    const counts = values.histogram;
    const { min, max } = values;
    const most = Math.max(...counts);
    const powers = Math.max(1, Math.log10(most * 1.1) + 0.35);
    const x = (value) => left + ((value - min) / (max - min || 1)) * (width - left - right);
    const floor = height - bottom;
    const y = (count) => floor - ((Math.log10(count) + 0.35) / powers) * (floor - top);
    const step = (width - left - right) / counts.length;
    const marks = [];
    for (let power = 0; 10 ** power <= most * 1.1; power++) marks.push(10 ** power);
    return frame(height, "Distribution of activation over all images", [
      marks.map((mark) => [
        line(left, y(mark), width - right, y(mark), "grid"),
        words(left - 6, y(mark) + 4, "end", "tick", format.count(mark)),
      ]),
      counts.map((count, place) => count > 0 && svg("rect", {
        class: "bin", x: left + place * step + 0.5, width: Math.max(0.5, step - 1), y: y(count), height: floor - y(count),
      })),
      bands.map((band) => svg("rect", {
        class: `band b${band.shade}`, x: x(band.low), width: Math.max(1.5, x(band.high) - x(band.low)), y: floor + 3, height: 5,
      })),
      plots.ticks(min, max, 6).map((mark) => words(x(mark), floor + 22, "middle", "tick", format.value(mark))),
      words((left + width - right) / 2, height - 4, "middle", "axis", "activation"),
    ], width);
  };

  atlas.plots = plots;
})(window.atlas);
