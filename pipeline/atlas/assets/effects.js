/* What explanations are worth: against simpler ones, and to the network. Sections of the overview. */
(function (atlas) {
  "use strict";

  const { h, text, format } = atlas;
  const SIZE = { width: 520, height: 280, marginLeft: 58, marginRight: 14, marginTop: 10, marginBottom: 44 };

  const nameOf = (overview, s) => (overview.simulators[s] === overview.fit_check ? "fit check" : overview.simulators[s]);
  const layerOf = (overview, g) => {
    const several = new Set(overview.groups.map((group) => group.pooling)).size > 1;
    const group = overview.groups[g];
    return several ? `${group.layer} ${group.pooling}` : group.layer;
  };
  const toneOf = (overview, g) =>
    `color-mix(in oklab, var(--b0) ${Math.round((100 * g) / Math.max(1, overview.groups.length - 1))}%, var(--b3))`;

  /** Distinct values in order of appearance. */
  const distinct = (values) => [...new Set(values)];

  /** A section that shows rows of one simulator at a time; rows begin with explainer, simulator. */
  function bySimulator(overview, title, rows, body) {
    const simulators = distinct(rows.map((row) => row[1])).sort((a, b) => a - b);
    const section = h("section", {});
    const draw = (s) => section.replaceChildren(
      h("div", { class: "heading" }, h("h2", {}, title),
        simulators.length > 1 ? atlas.choice("Scored by", simulators.map((value) => [value, nameOf(overview, value)]), s, draw) : ""),
      ...[body(rows.filter((row) => row[1] === s), s)].flat());
    draw(simulators[0]);
    return section;
  }

  /** Linear explanations beside simpler ones of the same neurons. */
  atlas.comparison = function (overview) {
    if (!overview.comparison.length) return "";
    return bySimulator(overview, "Against simpler explanations", overview.comparison, (rows) => {
      const methods = distinct(rows.flatMap((row) => row[3].map(([method]) => method)));
      const several = distinct(rows.map((row) => row[0])).length > 1;
      const cell = (found, best) => {
        if (!found) return h("td", { class: "number" }, "\u2013");
        const [, neurons, mean, low, high] = found;
        const value = mean === best ? h("b", {}, format.score(mean, 3)) : h("span", { class: "gap", tabindex: 0 }, format.score(mean, 3));
        return h("td", { class: "number" }, atlas.tip(value, () => h("p", {},
          `Mean of ${format.counted(neurons, "neuron")}, ${format.score(low, 3)} to ${format.score(high, 3)}.`)));
      };
      return [
        h("p", { class: "aside" },
          "Mean score of the chosen linear explanations, and of explanations by one concept made from the same recordings: the single concept that correlates best, and the concept that CLIP-Dissect names from the most activating images."),
        atlas.scroll("Scores by layer and method", h("table", { class: "measures" },
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Layer"), several && h("th", { scope: "col" }, "Explainer"),
            methods.map((method) => h("th", { scope: "col", class: "number" }, text(method))),
            methods.slice(1).map((method) => h("th", { scope: "col", class: "number" }, "linear better than ", text(method))))),
          h("tbody", {}, rows.map(([e, , g, own]) => {
            const of = (method) => own.find(([name]) => name === method);
            const best = Math.max(...own.map((one) => one[2]));
            return h("tr", {}, h("th", { scope: "row" }, text(layerOf(overview, g))),
              several && h("td", {}, text(overview.explainers[e].name)),
              methods.map((method) => cell(of(method), best)),
              methods.slice(1).map((method) => h("td", { class: "number" },
                of(method) && of(method)[5] !== null ? format.percent(of(method)[5], 3) : "\u2013")));
          })))),
      ];
    });
  };

  /** What the network loses when neurons do as their explanations say: a list of elements. */
  atlas.effects = function (overview) {
    const parts = [];
    if (overview.effects.length) parts.push(scatter(overview));
    if (overview.importance) parts.push(importance(overview));
    const found = parts.length ? [h("div", { class: "columns" }, parts)] : [];
    return overview.replacements.length ? [...found, joint(overview)] : found;
  };

  const upwards = (label) => Plot.text([label], { className: "axis", frameAnchor: "left", rotate: -90, dx: -48 });

  function keys(overview, shown) {
    return h("ul", { class: "layer-keys", "aria-label": "Layers" }, shown.map((g) =>
      h("li", { style: `--tone:${toneOf(overview, g)}` }, h("i", { class: "dash", "aria-hidden": "true" }), text(layerOf(overview, g)))));
  }

  function scatter(overview) {
    return bySimulator(overview, "Correlation and effect", overview.effects, (rows, s) => {
      const pairs = rows.flatMap((row) => row[2]);
      const across = [d3.min([0, ...pairs.map(([a]) => a)]), d3.max([0.2, ...pairs.map(([a]) => a)])];
      const up = [Math.max(-1, d3.min([0, ...pairs.map(([, b]) => b)])), d3.max([0.2, ...pairs.map(([, b]) => b)])];
      const shown = distinct(pairs.map(([, , g]) => g)).sort((a, b) => a - b);
      const write = ([low, high]) => (mark) => format.score(mark, high - low < 0.6 ? 2 : 1);
      return [
        h("p", { class: "aside" },
          "Each neuron: how well its explanation predicts it, and how much of its effect on the loss is kept when the prediction takes its place (ablation score, norm; 1 is all, 0 no better than its mean)."),
        h("figure", { class: "sharpness" }, atlas.draw(
          `Ablation score against correlation of ${format.counted(pairs.length, "neuron")}, scored by ${nameOf(overview, s)}`, {
            ...SIZE,
            x: { domain: across },
            y: { domain: up, clamp: true },
            marks: [
              atlas.upAxis(up, write(up), 5),
              atlas.footAxis(5, write(across), { grid: true, label: "correlation" }),
              upwards("ablation score"),
              shown.map((one) => Plot.dot(pairs.filter(([, , g]) => g === one),
                { className: "effect", fill: toneOf(overview, one), r: 2.5 })),
            ],
          }), keys(overview, shown)),
      ];
    });
  }

  function importance(overview) {
    const { fractions, groups } = overview.importance;
    const shown = d3.range(groups.length).filter((g) => groups[g]);
    const range = [fractions[0], 1];
    return h("section", {}, h("h2", {}, "How much the highest activations matter"),
      h("p", { class: "aside" },
        "Share of a neuron\u2019s effect on accuracy and loss that its highest activations carry, mean over neurons. A line near the dashed one says that every image counts alike."),
      h("figure", { class: "sharpness" }, atlas.draw(
        "Share of effect by share of the images with the highest activations, a line for each layer", {
          ...SIZE,
          x: { type: "log", domain: range },
          y: { domain: [0, 1] },
          marks: [
            atlas.upAxis([0, 1], format.percent, [0, 0.25, 0.5, 0.75, 1]),
            atlas.footAxis([...fractions, 1], format.percent, { grid: true, label: "images with the highest activations" }),
            upwards("share of the effect"),
            // Straight on a linear axis, so a curve on this one.
            Plot.line(d3.range(60).map((k) => fractions[0] ** (1 - k / 59)), { className: "even", x: Plot.identity, y: Plot.identity }),
            shown.map((g) => Plot.line([...d3.zip(fractions, groups[g]), [1, 1]],
              { className: "share-curve", stroke: toneOf(overview, g), title: () => layerOf(overview, g) })),
          ],
        }), keys(overview, shown)));
  }

  function joint(overview) {
    return bySimulator(overview, "All neurons of a layer replaced at once", overview.replacements, (rows) => {
      const kept = (value, least, all) => (all === least ? "\u2013" : format.percent((value - least) / (all - least), 3));
      return [
        h("p", { class: "aside" },
          "Accuracy and loss of the network on test images when every explained neuron of a layer does as its explanation says, beside the network as it is and with every neuron at its mean. Kept: the way from the mean to the network as it is."),
        atlas.scroll("All neurons of a layer replaced", h("table", { class: "measures" },
          h("thead", {}, h("tr", {}, ["Layer", "Explainer"].map((name) => h("th", { scope: "col" }, name)),
            ["Neurons", "Accuracy", "explained", "at the mean", "kept", "Loss", "explained", "at the mean", "kept"].map((name) =>
              h("th", { scope: "col", class: "number" }, name)))),
          h("tbody", {}, rows.map(([e, , g, neurons, , accuracy, replaced, mean, loss, lossReplaced, lossMean]) => h("tr", {},
            h("th", { scope: "row" }, text(layerOf(overview, g))), h("td", {}, text(overview.explainers[e].name)),
            [format.count(neurons), format.percent(accuracy, 3), format.percent(replaced, 3), format.percent(mean, 3), kept(replaced, mean, accuracy),
              format.score(loss), format.score(lossReplaced), format.score(lossMean), kept(lossReplaced, lossMean, loss)]
              .map((value) => h("td", { class: "number" }, value))))))),
      ];
    });
  }
})(window.atlas);
