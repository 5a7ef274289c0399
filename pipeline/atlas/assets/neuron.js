/* The page of one neuron. */
(function (atlas) {
  "use strict";

  const { h, text, format, plots } = atlas;

  /** Finds a neuron: {group, place, number} or null. */
  atlas.locate = function (overview, layer, pooling, number) {
    const group = overview.groups.findIndex((one) => one.layer === layer && one.pooling === pooling);
    if (group < 0) return null;
    const { neurons, count } = overview.groups[group];
    const place = neurons ? neurons.indexOf(number) : number;
    return place >= 0 && place < count ? { group, place, number } : null;
  };

  atlas.neuronPage = async function (overview, main, layer, pooling, number, live) {
    const found = atlas.locate(overview, layer, pooling, number);
    if (!found) {
      main.replaceChildren(h("h1", {}, "No such neuron"), h("p", { class: "notice" },
        "This run has no neuron ", h("b", {}, String(number)), " in layer ", h("b", {}, text(layer)),
        " with pooling ", h("b", {}, text(pooling)), ". ", h("a", { href: "#/neurons" }, "See all neurons.")));
      return;
    }
    const size = overview.neurons_per_shard;
    const shard = await atlas.load(`neurons/${found.group}/${Math.floor(found.place / size)}`);
    if (!live()) return;
    const record = shard.neurons[found.place % size];
    const { values } = record;
    const about = atlas.pictures(overview, found, record, live);

    const by = record.by.map((one, e) => [one, e]).filter(([one]) => one);
    const explained = by.some(([one]) => one.path.length);
    const status = by.length ? (by.find(([one]) => one.status === "ok") || by[0])[0].status : "absent";
    const cards = explained
      ? by.map(([one, e]) => atlas.explanationCard(overview, e, found.group, one, shard.concepts[e], values, about))
      : [h("p", { class: "notice large" }, h("b", {}, status === "ok" ? "no explanation" : status), ": ",
        status === "ok" ? "no concept predicts this neuron." : `${atlas.statusText[status]}.`)];
    main.replaceChildren(head(overview, found), h("div", { class: "neuron-page" },
      h("div", { class: "explanations" }, cards, explained && atlas.termsNote(overview.folds),
        atlas.others(overview, record, shard.concepts)),
      h("div", { class: "evidence" },
        values && (values.max > values.min
          ? [bandsOf(overview, values, about), distribution(overview, values)]
          : h("p", { class: "notice large" }, "Its activation is ", h("b", {}, format.value(values.max)),
            ` for all ${format.counted(overview.images.count, "image")}, so no image stands for it.`)))));
  };

  function head(overview, found) {
    const group = overview.groups[found.group];
    const several = new Set(overview.groups.map((one) => one.pooling)).size > 1;
    const { previous, next, note } = neighbours(overview, found);
    const step = (address, sign, label, rel) => address
      ? h("a", { href: address, rel, "aria-label": label, title: label }, sign)
      : h("span", { "aria-hidden": "true" }, sign);
    return h("div", { class: "neuron-head" },
      h("div", {},
        h("p", { class: "crumbs" },
          h("a", { href: atlas.link.layer(group.layer) }, text(group.layer)),
          ` \u00b7 ${group.pooling} pooling`),
        h("h1", {}, h("span", { class: "layer" }, text(group.layer), ":"), String(found.number),
          several && h("span", { class: "pooling" }, ` ${group.pooling}`))),
      h("nav", { class: "steps", "aria-label": "Neighbouring neurons" },
        step(previous, "\u2190", "Previous neuron", "prev"),
        h("span", { class: "place" }, note),
        step(next, "\u2192", "Next neuron", "next")));
  }

  /** Previous and next: within the list last searched if the neuron is in it, else in its layer. */
  function neighbours(overview, found) {
    const list = atlas.browsing;
    if (list && list.neurons.length < list.engine.total) {
      if (!list.places) list.places = new Map(Array.from(list.neurons, (n, place) => [n, place]));
      const { engine } = list;
      const place = list.places.get(engine.starts[found.group] + found.place);
      if (place !== undefined) {
        const address = (n) => {
          const group = overview.groups[engine.groupOf[n]];
          return atlas.link.neuron(group.layer, group.pooling, engine.number(n));
        };
        return {
          previous: place > 0 && address(list.neurons[place - 1]),
          next: place + 1 < list.neurons.length && address(list.neurons[place + 1]),
          note: [`${format.count(place + 1)} of ${format.count(list.neurons.length)} found`,
            list.title && [" for ", text(list.title)]],
        };
      }
    }
    const group = overview.groups[found.group];
    const at = (place) => place >= 0 && place < group.count
      && atlas.link.neuron(group.layer, group.pooling, group.neurons ? group.neurons[place] : place);
    return {
      previous: at(found.place - 1),
      next: at(found.place + 1),
      note: `${format.count(found.place + 1)} of ${format.count(group.count)} in the layer`,
    };
  }

  /** The bands with the range of activation that each spans. */
  function spans(overview, values) {
    let at = 0;
    return overview.bands.map(([start, stop, low, high], number) => {
      const rows = values.rows.slice(at, at + overview.pictures[number]);
      const levels = values.levels.slice(at, at + overview.pictures[number]);
      at += overview.pictures[number];
      const shade = Math.round((5 * number) / Math.max(1, overview.bands.length - 1));
      return {
        rows, levels, shade, count: stop - start, name: format.band(low, high),
        high: levels[0], low: levels[levels.length - 1],
      };
    });
  }

  function bandsOf(overview, values, about) {
    return h("section", { class: "bands" },
      h("div", { class: "heading" }, h("h2", {}, "Images by activation"), about.control),
      about.note,
      spans(overview, values).map((band) => h("div", { class: "band-row" },
        h("div", { class: "band-name" },
          h("h3", {}, h("i", { class: `swatch b${band.shade}`, "aria-hidden": "true" }), band.name),
          h("p", {}, format.counted(band.count, "image")),
          h("p", {}, band.high === band.low ? `all ${format.value(band.low)}`
            : `${format.value(band.low)} to ${format.value(band.high)}`)),
        h("ul", { class: "pictures" }, band.rows.map((row, place) => {
          const level = band.levels[place];
          const item = h("li", { tabindex: 0 },
            about.picture(row, `image with activation ${format.value(level)}`),
            h("span", { class: "level" }, format.value(level)));
          return atlas.tip(item, () => about.facts(row, level));
        })))));
  }

  function distribution(overview, values) {
    const zero = values.zero > 0.0005 ? `${format.percent(values.zero, 3)} are exactly 0. ` : "";
    return h("section", { class: "distribution" },
      h("h2", {}, "Distribution of activation"),
      plots.distribution(values, spans(overview, values)),
      h("p", { class: "aside" },
        `Counts of ${format.counted(overview.images.count, "image")} on a logarithmic scale; the strip below shows the bands above. `,
        zero, `Mean ${format.value(values.mean)}, standard deviation ${format.value(values.spread)}.`));
  }
})(window.atlas);
