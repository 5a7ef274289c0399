/* Searching, filtering and sorting all neurons. No drawing here: numbers in, numbers out. */
(function (atlas) {
  "use strict";

  const NONE = -32768; // a score that is not there
  const BEST = -1; // in place of an explainer: each neuron's best-scoring one

  /**
   * The table's engine. Columns are those of the index shards, one per explainer.
   * @param overview the overview shard
   * @param shards   map from explainer number to its index shard
   */
  atlas.Search = class {
    constructor(overview, shards) {
      this.overview = overview;
      this.total = overview.groups.reduce((sum, group) => sum + group.count, 0);
      this.groupOf = new Uint16Array(this.total);
      this.starts = [];
      let start = 0;
      overview.groups.forEach((group, number) => {
        this.starts.push(start);
        this.groupOf.fill(number, start, start + group.count);
        start += group.count;
      });
      this.explainers = new Map();
      for (const [number, shard] of shards) this.explainers.set(number, decode(shard));
      this.cache = new Map();
    }

    /** The neuron's number within its layer. */
    number(neuron) {
      const group = this.overview.groups[this.groupOf[neuron]];
      const place = neuron - this.starts[this.groupOf[neuron]];
      return group.neurons ? group.neurons[place] : place;
    }

    /** For an explainer (or BEST) and simulator: which explainer stands for each neuron, and its score. */
    view(explainer, simulator) {
      return this.remember(`view ${explainer} ${simulator}`, () => {
        const pick = new Uint8Array(this.total);
        const score = new Int16Array(this.total).fill(NONE);
        const status = new Uint8Array(this.total).fill(255);
        const length = new Uint16Array(this.total);
        for (const [number, columns] of this.explainers) {
          if (explainer !== BEST && number !== explainer) continue;
          const own = columns.scores[simulator];
          for (let n = 0; n < this.total; n++) {
            const value = own ? own[n] : NONE;
            const better = value > score[n] || status[n] === 255
              || (value === score[n] && length[n] === 0 && columns.length[n] > 0)
              || (columns.status[n] === 0 && status[n] !== 0);
            if (!better) continue;
            pick[n] = number;
            score[n] = value;
            status[n] = columns.status[n];
            length[n] = columns.length[n];
          }
        }
        return { pick, score, status, length };
      });
    }

    /** Terms of the chosen explanation that stands for a neuron: list of [concept, weight], and bias. */
    explanation(neuron, view) {
      const columns = this.explainers.get(view.pick[neuron]);
      const terms = [];
      for (let t = columns.offset[neuron]; t < columns.offset[neuron + 1]; t++) {
        terms.push([columns.concepts[columns.term[t]], columns.weight[t]]);
      }
      return { terms, bias: terms.length ? columns.bias[neuron] : null };
    }

    /** Whether some term of the explanation that stands for a neuron lowers it. */
    lowers(neuron, view) {
      const columns = this.explainers.get(view.pick[neuron]);
      for (let t = columns.offset[neuron]; t < columns.offset[neuron + 1]; t++) {
        if (columns.weight[t] < 0) return true;
      }
      return false;
    }

    /**
     * Neurons that pass, in order.
     * @param wanted {explainer, simulator, query, layer, pooling, status, least, length, sign, sort, down}
     */
    find(wanted) {
      const view = this.view(wanted.explainer, wanted.simulator);
      const groups = this.overview.groups.map((group) =>
        (!wanted.layer || group.layer === wanted.layer)
        && (!wanted.pooling || group.pooling === wanted.pooling));
      const named = this.overview.statuses.indexOf(wanted.status);
      const status = wanted.status === "absent" ? 255 : named;
      const least = wanted.least > 0 ? Math.round(wanted.least * 10000) : null;
      const matches = this.matching(wanted.query, view);
      const order = this.order(wanted, view);
      const found = new Uint32Array(this.total);
      let count = 0;
      for (let i = 0; i < this.total; i++) {
        const n = wanted.down ? order[this.total - 1 - i] : order[i];
        if (!groups[this.groupOf[n]]) continue;
        if (status >= 0 && view.status[n] !== status) continue;
        if (least !== null && view.score[n] < least) continue;
        if (matches && !matches[n]) continue;
        if (wanted.length && view.length[n] !== wanted.length) continue;
        if (wanted.sign && !(view.length[n] && this.lowers(n, view) === (wanted.sign === "lowering"))) continue;
        found[count++] = n;
      }
      return { view, neurons: trailing(found.subarray(0, count), wanted, view) };
    }

    /** All neurons in rising order of a column; equal ones in a stable order. */
    order(wanted, view) {
      const key = `order ${wanted.sort} ${wanted.explainer} ${wanted.simulator} ${wanted.down}`;
      return this.remember(key, () => {
        const column = { score: view.score, length: view.length }[wanted.sort];
        return column ? rising(column, wanted.down) : Uint32Array.from({ length: this.total }, (_, n) => n);
      });
    }

    /** Marks of the neurons that match a query; null for an empty query. */
    matching(query, view) {
      const parts = parse(query);
      if (!parts.length) return null;
      const marks = new Uint8Array(this.total);
      parts.forEach((part, place) => this.mark(part, view, marks, place + 1));
      const all = parts.length;
      for (let n = 0; n < this.total; n++) marks[n] = marks[n] === all ? 1 : 0;
      return marks;
    }

    /** Raise to `level` the marks of neurons at level - 1 that match one part of a query. */
    mark(part, view, marks, level) {
      const raise = (n) => { if (marks[n] === level - 1) marks[n] = level; };
      if (part.neuron) {
        this.overview.groups.forEach((group, g) => {
          if (part.neuron.layer !== null && group.layer.toLowerCase() !== part.neuron.layer) return;
          const place = group.neurons ? group.neurons.indexOf(part.neuron.number) : part.neuron.number;
          if (place >= 0 && place < group.count) raise(this.starts[g] + place);
        });
      }
      for (const [number, columns] of this.explainers) {
        const { start, neuron, positive } = this.postings(number, columns);
        columns.lower.forEach((concept, c) => {
          if (!meets(part, concept)) return;
          for (let p = start[c]; p < start[c + 1]; p++) {
            if (view.pick[neuron[p]] !== number) continue;
            if (part.sign && positive[p] !== (part.sign > 0 ? 1 : 0)) continue;
            raise(neuron[p]);
          }
        });
      }
    }

    /** Make what the first search needs, ahead of it. */
    prepare() {
      for (const [number, columns] of this.explainers) this.postings(number, columns);
    }

    /** For each concept, the neurons whose chosen explanation uses it. */
    postings(number, columns) {
      return this.remember(`postings ${number}`, () => {
        const start = new Uint32Array(columns.concepts.length + 1);
        for (const c of columns.term) start[c + 1]++;
        for (let c = 0; c < columns.concepts.length; c++) start[c + 1] += start[c];
        const next = start.slice();
        const neuron = new Uint32Array(columns.term.length);
        const positive = new Uint8Array(columns.term.length);
        for (let n = 0; n < this.total; n++) {
          for (let t = columns.offset[n]; t < columns.offset[n + 1]; t++) {
            const place = next[columns.term[t]]++;
            neuron[place] = n;
            positive[place] = columns.weight[t] > 0 ? 1 : 0;
          }
        }
        return { start, neuron, positive };
      });
    }

    remember(key, make) {
      if (!this.cache.has(key)) this.cache.set(key, make());
      return this.cache.get(key);
    }
  };

  atlas.Search.BEST = BEST;
  atlas.Search.NONE = NONE;

  /**
   * Places of a column of 16-bit integers in rising order, by counting. Equal values keep the order
   * of the network, or turn it round for a list that is read from its end.
   */
  function rising(column, fromEnd) {
    const places = new Uint32Array(column.length);
    const start = new Uint32Array((1 << 16) + (1 << 15) + 1);
    for (const value of column) start[value + 32769]++;
    for (let i = 1; i < start.length; i++) start[i] += start[i - 1];
    const last = column.length - 1;
    for (let i = 0; i <= last; i++) {
      const n = fromEnd ? last - i : i;
      places[start[column[n] + 32768]++] = n;
    }
    return places;
  }

  function decode(shard) {
    const length = atlas.column(shard.length);
    const offset = new Uint32Array(length.length + 1);
    for (let n = 0; n < length.length; n++) offset[n + 1] = offset[n] + length[n];
    return {
      concepts: shard.concepts,
      lower: shard.concepts.map((text) => text.toLowerCase()),
      status: atlas.column(shard.status),
      length,
      offset,
      scores: shard.scores.map(atlas.column),
      bias: atlas.column(shard.bias),
      term: atlas.column(shard.term),
      weight: atlas.column(shard.weight),
    };
  }

  /** Texts of a query's parts: split at commas that are outside quotation marks. */
  function split(query) {
    const texts = [""];
    let quoted = false;
    for (const letter of (query || "").slice(0, 4000)) {
      if (letter === '"') quoted = !quoted;
      if (letter === "," && !quoted) texts.push("");
      else texts[texts.length - 1] += letter;
    }
    return texts;
  }

  /** Parts of a query: words to find, or an exact concept ("" inside quotes is one "). */
  function parse(query) {
    const parts = [];
    for (const raw of split(query)) {
      let text = raw.trim().toLowerCase();
      let sign = 0;
      if (/^[+\u2212-]\s*\S/.test(text)) {
        sign = text[0] === "+" ? 1 : -1;
        text = text.slice(1).trim();
      }
      const exact = text.length > 2 && text.startsWith('"') && text.endsWith('"');
      if (exact) text = text.slice(1, -1).replaceAll('""', '"');
      const words = text.split(/\s+/).filter(Boolean);
      if (!words.length) continue;
      const named = exact ? null : /^(?:(.+):)?(\d{1,9})$/.exec(text);
      parts.push({
        text, words, exact, sign,
        neuron: named && { layer: named[1] === undefined ? null : named[1], number: Number(named[2]) },
      });
    }
    return parts.slice(0, 50);
  }

  /** Whether a concept, in lower case, is one that a part of a query asks for. */
  function meets(part, concept) {
    return part.exact ? concept === part.text : part.words.every((word) => concept.includes(word));
  }

  /** A test of concepts: which ones a query asks for. */
  atlas.asksFor = function (query) {
    const parts = parse(query);
    return (concept) => parts.some((part) => meets(part, concept.toLowerCase()));
  };

  /** Where the list is sorted by score, neurons without one come last in either direction. */
  function trailing(neurons, wanted, view) {
    if (wanted.sort !== "score" || wanted.down) return neurons;
    const without = neurons.filter((n) => view.score[n] === NONE);
    const sorted = neurons.filter((n) => view.score[n] !== NONE);
    const joined = new Uint32Array(neurons.length);
    joined.set(sorted);
    joined.set(without, sorted.length);
    return joined;
  }
})(window.atlas);
