/* An explanation as an equation: 2.3·lab coat + 1.1·medical instrument − 0.4·dog + 0.5. The sign
 * is written out and also coloured, so colour is never needed to read it. */
(function (atlas) {
  "use strict";

  const { h, text, format } = atlas;

  /**
   * @param terms  list of [concept, weight], most important first
   * @param bias   number or null
   * @param digits significant digits
   * @param linked whether concepts lead to the table of their neurons
   * @param marked which concepts to mark, a function of their text
   */
  atlas.equation = function (terms, bias, digits, linked, marked = () => false) {
    const parts = [];
    terms.forEach(([concept, weight], place) => {
      const negative = weight < 0;
      const sign = place === 0 ? (negative ? "\u2212" : "") : negative ? "\u2212 " : "+ ";
      const name = linked
        ? h("a", { href: atlas.link.concept(concept), class: "concept" }, text(concept))
        : text(concept, { class: marked(concept) ? "concept hit" : "concept" });
      // Lines may break between terms and inside a concept, not between a sign and its weight.
      parts.push(place ? " " : "", h("span", { class: `term ${negative ? "negative" : "positive"}` },
        h("span", { class: "factor" },
          sign && h("span", { class: "sign" }, sign),
          h("span", { class: "weight" }, format.value(Math.abs(weight), digits)),
          h("span", { class: "dot" }, "\u00b7")),
        name));
    });
    if (bias !== null && Number(bias.toPrecision(digits)) !== 0) {
      const sign = terms.length ? (bias < 0 ? "\u2212 " : "+ ") : bias < 0 ? "\u2212" : "";
      parts.push(" ", h("span", { class: "term bias factor" },
        sign && h("span", { class: "sign" }, sign),
        h("span", { class: "weight" }, format.value(Math.abs(bias), digits))));
    }
    return h("span", { class: "equation" }, parts);
  };

  /** What a status means, for a person. */
  atlas.statusText = {
    ok: "explained or explainable",
    constant: "the same activation for every training image, so there is nothing to explain",
    dead: "zero for every training image, so there is nothing to explain",
    "low-variance": "varies less than the precision in which activations are stored",
    failed: "its activations or its fit were not finite numbers",
    absent: "not among the explanations",
  };
})(window.atlas);
