/* Explanations of a neuron by other methods, side by side with its own. */
(function (atlas) {
  "use strict";

  const { h, text, format } = atlas;
  const NAMES = { single: "best single concept", "clip-dissect": "CLIP-Dissect" };

  /** The section, or nothing where there is no other method. */
  atlas.others = function (overview, record, texts) {
    const entries = record.others || [];
    if (!entries.length) return "";
    const several = overview.explainers.length > 1;
    const rows = [];
    record.by.forEach((own, e) => {
      const chosen = own && own.path.find(([length]) => length === own.chosen);
      if (!chosen) return;
      const [, , , , terms, weights, scores] = chosen;
      rows.push({
        method: "linear", explainer: e, own: true,
        terms: terms.map((t, place) => [texts[e][own.concepts[t]], weights[place]]),
        scores: scores.map((score) => score && score.map((value) => (value === null ? null : value / 10000))),
      });
    });
    for (const [method, concepts, weights, scores, explainer] of entries) {
      rows.push({ method, explainer, scores, terms: concepts.map((concept, t) => [concept, weights[t]]) });
    }
    const shown = overview.simulators.map((_, s) => s).filter((s) => rows.some((row) => row.scores[s]));
    const best = shown.map((s) => Math.max(...rows.map((row) => (row.scores[s] ? row.scores[s][0] : -Infinity))));
    return h("section", { class: "others" },
      h("h2", {}, "By other methods"),
      atlas.scroll("Other explanations", h("table", { class: "measures" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Method"), h("th", { scope: "col", class: "words" }, "Explanation"),
          shown.map((s) => h("th", { scope: "col", class: "number" },
            overview.simulators[s] === overview.fit_check ? "fit check" : text(overview.simulators[s]))))),
        h("tbody", {}, rows.map((row) => h("tr", { class: row.own ? "own" : null },
          h("th", { scope: "row" }, text(NAMES[row.method] || row.method),
            several && row.explainer !== null && h("span", { class: "by" }, text(overview.explainers[row.explainer].name))),
          h("td", { class: "words" }, row.terms.length
            ? row.terms.length === 1 && !row.own
              ? h("a", { class: "concept", href: atlas.link.concept(row.terms[0][0]) }, text(row.terms[0][0]))
              : atlas.equation(row.terms, null, 2, false)
            : h("span", { class: "none" }, "nothing")),
          shown.map((s, place) => cell(row.scores[s], best[place]))))))),
      h("p", { class: "aside" },
        "Correlation on test images of what each model predicts from the words; the best of a column is bold."));
  };

  function cell(score, best) {
    if (!score) return h("td", { class: "number" }, "\u2013");
    const [value, low, high] = score;
    const mark = h(value === best ? "b" : "span", { tabindex: 0 }, format.score(value));
    return h("td", { class: "number" }, low === null ? mark
      : atlas.tip(mark, () => h("p", {}, `${format.score(low)} to ${format.score(high)}`)));
  }
})(window.atlas);
