/* Drawings: made by Observable Plot, coloured by the style sheet, told aloud by their labels. */
(function (atlas) {
  "use strict";

  /**
   * A drawing that fills the width of its place.
   * @param label   what a screen reader says in its place
   * @param options of Plot.plot; marks are coloured by their class names
   */
  atlas.draw = function (label, options) {
    const drawing = Plot.plot({ className: "plot", ariaLabel: label, ...options });
    drawing.setAttribute("role", "img");
    // A group without a role has no name, and the drawing's own label says what there is to say.
    for (const group of drawing.querySelectorAll("g[aria-label]")) group.removeAttribute("aria-label");
    return drawing;
  };

  const AXIS = { className: "tick", tickSize: 0, tickPadding: 7, label: null };

  /** What an axis writes: at about so many round numbers, or at every one of the given ones. */
  const written = (ticks, write, more) => (Array.isArray(ticks)
    ? [ticks, { ...AXIS, ...more, text: (value) => write(value) }]
    : [{ ...AXIS, ...more, ticks, tickFormat: (value) => write(value) }]);

  /** Values up the left side: grid lines, the one of 0 stronger, and numbers. */
  atlas.upAxis = ([low, high], write, ticks = 4) => [
    Plot.gridY({ className: "grid", ticks }),
    low <= 0 && high >= 0 ? Plot.ruleY([0], { className: "zero" }) : null,
    Plot.axisY(...written(ticks, write)),
  ];

  /** Values along the foot, of given ones a `strong` one in bold, and what they are. */
  atlas.footAxis = (ticks, write, { label = null, grid = false, strong = null, ...more } = {}) => [
    grid ? Plot.gridX({ className: "grid", ticks }) : null,
    Plot.axisX(...written(strong === null ? ticks : ticks.filter((value) => value !== strong), write, more)),
    strong === null ? null : Plot.axisX(...written([strong], write, { className: "tick strong" })),
    label === null ? null : Plot.text([label], { className: "axis", frameAnchor: "bottom", dy: 36 }),
  ];

  /** Call `tell(datum, drawing)` when what is pointed at changes; the datum is null when it is nothing. */
  atlas.pointed = function (drawing, tell) {
    drawing.addEventListener("input", (event) => {
      event.stopPropagation();
      tell(drawing.value, drawing);
    });
    return drawing;
  };

  /** Where a point of a drawing is on the screen: its centre, given by values of the two scales. */
  atlas.placeOf = function (drawing, x, y) {
    const box = drawing.getBoundingClientRect();
    const [, , width, height] = drawing.getAttribute("viewBox").split(" ").map(Number);
    const of = (name, value) => (value === null ? 0 : drawing.scale(name).apply(value));
    return [box.left + (of("x", x) / width) * box.width, box.top + (of("y", y) / height) * box.height, box.bottom];
  };
})(window.atlas);
