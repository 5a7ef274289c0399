/* What chosen explanations are measured by beside correlation, and which measures may be trusted. */
(function (atlas) {
  "use strict";

  const { h, text, format } = atlas;

  const NAMES = {
    q_value: ["Against chance", "False-discovery rate (q-value) at which this score counts as above chance; p is the share of the other neurons\u2019 explanations that predict this neuron as well. Small is good."],
    agreement: ["Agreement", "Mean correlation of what this model predicts with what the other models predict from the same words."],
    cosine: ["Cosine", "Cosine between predicted and recorded activations; a large mean alone makes it high."],
    auprc: ["AUPRC", "Area under precision and recall when predictions rank the images on which the neuron is on."],
    f1: ["F1", "Overlap of the images on which neuron and prediction are on."],
    iou: ["IoU", "Intersection over union of the images on which neuron and prediction are on."],
    ablation_norm: ["Ablation, norm", "Share of the neuron\u2019s effect on the loss that is kept when it is replaced by its standardised prediction: 1 is all, 0 no better than its mean."],
    ablation_optim: ["Ablation, optim", "The same with the prediction\u2019s scale and shift fitted to the loss on validation images."],
    correlation: ["Correlation", ""],
  };

  const small = (value) => (value < 0.001 ? "< 0.001" : format.score(value, 3));

  /**
   * A neuron's measures, a row for each model.
   * @param rows for each simulator the values of `overview.measures`, or null
   */
  atlas.measuresTable = function (overview, rows) {
    const wanted = overview.measures.filter((name) => name !== "p_value"
      && rows.some((row) => row && row[overview.measures.indexOf(name)] !== null));
    if (!wanted.length) return "";
    const p = overview.measures.indexOf("p_value");
    const cell = (row, name) => {
      const value = row[overview.measures.indexOf(name)];
      if (value === null) return "\u2013";
      if (name !== "q_value") return format.score(value);
      const chance = p >= 0 && row[p] !== null ? `p ${small(row[p])}, ` : "";
      return `${chance}q ${small(value)}`;
    };
    return atlas.scroll("Other measures", h("table", { class: "measures" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Predicted by"),
        wanted.map((name) => h("th", { scope: "col", class: "number" },
          atlas.tip(h("span", { class: "gap", tabindex: 0 }, NAMES[name][0]), () => h("p", {}, NAMES[name][1])))))),
      h("tbody", {}, overview.simulators.map((simulator, s) => rows[s] && h("tr", {},
        h("th", { scope: "row" }, simulator === overview.fit_check ? "fit check" : text(simulator)),
        wanted.map((name) => h("td", { class: "number" }, cell(rows[s], name))))))));
  };

  /** What each measure did when labels were taken away and added, for the overview. */
  atlas.sanity = function (overview) {
    const shown = overview.explainers.filter((explainer) => explainer.sanity.length > 1);
    if (!shown.length) return "";
    const share = (value) => (value === null ? "\u2013" : format.percent(value, 3));
    return h("section", { class: "sanity" },
      h("h2", {}, "Which measures can be trusted here"),
      h("p", { class: "aside" },
        "A measure should fall when a prediction misses half of the images on which its concept is present, and when it names as many wrong ones. ",
        "Shares of this run\u2019s best predicted neurons for which it did."),
      h("div", { class: "columns" }, shown.map((explainer) => atlas.scroll(`Measures, ${explainer.name}`,
        h("table", { class: "measures" },
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, text(explainer.name)),
            h("th", { scope: "col", class: "number" }, "Missing"),
            h("th", { scope: "col", class: "number" }, "Extra"),
            h("th", { scope: "col" }, "Verdict"))),
          h("tbody", {}, explainer.sanity.map(([metric, , missing, extra, passes]) => h("tr", {},
            h("th", { scope: "row" }, NAMES[metric] ? NAMES[metric][0] : text(metric)),
            h("td", { class: "number" }, share(missing)),
            h("td", { class: "number" }, share(extra)),
            h("td", { class: passes ? "passes" : "fails" }, passes ? "passes" : "fails")))))))));
  };
})(window.atlas);
