/* The table of neurons: filters above, and below only as many rows as the window can show. */
(function (atlas) {
  "use strict";

  const { h, text, format } = atlas;
  const { BEST, NONE } = atlas.Search;
  const MOST_LAYERS = 6; // named with their neurons above the table
  const TALLEST = 8e6; // browsers refuse taller elements; beyond it rows are reached by scale

  const SIGNS = [["", "any"], ["raising", "only raising"], ["lowering", "some lowering"]];

  let engine = null;

  /** The list that previous and next walk through; null until a table was seen. */
  atlas.browsing = null;

  async function search(overview) {
    if (!engine) {
      const numbers = overview.explainers.map((_, number) => number);
      const shards = await Promise.all(numbers.map((number) => atlas.load(`index/${number}`)));
      engine = new atlas.Search(overview, numbers.map((number) => [number, shards[number]]));
    }
    return engine;
  }

  /** @param fixed {layer} on a layer's page, else {} */
  atlas.tablePage = async function (overview, main, fixed, parameters, live) {
    main.replaceChildren(h("p", { class: "waiting" }, "Loading the table of neurons\u2026"));
    const found = await search(overview);
    if (!live()) return;
    const state = initial(overview, fixed, parameters);
    const table = rows(overview, found, state, Boolean(fixed.layer));
    const controls = filters(overview, state, fixed, () => { save(state, fixed, overview); table.update(); });
    main.replaceChildren(heading(overview, fixed), controls, table.element);
    table.update();
    setTimeout(() => found.prepare(), 100); // once the rows are painted
  };

  function heading(overview, fixed) {
    if (!fixed.layer) return h("h1", { class: "quiet" }, "Neurons");
    const groups = overview.groups.filter((group) => group.layer === fixed.layer);
    const counts = {};
    for (const group of groups) {
      for (const [status, count] of Object.entries(group.statuses)) counts[status] = (counts[status] || 0) + count;
    }
    const total = groups.reduce((sum, group) => sum + group.count, 0);
    const others = Object.entries(counts).filter(([status]) => status !== "ok")
      .map(([status, count]) => `${format.count(count)} ${status}`).join(", ");
    return h("div", { class: "layer-head" },
      h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Overview"), " / layer"),
      h("h1", {}, text(fixed.layer)),
      h("p", { class: "summary" }, `${format.counted(total, "neuron")}`,
        others && ` (${others})`, ". ",
        overview.explainers.map((explainer) => overview.simulators.map((simulator, s) => {
          const own = groups.map((group) => explainer.scores[s].groups[overview.groups.indexOf(group)]);
          const count = own.reduce((sum, one) => sum + one.count, 0);
          if (!count || (simulator === overview.fit_check && overview.simulators.length > 1)) return "";
          const mean = own.reduce((sum, one) => sum + (one.count ? one.mean * one.count : 0), 0) / count;
          return [text(explainer.name), simulator === overview.fit_check ? " (fit check)" : [" by ", text(simulator)],
            ": mean score ", h("b", {}, format.score(mean)), ". "];
        }))));
  }

  function initial(overview, fixed, parameters) {
    const number = (names, wanted, otherwise) => {
      const place = names.indexOf(wanted);
      return place >= 0 ? place : otherwise;
    };
    const explainers = overview.explainers.map((explainer) => explainer.name);
    const sort = parameters.get("sort") || "-score";
    return {
      query: parameters.get("q") || "",
      layer: fixed.layer || parameters.get("layer") || "",
      pooling: parameters.get("pooling") || "",
      status: parameters.get("status") || "",
      length: Math.max(0, Math.round(Number(parameters.get("length")) || 0)),
      sign: SIGNS.some(([value]) => value === parameters.get("sign")) ? parameters.get("sign") : "",
      least: Math.min(1, Math.max(0, Number(parameters.get("min")) || 0)),
      explainer: number(explainers, parameters.get("explainer"), explainers.length > 1 ? BEST : 0),
      simulator: number(overview.simulators, parameters.get("simulator"), 0),
      sort: sort.replace(/^-/, ""),
      down: sort.startsWith("-"),
    };
  }

  /** Keep the address in step, so that a view can be shared and found again. */
  function save(state, fixed, overview) {
    const sort = `${state.down ? "-" : ""}${state.sort}`;
    const parameters = {
      q: state.query,
      layer: fixed.layer ? "" : state.layer,
      pooling: state.pooling,
      status: state.status,
      length: state.length || "",
      sign: state.sign,
      min: state.least > 0 ? String(state.least) : "",
      explainer: state.explainer === BEST || overview.explainers.length < 2 ? "" : overview.explainers[state.explainer].name,
      simulator: state.simulator === 0 ? "" : overview.simulators[state.simulator],
      sort: sort === "-score" ? "" : sort,
    };
    const address = fixed.layer ? atlas.link.layer(fixed.layer, parameters) : atlas.link.neurons(parameters);
    history.replaceState(null, "", address);
  }

  function filters(overview, state, fixed, changed) {
    const select = (label, options, current, choose) => options.length < 2 ? "" : h("label", {},
      h("span", {}, label),
      h("select", { onchange: (event) => { choose(event.target.value); changed(); } },
        options.map(([value, name]) => h("option", { value, selected: String(value) === String(current) }, name))));
    const unique = (key) => [...new Set(overview.groups.map((group) => group[key]))];
    const any = (list, name) => [["", name], ...list.map((value) => [value, value])];
    const held = ["ok", ...overview.statuses.slice(1), "absent"]
      .filter((status) => overview.groups.some((group) => group.statuses[status]));
    const output = h("output", {}, state.least > 0 ? `\u2265 ${format.score(state.least)}` : "any");
    const explainers = overview.explainers.map((explainer, number) => [number, explainer.name]);
    return h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      h("label", { class: "query" }, h("span", {}, "Concepts"),
        h("input", {
          type: "search", id: "query", value: state.query, autocomplete: "off", spellcheck: "false",
          placeholder: "dog, grass \u2014 or conv_head:17".replace("conv_head", unique("layer").at(-1) || "layer"),
          oninput: (event) => { state.query = event.target.value; changed(); },
        })),
      fixed.layer ? "" : select("Layer", any(unique("layer"), "all layers"), state.layer, (value) => { state.layer = value; }),
      select("Pooling", unique("pooling").length > 1 ? any(unique("pooling"), "all") : [], state.pooling,
        (value) => { state.pooling = value; }),
      select("Explainer", explainers.length > 1 ? [[BEST, "best of all"], ...explainers] : [], state.explainer,
        (value) => { state.explainer = Number(value); }),
      select("Scored by", overview.simulators.map((name, number) =>
        [number, name === overview.fit_check ? "explainer (fit check)" : name]), state.simulator,
      (value) => { state.simulator = Number(value); }),
      select("Status", held.length > 1 || state.status ? any(held, "any") : [], state.status, (value) => { state.status = value; }),
      select("Length", [[0, "any"], ...lengthsOf(overview).map((length) => [length, String(length)])], state.length,
        (value) => { state.length = Number(value); }),
      select("Signs", SIGNS, state.sign, (value) => { state.sign = value; }),
      overview.simulators.length > 0 && h("label", { class: "least" }, h("span", {}, "Score ", output),
        h("input", {
          type: "range", min: 0, max: 1, step: 0.05, value: state.least, "aria-label": "Least score",
          oninput: (event) => {
            state.least = Number(event.target.value);
            output.textContent = state.least > 0 ? `\u2265 ${format.score(state.least)}` : "any";
            changed();
          },
        })));
  }

  /** Lengths that some chosen explanation has. */
  const lengthsOf = (overview) => [...new Set(overview.explainers.flatMap((explainer) =>
    explainer.lengths.flatMap((count, place) => (count ? [place + 1] : []))))].sort((a, b) => a - b);

  /** In which layers most of the neurons found are. */
  function layersOf(overview, found, neurons) {
    const counts = new Map();
    for (const n of neurons) {
      const { layer } = overview.groups[found.groupOf[n]];
      counts.set(layer, (counts.get(layer) || 0) + 1);
    }
    const most = [...counts].sort((a, b) => b[1] - a[1]).slice(0, MOST_LAYERS);
    return [most.map(([layer, count]) => [" \u00b7 ", text(layer), ` ${format.count(count)}`]),
      counts.size > most.length && ` \u00b7 ${format.counted(counts.size - most.length, "layer")} more`];
  }

  function rows(overview, found, state, oneLayer) {
    const scored = overview.simulators.length > 0;
    const several = new Set(overview.groups.map((group) => group.pooling)).size > 1;
    const body = h("div", { class: "body", role: "rowgroup" });
    const summary = h("p", { class: "found", role: "status" });
    const head = h("div", { class: "head", role: "row", "aria-rowindex": 1 });
    const grid = h("div", { role: "table", "aria-label": "Neurons" }, head, body);
    const element = h("section", { class: oneLayer ? "neurons one-layer" : "neurons" }, summary, grid);
    const all = overview.groups.reduce((sum, group) =>
      sum + (oneLayer && group.layer !== state.layer ? 0 : group.count), 0);
    let result = { neurons: [] };
    let marked = () => false;
    let rowHeight = 44, first = -1, last = -1;

    const columns = [["neuron", "Neuron"], ["", "Explanation"], ["length", "Length"], ...(scored ? [["score", "Score"]] : [])];
    function drawHead() {
      head.replaceChildren(...columns.map(([key, name]) => {
        const sorted = key && key === state.sort;
        return h("span", {
          role: "columnheader", class: key || "explanation",
          "aria-sort": sorted ? (state.down ? "descending" : "ascending") : key ? "none" : null,
        }, key ? h("button", { type: "button", onclick: () => {
          state.down = sorted ? !state.down : key !== "neuron";
          state.sort = key;
          save(state, oneLayer ? { layer: state.layer } : {}, overview);
          update();
        } }, name, h("i", { "aria-hidden": "true" }, sorted ? (state.down ? " \u2193" : " \u2191") : "")) : name);
      }));
    }

    function update() {
      result = found.find(state);
      marked = atlas.asksFor(state.query);
      const count = result.neurons.length;
      atlas.browsing = { neurons: result.neurons, places: null, engine: found, title: state.query };
      summary.replaceChildren(...[count === all ? format.counted(count, "neuron")
        : `${format.count(count)} of ${format.counted(all, "neuron")}`,
      count < all && !oneLayer && !state.layer && layersOf(overview, found, result.neurons)].flat(3).filter(Boolean));
      grid.setAttribute("aria-rowcount", count + 1);
      rowHeight = parseFloat(getComputedStyle(element).getPropertyValue("--row")) || 44;
      body.style.height = `${Math.min(TALLEST, count * rowHeight)}px`;
      drawHead();
      first = -1;
      draw();
      if (!count) body.replaceChildren(h("p", { class: "notice" }, "No neuron matches. Fewer words or a lower score may find some."));
    }

    function draw() {
      const count = result.neurons.length;
      if (!count || !element.isConnected) return;
      const top = -body.getBoundingClientRect().top;
      const view = window.innerHeight;
      const full = count * rowHeight;
      const height = Math.min(TALLEST, full);
      // Where all rows are taller than an element may be, scrolling maps onto them in proportion.
      const scale = full > height ? (full - view) / Math.max(1, height - view) : 1;
      const from = Math.max(0, Math.floor((top * scale) / rowHeight) - 6);
      const to = Math.min(count, Math.ceil((top * scale + view) / rowHeight) + 6);
      if (from === first && to === last && scale === 1) return;
      [first, last] = [from, to];
      const focused = document.activeElement && document.activeElement.dataset.place;
      const shift = scale === 1 ? 0 : top - top * scale;
      const drawn = [];
      for (let place = from; place < Math.max(from, to); place++) drawn.push(row(place, place * rowHeight + shift));
      body.replaceChildren(...drawn);
      if (focused !== undefined) {
        const again = body.querySelector(`[data-place="${focused}"]`);
        if (again) again.focus({ preventScroll: true });
      }
    }

    function row(place, top) {
      const n = result.neurons[place];
      const group = overview.groups[found.groupOf[n]];
      const { view } = result;
      const status = overview.statuses[view.status[n]] || "absent";
      const { terms, bias } = found.explanation(n, view);
      const score = view.score[n] === NONE ? null : view.score[n] / 10000;
      const name = overview.explainers.length > 1 && state.explainer === BEST && terms.length
        ? overview.explainers[view.pick[n]].name : "";
      return h("a", {
        class: "row", role: "row", href: atlas.link.neuron(group.layer, group.pooling, found.number(n)),
        style: `top:${top}px`, "aria-rowindex": place + 2, "data-place": place,
      },
      h("span", { role: "cell", class: "neuron" },
        !oneLayer && h("span", { class: "layer" }, text(group.layer), ":"),
        h("b", {}, String(found.number(n))),
        several && h("span", { class: "pooling" }, ` ${group.pooling}`)),
      h("span", { role: "cell", class: "explanation" }, terms.length
        ? atlas.equation(terms, bias, 2, false, marked)
        : h("span", { class: "none" }, status === "ok" ? "no explanation" : [h("b", {}, status), ` \u2013 ${atlas.statusText[status]}`])),
      h("span", { role: "cell", class: "length" }, terms.length ? String(terms.length) : ""),
      scored && h("span", { role: "cell", class: "score" },
        score !== null && h("span", { class: "track", "aria-hidden": "true" },
          h("span", { class: "bar", style: `width:${Math.max(0, Math.min(1, score)) * 100}%` })),
        h("b", {}, format.score(score)),
        name && h("span", { class: "by" }, text(name))));
    }

    const onscroll = () => { if (element.isConnected) draw(); else stop(); };
    const onresize = () => { if (element.isConnected) { first = -1; update(); } else stop(); };
    const stop = () => {
      window.removeEventListener("scroll", onscroll);
      window.removeEventListener("resize", onresize);
    };
    window.addEventListener("scroll", onscroll, { passive: true });
    window.addEventListener("resize", onresize);

    element.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const current = document.activeElement.dataset.place;
      if (!step || current === undefined) return;
      event.preventDefault();
      const next = Number(current) + step;
      const target = body.querySelector(`[data-place="${next}"]`);
      if (target) { target.focus({ preventScroll: true }); target.scrollIntoView({ block: "nearest" }); }
    });
    return { element, update };
  }
})(window.atlas);
