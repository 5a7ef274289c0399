/* Numbers as a reader likes them: a true minus sign, few digits, grouped thousands. */
(function (atlas) {
  "use strict";

  const grouped = new Intl.NumberFormat("en");
  const signed = (text) => text.replace("-", "\u2212");

  const format = {};

  /** A count: 12,345. */
  format.count = (value) => grouped.format(value);

  /** A count with its noun: "1 neuron", "1,234 neurons". */
  format.counted = (value, noun) => `${grouped.format(value)} ${noun}${value === 1 ? "" : "s"}`;

  /** A value with so many significant digits and no idle zeros: 2.3, 0.041, 1.2e−7. */
  format.value = function (value, digits = 3) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-4) {
      return signed(value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e"));
    }
    if (size >= 10 ** digits) return signed(grouped.format(Math.round(value)));
    return signed(String(Number(value.toPrecision(digits))));
  };

  /** A correlation: two decimals; a dash for none. */
  format.score = function (value, places = 2) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
    const text = value.toFixed(places);
    return signed(/^-0\.?0*$/.test(text) ? text.slice(1) : text);
  };

  /** A share of one as a percentage: 0.1 %. */
  format.percent = (share, digits = 2) =>
    `${signed(String(Number((100 * share).toPrecision(digits))))}\u202f%`;

  /** An amount of data: 12.3 MB. */
  format.bytes = function (bytes) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    const unit = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log10(Math.max(1, bytes)) / 3)));
    return `${format.value(bytes / 1000 ** unit)}\u202f${units[unit]}`;
  };

  format.seconds = function (seconds) {
    if (seconds < 10) return `${Number(seconds.toPrecision(2))} s`;
    if (seconds < 100) return `${Math.round(seconds)} s`;
    const minutes = Math.round(seconds / 60);
    return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  };

  /** What a band of activation is called. */
  format.band = function (low, high) {
    if (low === 0) return high === 1 ? "All images" : `Top ${format.percent(high)}`;
    if (high === 1) return `Lowest ${format.percent(1 - low, 4)}`;
    return `${format.percent(low).replace("\u202f%", "")}\u2013${format.percent(high)}`;
  };

  atlas.format = format;
})(window.atlas);
