/* Shards of the atlas: each is a script that calls atlas.put(key, value). Loading by <script>
 * works where fetching does not: from a folder on disk. */
window.atlas = {};

(function (atlas) {
  "use strict";

  const version = document.documentElement.dataset.version;
  const KEPT = 160; // shards kept in memory; the oldest go first
  const values = new Map();
  const waiting = new Map();

  atlas.versioned = (path) => (version ? `${path}?v=${version}` : path);

  /** Called by each shard. */
  atlas.put = function (key, value) {
    values.set(key, value);
    for (const old of values.keys()) {
      if (values.size <= KEPT) break;
      if (/^(neurons|concepts|maps)\//.test(old) && old !== key) values.delete(old);
    }
  };

  /** A promise of the value stored under a key. */
  atlas.load = function (key) {
    if (values.has(key)) return Promise.resolve(values.get(key));
    if (!waiting.has(key)) waiting.set(key, request(key).finally(() => waiting.delete(key)));
    return waiting.get(key);
  };

  function request(key) {
    return new Promise((resolve, reject) => {
      const path = `data/${key}.js`;
      const script = document.createElement("script");
      const lost = () => new Error(
        `The file ${path} of this atlas is missing or damaged. Copy the whole folder, or build the atlas again.`
      );
      script.src = atlas.versioned(path);
      script.onload = () => {
        script.remove();
        if (values.has(key)) resolve(values.get(key));
        else reject(lost());
      };
      script.onerror = () => { script.remove(); reject(lost()); };
      document.head.append(script);
    });
  }

  /** Bytes of base64 text, as an ArrayBuffer. */
  function bytes(text) {
    const raw = atob(text);
    const array = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) array[i] = raw.charCodeAt(i);
    return array.buffer;
  }

  /** Bytes of base64 text. */
  atlas.bytes = (text) => new Uint8Array(bytes(text));

  let halves = null; // every float16 by its bits

  function halfTable() {
    if (halves) return halves;
    halves = new Float32Array(65536);
    for (let bits = 0; bits < 65536; bits++) {
      const sign = bits & 0x8000 ? -1 : 1;
      const exponent = (bits >> 10) & 31;
      const fraction = bits & 1023;
      halves[bits] = sign * (
        exponent === 31 ? (fraction ? NaN : Infinity)
        : exponent === 0 ? fraction * 2 ** -24
        : (1 + fraction / 1024) * 2 ** (exponent - 15)
      );
    }
    return halves;
  }

  /** float16 values from base64 text. */
  atlas.half = function (text) {
    const table = halfTable();
    return Float32Array.from(new Uint16Array(bytes(text)), (bits) => table[bits]);
  };

  /** A typed column as written by pipeline/atlas/encode.py. */
  atlas.column = function (stored) {
    const data = stored.data;
    switch (stored.type) {
      case "u1": return new Uint8Array(bytes(data));
      case "u2": return new Uint16Array(bytes(data));
      case "u4": return new Uint32Array(bytes(data));
      case "i2": return new Int16Array(bytes(data));
      case "f4": return new Float32Array(bytes(data));
      case "f2": return atlas.half(data);
      default: throw new Error(`A column of unknown type ${stored.type}: the atlas is newer than its page.`);
    }
  };
})(window.atlas);
