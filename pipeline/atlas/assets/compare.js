/* Two runs side by side: which neurons changed meaning, and by how much. The address keeps the filters:
 *   #change=changed&layer=NAME&explainer=NAME&q=TEXT&sort=least                                     */
(function (atlas) {
  "use strict";

  const { h, text, format } = atlas;
  const FORMAT = 1; // of the shard; see pipeline/atlas/compare.py
  const NONE = -32768;
  const AT_ONCE = 40; // neurons drawn before one has to ask for more
  const main = document.getElementById("main");

  const MEANING = {
    same: "the terms are the same, in about the same shares",
    reworded: "other terms, which predict the same",
    changed: "other terms, which predict something else",
    gained: "explained in B alone",
    lost: "explained in A alone",
    neither: "explained in neither",
  };
  const SORTS = {
    least: "least alike first",
    gain: "largest gain in score first",
    loss: "largest loss in score first",
    neuron: "in the order of the network",
  };

  async function start() {
    try {
      const found = await atlas.load("compare");
      if (found.format !== FORMAT) {
        throw new Error(`This comparison has format ${found.format}, its page reads ${FORMAT}. Make it again.`);
      }
      draw(decode(found));
    } catch (error) {
      main.replaceChildren(h("h1", {}, "This page cannot be drawn"), h("p", { class: "notice" }, error.message));
      console.error(error);
    }
  }

  function decode(found) {
    const side = (stored) => {
      const length = atlas.column(stored.length);
      const offset = new Uint32Array(length.length + 1);
      for (let n = 0; n < length.length; n++) offset[n + 1] = offset[n] + length[n];
      return { status: atlas.column(stored.status), offset, term: atlas.column(stored.term),
        weight: atlas.column(stored.weight), bias: atlas.column(stored.bias) };
    };
    return {
      ...found,
      group: atlas.column(found.group), neuron: atlas.column(found.neuron), change: atlas.column(found.change),
      similarity: atlas.column(found.similarity), agreement: atlas.column(found.agreement),
      correlations: found.correlations.map((pair) => pair.map(atlas.column)),
      sides: found.sides.map(side),
      lower: found.concepts.map((concept) => concept.toLowerCase()),
    };
  }

  const share = (value) => (value === NONE ? null : value / 10000);
  const layerOf = ([layer, pooling]) => (pooling === "avg" ? layer : `${layer} ${pooling}`);

  function draw(runs) {
    const letters = ["A", "B"];
    document.getElementById("atlases").replaceChildren(...letters.map((letter, side) =>
      runs.links[side] && h("a", { href: runs.links[side] }, `Atlas ${letter}`)).filter(Boolean));
    const total = runs.group.length;
    const counts = runs.changes.map((_, c) => runs.groups.reduce((sum, group) => sum + group[3][c], 0));
    const moved = counts[runs.changes.indexOf("changed")];
    main.replaceChildren(
      h("section", { class: "lead" },
        h("h1", {}, "What changed"),
        h("dl", { class: "facts runs" }, letters.map((letter, side) => h("div", {},
          h("dt", {}, letter), h("dd", {}, runs.links[side]
            ? h("a", { href: runs.links[side] }, text(runs.places[side])) : text(runs.places[side]))))),
        h("p", { class: "summary" }, h("b", {}, `${format.count(moved)} of ${format.counted(total, "explanation")}`),
          ` ${moved === 1 ? "has" : "have"} another meaning in B.`)),
      changes(runs, counts, total),
      scores(runs),
      settings(runs),
      neurons(runs));
  }

  /** How many neurons of each layer went which way. */
  function changes(runs, counts, total) {
    const shown = runs.changes.map((_, c) => c).filter((c) => counts[c]);
    return h("section", {},
      h("h2", {}, "What became of the explanations"),
      h("ul", { class: "layer-keys change-keys" }, shown.map((c) => h("li", {},
        h("i", { class: `block change-${runs.changes[c]}`, "aria-hidden": "true" }),
        h("b", {}, runs.changes[c]), MEANING[runs.changes[c]]))),
      atlas.scroll("What became of the explanations", h("table", { class: "measures changes" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Layer"), h("th", { scope: "col" }, "Explainer"),
          h("th", { scope: "col", class: "wide" }, ""),
          shown.map((c) => h("th", { scope: "col", class: "number" }, runs.changes[c])),
          h("th", { scope: "col", class: "number" }, "mean similarity"))),
        h("tbody", {}, runs.groups.map((group) => {
          const own = group[3].reduce((sum, count) => sum + count, 0);
          return h("tr", {},
            h("th", { scope: "row" }, text(layerOf(group))), h("td", {}, text(group[2])),
            h("td", { class: "wide", "aria-hidden": "true" }, h("span", { class: "stack" }, shown.map((c) => group[3][c] > 0
              && h("i", { class: `change-${runs.changes[c]}`, style: `flex:${group[3][c] / own}` })))),
            shown.map((c) => h("td", { class: "number" }, format.count(group[3][c]))),
            h("td", { class: "number" }, format.score(group[4])));
        })))),
      h("p", { class: "aside" },
        `Similarity is what two explanations have in common by the shares of their terms, from 0 to 1; from ${format.score(runs.same, 1)} on they are the same. Reworded: their predictions of B\u2019s test images correlate at least as much. `,
        `${format.counted(total, "explanation")} of neurons that both runs have.`),
      [...runs.missing, ...runs.unread.map(([name, why]) => `${name}: predictions are not compared, so that none is reworded: ${why}`)]
        .map((note) => h("p", { class: "aside" }, text(note))));
  }

  function scores(runs) {
    if (!runs.scores.length) return "";
    return h("section", {},
      h("h2", {}, "Scores"),
      h("p", { class: "aside" }, "Mean correlation on the test images of each run, of neurons that have one in both, and the mean change with Student\u2019s 95\u202f% interval."),
      atlas.scroll("Scores", h("table", { class: "measures" },
        h("thead", {}, h("tr", {}, ["Layer", "Explainer", "Scored by"].map((name) => h("th", { scope: "col" }, name)),
          ["Neurons", "A", "B", "B less A", "apart"].map((name) => h("th", { scope: "col", class: "number" }, name)))),
        h("tbody", {}, runs.scores.map(([g, s, count, a, b, gap, low, high, apart]) => h("tr", {},
          h("th", { scope: "row" }, text(layerOf(runs.groups[g]))), h("td", {}, text(runs.groups[g][2])),
          h("td", {}, simulatorName(runs, s)),
          h("td", { class: "number" }, format.count(count)),
          h("td", { class: "number" }, format.score(a, 3)), h("td", { class: "number" }, format.score(b, 3)),
          h("td", { class: "number" }, h("b", {}, signed(gap, 3)),
            low !== null && ` (${signed(low, 3)} \u2026 ${signed(high, 3)})`),
          h("td", { class: "number" }, format.count(apart))))))),
      h("p", { class: "aside" }, "Apart: neurons whose own two intervals do not overlap."));
  }

  function settings(runs) {
    if (!runs.settings.length) return "";
    return h("section", {},
      h("h2", {}, "Settings that differ"),
      atlas.scroll("Settings that differ", h("table", { class: "measures settings" },
        h("thead", {}, h("tr", {}, ["Key", "A", "B"].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, runs.settings.map(([key, a, b]) => h("tr", {},
          h("th", { scope: "row" }, text(key)), h("td", {}, text(a)), h("td", {}, text(b))))))));
  }

  const signed = (value, places) => (value > 0 ? "+" : "") + format.score(value, places);
  const simulatorName = (runs, s) => (runs.simulators[s] === "explainer" ? "fit check" : text(runs.simulators[s]));

  // Neurons ---------------------------------------------------------------------------------------

  function neurons(runs) {
    const address = new URLSearchParams(location.hash.slice(1));
    const layers = [...new Set(runs.groups.map(layerOf))], explainers = [...new Set(runs.groups.map((group) => group[2]))];
    const some = runs.groups.some((group) => group[3][runs.changes.indexOf("changed")]);
    const state = {
      change: address.has("change") ? address.get("change") : some ? "changed" : "",
      layer: address.get("layer") || "", explainer: address.get("explainer") || "",
      q: address.get("q") || "", sort: SORTS[address.get("sort")] ? address.get("sort") : "least",
    };
    const list = h("ol", { class: "diffs" });
    const found = h("p", { class: "found", role: "status" });
    const more = h("button", { type: "button", class: "places", onclick: () => extend() }, "Show more");
    let order = [], drawn = 0;

    function update(save) {
      if (save) history.replaceState(null, "", `#${new URLSearchParams(Object.entries(state))}`);
      order = select(runs, state);
      found.textContent = `${format.count(order.length)} of ${format.counted(runs.group.length, "explanation")}`;
      list.replaceChildren();
      drawn = 0;
      extend();
    }
    function extend() {
      const next = order.slice(drawn, drawn + AT_ONCE);
      list.append(...next.map((n) => item(runs, n)));
      drawn += next.length;
      more.hidden = drawn >= order.length;
    }
    const choose = (label, key, options) => h("label", {}, h("span", {}, label),
      h("select", { onchange: (event) => { state[key] = event.target.value; update(true); } },
        options.map(([value, name]) => h("option", { value, selected: value === state[key] }, name))));
    const any = (values, name) => [["", name], ...values.map((value) => [value, value])];
    update(false);
    return h("section", {},
      h("h2", {}, "Neuron by neuron"),
      h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
        h("label", { class: "query" }, h("span", {}, "Concepts"),
          h("input", { type: "search", id: "query", value: state.q, autocomplete: "off", spellcheck: "false",
            oninput: (event) => { state.q = event.target.value; update(true); } })),
        choose("Change", "change", any(runs.changes, "any")),
        choose("Layer", "layer", any(layers, "all layers")),
        explainers.length > 1 && choose("Explainer", "explainer", any(explainers, "all")),
        choose("Order", "sort", Object.entries(SORTS))),
      found, list, more);
  }

  function select(runs, state) {
    const change = runs.changes.indexOf(state.change);
    const groups = runs.groups.map((group) =>
      (!state.layer || layerOf(group) === state.layer) && (!state.explainer || group[2] === state.explainer));
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const hits = words.length ? runs.lower.map((concept) => words.every((word) => concept.includes(word))) : null;
    const named = (n) => !hits || runs.sides.some((side) => {
      for (let t = side.offset[n]; t < side.offset[n + 1]; t++) if (hits[side.term[t]]) return true;
      return false;
    });
    const found = [];
    for (let n = 0; n < runs.group.length; n++) {
      if (groups[runs.group[n]] && (change < 0 || runs.change[n] === change) && named(n)) found.push(n);
    }
    const judge = Math.max(0, runs.simulators.findIndex((name) => name !== "explainer"));
    const pair = runs.correlations[judge];
    const gap = (n) => (!pair || pair[0][n] === NONE || pair[1][n] === NONE ? null : pair[1][n] - pair[0][n]);
    const alike = (n) => {
      const value = runs.agreement[n] === NONE ? runs.similarity[n] : runs.agreement[n];
      return value === NONE ? Infinity : value;
    };
    const key = { least: alike, gain: (n) => (gap(n) === null ? Infinity : -gap(n)), loss: (n) => (gap(n) === null ? Infinity : gap(n)) }[state.sort];
    if (key) {
      const keys = new Map(found.map((n) => [n, key(n)]));
      found.sort((a, b) => keys.get(a) - keys.get(b) || a - b || 0);
    }
    return found;
  }

  function item(runs, n) {
    const [layer, pooling, explainer] = runs.groups[runs.group[n]];
    const number = runs.neuron[n];
    const numbers = [["similarity", share(runs.similarity[n])], ["predictions correlate", share(runs.agreement[n])]];
    return h("li", { class: "diff" },
      h("div", { class: "diff-head" },
        h("h3", {}, h("span", { class: "layer" }, text(layer), ":"), String(number),
          pooling !== "avg" && h("span", { class: "pooling" }, ` ${pooling}`)),
        h("span", { class: "by" }, text(explainer)),
        h("span", { class: "tag" }, h("i", { class: `block change-${runs.changes[runs.change[n]]}`, "aria-hidden": "true" }), runs.changes[runs.change[n]]),
        numbers.map(([name, value]) => value !== null && h("span", { class: "note" }, `${name} `, h("b", {}, format.score(value)))),
        runs.simulators.map((_, s) => {
          const [a, b] = runs.correlations[s].map((column) => share(column[n]));
          return (a !== null || b !== null) && h("span", { class: "note" }, simulatorName(runs, s), " ",
            h("b", {}, `${format.score(a)} \u2192 ${format.score(b)}`));
        })),
      runs.sides.map((side, place) => h("p", { class: "diff-side" },
        runs.links[place]
          ? h("a", { class: "letter", href: runs.links[place] + atlas.link.neuron(layer, pooling, number),
            "aria-label": `${layer}:${number} in the atlas of run ${"AB"[place]}` }, "AB"[place])
          : h("span", { class: "letter" }, "AB"[place]),
        equation(runs, side, n))));
  }

  function equation(runs, side, n) {
    const terms = [];
    for (let t = side.offset[n]; t < side.offset[n + 1]; t++) terms.push([runs.concepts[side.term[t]], side.weight[t]]);
    if (terms.length) return atlas.equation(terms, side.bias[n], 2, false);
    const status = runs.statuses[side.status[n]];
    return h("span", { class: "none" }, status === "ok" ? "no explanation" : status);
  }

  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
  start();
})(window.atlas);
