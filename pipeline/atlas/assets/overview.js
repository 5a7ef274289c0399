/* The first page: the network at a glance. */
(function (atlas) {
  "use strict";

  const { h, text, format, charts } = atlas;

  atlas.overviewPage = function (overview, main) {
    const groups = overview.groups;
    const total = groups.reduce((sum, group) => sum + group.count, 0);
    const layers = new Set(groups.map((group) => group.layer)).size;
    const explainers = overview.explainers;
    main.replaceChildren(
      h("section", { class: "lead" },
        h("h1", { dir: "auto" }, overview.title),
        h("p", { class: "summary" }, summary(overview, total, layers)),
        tiles(overview)),
      explainers.length > 0 && overview.simulators.length > 0 ? byLayer(overview) : "",
      atlas.comparison(overview),
      ...atlas.effects(overview),
      atlas.sharpness(overview),
      atlas.sanity(overview),
      h("div", { class: "columns" }, explainers.map((explainer) => concepts(overview, explainer))),
      h("div", { class: "columns" },
        h("section", {}, h("h2", {}, "Lengths of explanations"),
          h("p", { class: "aside" }, "How many concepts the chosen explanation of a neuron has."),
          h("div", { class: "lengths-row" }, explainers.map((explainer) => h("figure", {},
            charts.lengths(explainer.lengths),
            h("figcaption", {}, text(explainer.name)))))),
        statuses(overview, total)),
      atlas.provenance(overview),
      h("footer", {}, h("p", {},
        "Method: T. Oikarinen and T.-W. Weng, ", h("cite", {}, "Linear Explanations for Individual Neurons"),
        ", ICML 2024 (arXiv:2405.06855).")));
  };

  function summary(overview, total, layers) {
    const splits = overview.images.splits.map(([name, count]) => `${format.count(count)} ${name}`).join(", ");
    return [
      h("b", {}, format.counted(total, "neuron")), ` in ${format.counted(layers, "layer")}, recorded on `,
      h("b", {}, format.counted(overview.images.count, "image")), ` (${splits}). `,
      h("b", {}, `${format.count(overview.explained)} of them are explained`),
      ": by a short weighted sum of concepts that predicts how strongly the neuron responds.",
    ];
  }

  /** One number for each explainer and simulator: the mean score. */
  function tiles(overview) {
    const list = [];
    overview.simulators.forEach((simulator, s) => overview.explainers.forEach((explainer) => {
      const all = explainer.scores[s].all;
      if (!all.count) return;
      const check = simulator === overview.fit_check;
      const above = explainer.scores[s].above_chance;
      list.push(h("li", { class: check ? "tile check" : "tile" },
        h("span", { class: "big" }, format.score(all.mean)),
        h("span", { class: "what" }, check
          ? [h("b", {}, text(explainer.name)), ", fit check by itself"]
          : [h("b", {}, text(explainer.name)), " simulated by ", h("b", {}, text(simulator))]),
        h("span", { class: "more" },
          `median ${format.score(all.median)} \u00b7 ${format.counted(all.count, "neuron")}`,
          above && ` \u00b7 ${format.percent(above[0] / above[1], 3)} above chance`)));
    }));
    if (!list.length) {
      return h("p", { class: "notice" }, "These explanations have not been scored yet.");
    }
    const simulated = overview.simulators.some((name) => name !== overview.fit_check);
    return [
      h("ul", { class: "tiles" }, list),
      h("p", { class: "aside" },
        "A ", h("b", {}, "score"), " is the correlation between the activation that an explanation predicts and the ",
        "activation that was recorded, on test images that had no part in the fit: 1 is a perfect prediction, 0 is none. ",
        "Published means of linear explanations lie between 0.1 and 0.5, by layer and network. ",
        overview.simulators.includes(overview.fit_check) && [
          "A ", h("b", {}, "fit check"), " uses the explainer\u2019s own concept scores",
          simulated ? "; only another model, the simulator, can tell whether the words themselves predict the neuron."
            : ". This run has no simulator: whether the words themselves predict the neuron was not tested by another model.",
        ],
        overview.measures.includes("q_value") && [
          " A score is ", h("b", {}, "above chance"), " where it beats those of the other neurons\u2019 explanations for the same neuron, ",
          `at a false-discovery rate of ${format.percent(overview.above_chance)} over the network.`,
        ]),
    ];
  }

  /** Distribution of scores by layer, a column for each explainer. */
  function byLayer(overview) {
    const scored = overview.simulators.map((_, s) => s)
      .filter((s) => overview.explainers.some((explainer) => explainer.scores[s].all.count));
    if (!scored.length) return "";
    const section = h("section", {});
    const several = new Set(overview.groups.map((group) => group.pooling)).size > 1;
    const draw = (s) => {
      const shown = overview.explainers.filter((explainer) => explainer.scores[s].all.count);
      const range = charts.scoreRange(shown.flatMap((explainer) => explainer.scores[s].groups));
      const simulator = overview.simulators[s];
      const name = (value) => (overview.simulators[value] === overview.fit_check ? "fit check" : overview.simulators[value]);
      section.replaceChildren(
        h("div", { class: "heading" }, h("h2", {}, "Scores by layer"),
          scored.length > 1 ? atlas.choice("Scored by", scored.map((value) => [value, name(value)]), s, draw) : ""),
        h("p", { class: "aside" }, simulator === overview.fit_check
          ? "How the neurons\u2019 scores are spread, by the explainer\u2019s own concept scores (a fit check, not a simulation). The line marks the mean."
          : ["How the neurons\u2019 scores are spread, simulated by ", text(simulator), ". The line marks the mean."]),
        atlas.scroll("Scores by layer", h("table", {
          class: "layers", style: `--ridge:${Math.round(62 / shown.length)}%`,
        },
          h("thead", {}, h("tr", {},
            h("th", { scope: "col" }, "Layer"),
            h("th", { scope: "col", class: "count" }, "Neurons"),
            shown.map((explainer) => [h("th", { scope: "col" }, text(explainer.name)),
              h("th", { scope: "col", class: "number" }, "Mean")]))),
          h("tbody", {}, overview.groups.map((group, g) => h("tr", {},
            h("th", { scope: "row" },
              h("a", { href: atlas.link.layer(group.layer, several ? { pooling: group.pooling } : {}) }, text(group.layer)),
              several && h("span", { class: "pooling" }, ` ${group.pooling}`)),
            h("td", { class: "count" }, format.count(group.count)),
            shown.map((explainer) => {
              const one = explainer.scores[s].groups[g];
              return [
                h("td", { class: "ridge-cell" }, one.count ? charts.ridge(one, range, 34) : ""),
                h("td", { class: "number" }, one.count ? format.score(one.mean) : "\u2013"),
              ];
            })))),
          h("tfoot", { "aria-hidden": "true" }, h("tr", {}, h("td", {}), h("td", { class: "count" }),
            shown.map(() => [h("td", {}, charts.scoreAxis(range)), h("td", {})]))))));
    };
    draw(scored[0]);
    return section;
  }

  function concepts(overview, explainer) {
    const rows = explainer.top.slice(0, 15).map(([name, positive, negative]) => ({
      name, parts: [positive, negative], href: atlas.link.concept(name),
    }));
    const signed = explainer.top.some(([, , negative]) => negative > 0);
    return h("section", {},
      h("h2", {}, "Most used concepts, ", text(explainer.name)),
      h("p", { class: "aside" },
        `${format.counted(explainer.concepts, "concept")} offered`,
        explainer.active !== null && `, ${format.count(explainer.active)} active on these images`,
        `, ${format.count(explainer.used)} in use. `,
        signed ? [h("span", { class: "key first" }, "raises"), " or ", h("span", { class: "key second" }, "lowers"),
          " the activation of so many neurons."] : "Bars count neurons."),
      rows.length ? charts.bars(rows, (row) => format.count(row.parts[0] + row.parts[1]))
        : h("p", { class: "notice" }, "No explanation uses a concept."),
      degenerate(explainer));
  }

  /** Concepts that a list could do without, folded away. */
  function degenerate(explainer) {
    const { counts, names } = explainer.degenerate;
    const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
    if (!total) return h("p", { class: "aside" }, "Every active concept says something that no other says.");
    const why = ([, status, same]) => status === "constant" ? "constant"
      : status === "duplicate" ? ["the same as ", text(same || "another")] : "a sum of others";
    return h("details", { class: "degenerate" },
      h("summary", {}, `${format.counted(total, "concept")} ${total === 1 ? "says" : "say"} nothing that others do not say`),
      h("p", { class: "aside" },
        "On the training images their scores do not vary, repeat those of another concept, or are a weighted sum of several others. A search never takes such a concept beside those that it repeats."),
      h("ul", {}, names.map((one) => h("li", {}, h("b", {}, text(one[0])), h("span", {}, why(one))))),
      names.length < total && h("p", { class: "aside" },
        `and ${format.count(total - names.length)} more, in degenerate_concepts.parquet.`));
  }

  function statuses(overview, total) {
    const counts = {};
    for (const group of overview.groups) {
      for (const [status, count] of Object.entries(group.statuses)) counts[status] = (counts[status] || 0) + count;
    }
    const names = [...overview.statuses, "absent"].filter((name) => counts[name] || name === "ok");
    return h("section", {},
      h("h2", {}, "Every neuron has a status"),
      h("table", { class: "facts" }, h("tbody", {}, names.map((name) => h("tr", {},
        h("th", { scope: "row" }, h("a", { href: atlas.link.neurons({ status: name }) }, name)),
        h("td", { class: "number" }, format.count(counts[name] || 0)),
        h("td", { class: "number" }, format.percent((counts[name] || 0) / Math.max(1, total), 3)),
        h("td", {}, atlas.statusText[name]))))),
      h("ul", { class: "explained" }, overview.explainers.map((explainer) => h("li", {},
        text(explainer.name), ` explains ${format.count(explainer.explained)} of ${format.count(total)}.`))));
  }

  /** Where this came from, and what it cost. */
  atlas.provenance = function (overview) {
    const { seconds, work, fingerprints, ...facts } = overview.provenance;
    const timed = seconds && typeof seconds === "object" && !Array.isArray(seconds)
      ? Object.entries(seconds).filter(([, value]) => typeof value === "number") : [];
    const sum = timed.reduce((total, [, value]) => total + value, 0);
    return h("section", { class: "provenance" },
      h("h2", {}, "Provenance and cost"),
      h("div", { class: "columns" },
        h("div", {}, nested(facts), fingerprints && h("details", { class: "degenerate" },
          h("summary", {}, "Fingerprints: what every table was made from"), nested(fingerprints))),
        timed.length > 0 && h("div", {}, costs(timed, work || {}), h("p", { class: "aside" }, `${format.seconds(sum)} in all.`))));
  };

  /** What each stage did: a bar for its time, and its rows, bytes and workers where they are known. */
  function costs(timed, work) {
    const longest = Math.max(...timed.map(([, value]) => value), 1e-9);
    const known = (key) => timed.some(([name]) => work[name] && typeof work[name][key] === "number");
    const columns = [
      ["rows", "Rows", format.count], ["rows_per_second", "Rows/s", format.value],
      ["bytes", "Written", format.bytes], ["workers", "Workers", format.count],
    ].filter(([key]) => known(key));
    return atlas.scroll("Cost by stage", h("table", { class: "measures costs" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Stage"), h("th", { class: "wide" }), h("th", { scope: "col", class: "number" }, "Time"),
        columns.map(([, name]) => h("th", { scope: "col", class: "number" }, name)))),
      h("tbody", {}, timed.map(([name, value]) => h("tr", {},
        h("th", { scope: "row" }, text(name)),
        h("td", { class: "wide", "aria-hidden": "true" }, h("i", { class: "cost", style: `width:${(100 * value) / longest}%` })),
        h("td", { class: "number" }, h("b", {}, format.seconds(value))),
        columns.map(([key, , show]) => h("td", { class: "number" },
          work[name] && typeof work[name][key] === "number" ? show(work[name][key]) : "\u2013")))))));
  }

  function nested(value) {
    if (value === null) return "\u2013";
    if (Array.isArray(value)) {
      const simple = value.every((item) => item === null || typeof item !== "object");
      return simple ? text(value.join(", ")) : h("ul", {}, value.map((item) => h("li", {}, nested(item))));
    }
    if (typeof value === "object") {
      return h("dl", { class: "facts" }, Object.entries(value).map(([key, item]) =>
        h("div", {}, h("dt", {}, text(key)), h("dd", {}, nested(item)))));
    }
    if (typeof value === "number") {
      return Number.isInteger(value) ? format.count(value) : format.value(value, 4);
    }
    return text(String(value));
  }
})(window.atlas);
