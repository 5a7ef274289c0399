/* One explainer's explanation of one neuron: equation, terms, scores, path of lengths, scatter. */
(function (atlas) {
  "use strict";

  const { h, text, format, plots } = atlas;

  /** An entry of a path, by name (see pipeline/atlas/details.py). */
  function entry([length, bias, train, validation, terms, weights, scores, shares, stability, gap], concepts) {
    const whole = (value) => (value === null ? null : value / 10000);
    return {
      length, bias, terms, concepts: terms.map((t) => concepts[t]), weights, stability,
      train: whole(train), validation: whole(validation), gap: whole(gap),
      scores: scores.map((score) => score && score.map(whole)), shares: shares.map(whole),
    };
  }

  /**
   * @param overview the overview shard
   * @param number   the explainer's number
   * @param group    the number of the neuron's layer and pooling
   * @param record   the neuron's explanations by this explainer
   * @param texts    concept texts by concept number
   * @param values   the neuron's activations, or null
   * @param about    pictures of the page
   */
  atlas.explanationCard = function (overview, number, group, record, texts, values, about) {
    const actual = values && values.sample ? atlas.half(values.sample) : null;
    const describe = (place) => about.card(overview.sample[place], actual[place]);
    const explainer = overview.explainers[number];
    const several = overview.explainers.length > 1;
    const title = h("h2", {}, several ? text(explainer.name) : ["Explained by ", text(explainer.name)]);
    const path = record.path.map((one) => entry(one, record.concepts));
    if (!path.length) {
      return h("article", { class: "explanation" }, title, h("p", { class: "notice" },
        record.status === "ok"
          ? "No concept of this explainer predicts the neuron, so there is no explanation."
          : [h("b", {}, record.status), `: ${atlas.statusText[record.status]}.`]));
    }

    const lengths = path.map((one) => one.length);
    const start = Math.max(0, lengths.indexOf(record.chosen || lengths[lengths.length - 1]));
    const equation = h("div", { class: "equation-box", "aria-live": "polite" });
    const largest = Math.max(0.01, ...path.flatMap((one) => one.shares).filter((share) => share !== null));
    const terms = atlas.termsTable(overview.folds, largest);
    const trouble = h("div", {});
    const scores = h("div", { class: "scores" });
    const measures = h("div", {}, atlas.measuresTable(overview, record.measures));
    const label = h("span", { class: "now" });
    const curves = curvesOf(overview, path);
    const chart = plots.path(lengths, curves, record.chosen);
    const [insetLeft, insetRight] = chart.inset;
    const slider = h("input", {
      type: "range", min: 0, max: lengths.length - 1, step: 1, value: start,
      disabled: lengths.length < 2, "aria-label": "Number of concepts",
      style: `margin-left:calc(${100 * insetLeft}% - 8px);width:calc(${100 * (1 - insetLeft - insetRight)}% + 16px)`,
      oninput: () => show(Number(slider.value)),
    });
    const reset = h("button", { type: "button", class: "reset", onclick: () => { slider.value = start; show(start); } },
      "back to the chosen length");
    const scatter = actual ? plots.scatter(actual, describe) : null;
    const area = values && values.bins && values.bins[0].length > 2 && record.profile
      ? atlas.areaChart(values.bins, atlas.half(record.profile)) : null;
    let spreads = null, sampled = null; // by concept number, once the concept shards are there

    function show(place) {
      const one = path[place];
      const chosen = one.length === record.chosen;
      const sum = one.concepts.map((concept, t) => [texts[concept], one.weights[t]]);
      equation.replaceChildren(atlas.equation(sum, one.bias, 3, true));
      terms.draw(one, texts, chosen ? record.synonyms : null, spreads);
      label.replaceChildren(h("b", {}, format.counted(one.length, "concept")),
        chosen ? ", the chosen length" : "");
      reset.hidden = place === start;
      chart.mark(one.length);
      slider.setAttribute("aria-valuetext", format.counted(one.length, "concept"));
      drawScores(scores, overview, explainer, one);
      measures.hidden = !chosen;
      if (area) area.draw(one, texts);
      if (sampled && scatter) scatter.draw(predict(one, sampled, actual.length));
    }

    const card = h("article", { class: "explanation" }, title, equation, terms.element, scores, measures, trouble,
      area && h("div", { class: "panel area-panel" },
        h("h3", {}, "What each term adds along the activation range"),
        area.element,
        h("p", { class: "aside" },
          `Mean over ${format.counted(overview.tests, "test image")}, binned by activation: weight times concept score, raising terms stacked upwards from the bias and lowering ones downwards.`)),
      h("div", { class: "panels" },
        h("div", { class: "panel" },
          h("h3", {}, "Length ", label, " ", reset),
          chart.element, slider, chart.legend),
        scatter && h("div", { class: "panel" },
          h("h3", {}, "Predicted and actual"),
          scatter.element,
          h("p", { class: "aside" }, `${sampleText(overview)}, predicted from `,
            text(explainer.name), "\u2019s own concept scores. On the line the prediction is exact."))),
      atlas.failures(overview, record.worst, about));
    show(start);

    loadConcepts(overview, number, group, record.concepts).then((loaded) => {
      [spreads, sampled] = loaded;
      atlas.hideTip();
      show(Number(slider.value));
    }).catch((error) => trouble.replaceChildren(h("p", { class: "notice" }, error.message)));
    return card;
  };

  /** How many images the scatter shows, and of how many. */
  function sampleText(overview) {
    const test = overview.images.splits.find(([name]) => name === "test");
    const [kind, total] = test ? ["test image", test[1]] : ["image", overview.images.count];
    const shown = overview.sample.length;
    return shown < total ? `${format.count(shown)} of ${format.counted(total, kind)}` : format.counted(shown, kind);
  }

  function curvesOf(overview, path) {
    const curves = [
      { kind: "train", name: "train", values: path.map((one) => one.train) },
      { kind: "validation", name: "validation", values: path.map((one) => one.validation) },
    ];
    overview.simulators.forEach((simulator, s) => {
      const check = simulator === overview.fit_check;
      curves.push({
        kind: check ? "check" : `test s${s}`,
        name: check ? "test, fit check" : `test, ${simulator}`,
        values: path.map((one) => (one.scores[s] ? one.scores[s][0] : null)),
      });
    });
    return curves.filter((curve) => curve.values.some((value) => value !== null));
  }

  function drawScores(box, overview, explainer, one) {
    const rows = [];
    overview.simulators.forEach((simulator, s) => {
      if (!one.scores[s]) return;
      const check = simulator === overview.fit_check;
      rows.push({
        name: check ? "fit check" : simulator, check, score: one.scores[s], all: explainer.scores[s].all,
        gap: check ? one.gap : null, validation: one.validation,
        note: check ? "by the explainer itself, not a simulation" : "simulator, test images",
      });
    });
    box.replaceChildren(rows.length ? plots.intervals(rows)
      : h("p", { class: "notice" }, "This length has no score on test images."));
  }

  function predict(one, sampled, count) {
    const predicted = new Float64Array(count).fill(one.bias === null ? NaN : one.bias);
    one.concepts.forEach((concept, t) => {
      const scores = sampled.get(concept);
      for (let i = 0; i < count; i++) predicted[i] += one.weights[t] * scores[i];
    });
    return predicted;
  }

  /** Spread and scores of concepts, at the sharpness of the neuron's layer. */
  async function loadConcepts(overview, number, group, concepts) {
    const size = overview.concepts_per_shard;
    const level = overview.explainers[number].sharpness.levels[group];
    const wanted = [...new Set(concepts.map((concept) => Math.floor(concept / size)))];
    const shards = new Map(await Promise.all(wanted.map(async (shard) =>
      [shard, await atlas.load(`concepts/${number}/${level}/${shard}`)])));
    const spreads = new Map(), sampled = new Map();
    for (const concept of concepts) {
      const shard = shards.get(Math.floor(concept / size));
      const place = shard.concepts.indexOf(concept);
      spreads.set(concept, shard.spread[place]);
      sampled.set(concept, atlas.half(shard.scores[place]));
    }
    return [spreads, sampled];
  }
})(window.atlas);
