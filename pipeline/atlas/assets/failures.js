/* The images where an explanation's prediction is furthest off, too high and too low. */
(function (atlas) {
  "use strict";

  const { h, text, format } = atlas;

  /**
   * @param worst for each simulator null or [too high, too low], lists of [row, predicted, recorded]
   * @param about pictures of the page
   */
  atlas.failures = function (overview, worst, about) {
    const known = overview.simulators.map((_, s) => s)
      .filter((s) => worst && worst[s] && worst[s].some((side) => side.length));
    if (!known.length) return "";
    const section = h("div", { class: "panel failures" });
    const name = (s) => (overview.simulators[s] === overview.fit_check ? "fit check" : overview.simulators[s]);
    const draw = (s) => {
      const own = overview.simulators[s] === overview.fit_check;
      section.replaceChildren(
        h("div", { class: "heading" }, h("h3", {}, "Where it fails most"),
          known.length > 1 ? atlas.choice("Predicted by", known.map((value) => [value, name(value)]), s, draw) : ""),
        h("div", { class: "sides" }, worst[s].map((side, place) => h("div", {},
          h("p", { class: "side" }, place ? "predicted too low" : "predicted too high"),
          side.length ? h("ul", { class: "pictures" }, side.map((one) => failure(one, about)))
            : h("p", { class: "notice" }, "none")))),
        h("p", { class: "aside" }, `Of ${format.counted(overview.tests, testNoun(overview))}. `,
          own ? "Predicted by the explainer\u2019s own concept scores."
            : ["Predicted by ", text(name(s)), ", brought to the neuron\u2019s mean and standard deviation."]));
    };
    draw(known[0]);
    return section;
  };

  function failure([row, predicted, actual], about) {
    const item = h("li", { tabindex: 0 },
      about.picture(row, `image with activation ${format.value(actual)}, predicted ${format.value(predicted)}`),
      h("span", { class: "level" }, h("b", {}, format.value(predicted)), ` not ${format.value(actual)}`));
    return atlas.tip(item, () => [
      h("p", {}, `predicted ${format.value(predicted)}`), ...about.facts(row, actual),
    ]);
  }

  const testNoun = (overview) =>
    (overview.images.splits.some(([name]) => name === "test") ? "test image" : "image");
})(window.atlas);
