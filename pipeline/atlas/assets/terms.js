/* The terms of an explanation as a table: what each is worth, how surely it was found, and what
 * could stand in for it. */
(function (atlas) {
  "use strict";

  const { h, text, format } = atlas;

  /**
   * @param folds   number of folds that stability was counted over
   * @param largest share that fills a whole bar
   * @returns {element, draw}: draw(one, texts, synonyms, spreads) shows an entry of a path;
   *          synonyms and spreads may be null
   */
  atlas.termsTable = function (folds, largest) {
    const element = h("div", { class: "terms-box" });
    const draw = (one, texts, synonyms, spreads) => {
      const found = one.stability !== null && folds > 1;
      const total = one.shares.reduce((sum, share) => sum + (share || 0), 0);
      element.replaceChildren(h("table", { class: found ? "terms" : "terms unfolded", role: "table" },
        h("thead", { role: "rowgroup" }, h("tr", { role: "row" },
          head("Weight", "weight"),
          head("Concept", "concept"),
          head("Share of variance", "share"),
          found && head("Found again", "again"))),
        h("tbody", { role: "rowgroup" }, one.concepts.map((concept, t) =>
          row(one, t, texts[concept], synonyms && synonyms[t], spreads && spreads.get(concept)))),
        one.concepts.length > 1 && h("tfoot", { role: "rowgroup" }, h("tr", { role: "row" },
          h("td", { role: "cell", class: "weight" }),
          h("td", { role: "cell", class: "concept" }, "all terms"),
          h("td", { role: "cell", class: "share" },
            h("span", { class: "share-track", "aria-hidden": "true" }),
            h("span", { class: "percent" }, share(total))),
          found && h("td", { role: "cell", class: "again" })))));
    };

    function row(one, t, name, instead, spread) {
      const weight = one.weights[t], part = one.shares[t];
      const negative = weight < 0;
      const cell = h("td", { role: "cell", class: "share", tabindex: 0 },
        h("span", { class: "share-track", "aria-hidden": "true" }, part !== null && h("span", {
          class: "share-bar", style: `width:${Math.min(100, (100 * Math.max(0, part)) / largest)}%`,
        })),
        h("span", { class: "percent" }, share(part)),
        h("span", { class: "for-ears" }, " of the neuron\u2019s variance"));
      atlas.tip(cell, () => [
        h("p", {}, text(name), part === null ? "" : ` explains ${share(part)} of the neuron\u2019s variance.`),
        spread > 0 && h("p", { class: "faint" },
          `As its score varies by its standard deviation, ${format.value(spread)}, the prediction moves by ${format.value(Math.abs(weight) * spread)}.`),
      ].filter(Boolean));
      return h("tr", { role: "row", class: negative ? "negative" : "positive" },
        h("td", { role: "cell", class: "weight" }, negative ? "\u2212" : "+", format.value(Math.abs(weight))),
        h("th", { role: "rowheader", scope: "row", class: "concept" }, text(name),
          instead && instead.length > 0 && h("span", { class: "instead" },
            h("span", { class: "for-ears" }, ", "), "or: ",
            instead.map((other, place) => [place > 0 && ", ", text(other)]))),
        cell,
        one.stability !== null && folds > 1 && h("td", { role: "cell", class: "again" },
          h("span", { class: "dots", "aria-hidden": "true" }, dots(Math.round(one.stability[t] * folds))),
          `${Math.round(one.stability[t] * folds)} of ${folds}`, h("span", { class: "unit" }, " folds")));
    }

    /** A dot for each fold; beyond ten they would be noise. */
    function dots(count) {
      if (folds > 10) return [];
      return Array.from({ length: folds }, (_, fold) => h("i", { class: fold < count ? "on" : "" }));
    }

    return { element, draw };
  };

  const head = (label, kind) => h("th", { role: "columnheader", scope: "col", class: kind }, label);

  /** 12 %, 3.4 %, below 0.1 %. */
  function share(value) {
    if (value === null) return "\u2013";
    if (value < 0.001) return "<\u202f0.1\u202f%";
    return `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)}\u202f%`;
  }

  /** What the columns mean, once for a page. */
  atlas.termsNote = function (folds) {
    return h("p", { class: "aside terms-note" },
      h("b", {}, "Share of variance"), " divides what an explanation explains of the neuron among its terms, on the images of the fit, averaged over all orders in which they could enter. ",
      folds > 1 && [h("b", {}, "Found again"), ` counts in how many of ${folds} folds the search, without the images of the fold, took the concept again. `],
      h("b", {}, "or"), " names concepts that predict nearly as well in the term\u2019s place.");
  };
})(window.atlas);
