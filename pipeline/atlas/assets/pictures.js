/* Pictures of images, what is known of them, and where in them a neuron is active. */
(function (atlas) {
  "use strict";

  const { h, text, format } = atlas;
  let lit = false; // whether places are shown; kept from neuron to neuron

  /**
   * @param found  the neuron, as atlas.locate finds it
   * @param record the neuron's record
   * @param live   whether the page is still wanted
   * @returns {picture, facts, card, control, note}: elements and makers of elements
   */
  atlas.pictures = function (overview, found, record, live) {
    const known = new Map(); // filled in as shards arrive
    const wanted = rowsOf(overview, record);
    const shards = new Set([...wanted].map((row) => Math.floor(row / overview.images.per_shard)));
    for (const shard of shards) {
      atlas.load(`images/${shard}`).then((value) => {
        if (!live()) return;
        value.rows.forEach((row, place) => {
          if (!wanted.has(row)) return;
          known.set(row, {
            id: value.ids[place],
            path: value.paths ? value.paths[place] : null,
            label: value.label ? value.label[place] : null,
            split: value.split[place] >= 0 ? overview.images.splits[value.split[place]][0] : null,
          });
        });
      }, () => {}); // names of images are a help, not a need
    }
    const source = (row) =>
      atlas.versioned(`thumbs/${(row % 256).toString(16).padStart(2, "0")}/${row}.jpg`);
    const picture = (row, alt) => {
      const blank = () => h("span", { class: "blank" }, text((known.get(row) || {}).label || `image ${row}`));
      if (!overview.images.pictures) return blank();
      const image = h("img", { src: source(row), alt, loading: "lazy", decoding: "async" });
      const frame = h("span", { class: "frame", "data-row": row }, image);
      image.addEventListener("error", () => frame.replaceWith(blank()));
      places.light(frame);
      return frame;
    };
    const facts = (row, level) => {
      const one = known.get(row) || {};
      return [
        one.label && h("p", {}, h("b", {}, text(one.label))),
        level !== null && h("p", {}, `activation ${format.value(level)}`, one.split && ` \u00b7 ${one.split}`),
        one.id && h("p", { class: "faint" }, text(one.path || one.id)),
      ].filter(Boolean);
    };
    const places = placesOf(overview, found, live);
    return {
      picture,
      facts,
      card: (row, level) => [h("div", { class: "tip-picture" }, picture(row, "")), ...facts(row, level)],
      control: places.control,
      note: places.note,
    };
  };

  /** Rows of all images that a page may show or name. */
  function rowsOf(overview, { values, by }) {
    if (!values) return new Set();
    const failed = by.flatMap((one) => (one && one.worst) || []).filter(Boolean).flat(2).map(([row]) => row);
    return new Set([...values.rows, ...overview.sample, ...failed]);
  }

  /** The maps of a neuron, asked for when somebody wants to see them, and the button for it. */
  function placesOf(overview, { group, place }, live) {
    const shape = overview.images.pictures && overview.maps && overview.maps.shapes[group];
    if (!shape) return { light: () => {}, control: "", note: "" };
    const size = overview.neurons_per_shard;
    let maps = null; // row -> canvas
    const note = h("p", { class: "aside", role: "status", hidden: true },
      "Bright where the neuron is more active than its median over the pictures of this page; what the network does not see is dark.");
    const control = h("button", { type: "button", class: "places", onclick: () => { lit = !lit; show(); } },
      "Where active");
    const light = (frame) => {
      for (const old of frame.querySelectorAll("canvas")) old.remove();
      const draw = lit && maps && maps.get(Number(frame.dataset.row));
      frame.classList.toggle("lit", Boolean(draw));
      if (draw) frame.append(draw());
    };
    async function show() {
      control.setAttribute("aria-pressed", String(lit));
      note.hidden = !lit;
      if (lit && !maps) {
        try {
          const shard = await atlas.load(`maps/${group}/${Math.floor(place / size)}`);
          maps = painters(shard[place % size], shape, overview.maps.inset, overview.groups[group].pooling);
        } catch (error) {
          if (live()) note.textContent = error.message;
        }
      }
      if (live()) document.querySelectorAll(".frame").forEach(light);
    }
    show();
    return { light, control, note };
  }

  /** For each row a maker of an overlay that leaves bright what the neuron answers to. */
  function painters(stored, [height, width], inset, pooling) {
    const found = new Map();
    if (!stored) return found;
    const [rows, low, high, data] = stored;
    const raw = atlas.bytes(data);
    const cells = height * width;
    const values = Float32Array.from(raw, (level, at) => {
      const map = Math.floor(at / cells);
      const value = low[map] + ((high[map] - low[map]) * level) / 255;
      return pooling === "absmax" ? Math.abs(value) : value;
    });
    const middle = values.slice().sort()[values.length >> 1];
    const most = values.reduce((a, b) => Math.max(a, b), middle);
    rows.forEach((row, map) => found.set(row, () => {
      const canvas = h("canvas", { width, height, "aria-hidden": "true",
        style: `left:${100 * inset}%;top:${100 * inset}%;width:${100 - 200 * inset}%;height:${100 - 200 * inset}%` });
      const image = new ImageData(width, height);
      for (let cell = 0; cell < cells; cell++) {
        const share = most > middle ? Math.min(1, Math.max(0, (values[map * cells + cell] - middle) / (most - middle))) : 0;
        image.data.set([6, 10, 22, Math.round(196 * (1 - share ** 0.6))], 4 * cell);
      }
      canvas.getContext("2d").putImageData(image, 0, 0);
      return canvas;
    }));
    return found;
  }
})(window.atlas);
